"""Anyone's own data: a folder or zip with one sub-folder of images per class.

Folders named train, val and test on top divide the classes themselves; the part is then the group.
Otherwise the group is "" and a split names percentages (`training.data.splits`). Files that are not
images, hidden files and a single folder wrapped around everything are passed over.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from models_zoo.cards import InputSpec
from training.data.reading import (
    SUFFIXES,
    Listing,
    Reader,
    Source,
    decode,
    hidden,
    opened_zip,
    read_image,
    read_member,
)
from training.data.store import DataError

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPEC = InputSpec(channels=3, height=84, width=84, fit="crop", invert=False)


def find(root: Path) -> tuple[Path, ...] | None:
    """The zip, or the folder and every image in it."""
    if root.is_file():
        return (root,)
    return (root, *_images(root)) if root.is_dir() else None


@contextmanager
def open_data(files: tuple[Path, ...]) -> Iterator[Reader]:
    """Opens the folder or zip. Raises `DataError` naming the file at fault."""
    root, images = files[0], files[1:]
    if root.is_dir():
        paths = {path.relative_to(root).as_posix(): path for path in images}
        yield Reader(_listings(root, list(paths)), lambda name: read_image(paths[str(name)]))
        return
    with opened_zip(root) as archive:
        members = {name.replace("\\", "/"): name for name in archive.namelist()}

        def image(name: Hashable) -> Image.Image:
            return decode(read_member(archive, members[str(name)]), f"{root}: {name}")

        for name in members:
            if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
                raise DataError(f"{root}: {name!r} points outside the archive; not read")
        wanted = [name for name in sorted(members) if _is_image(name) and not hidden(name)]
        yield Reader(_listings(root, wanted), image)


def _images(root: Path) -> list[Path]:
    """Every image below `root`, sorted; linked folders are followed once."""
    found: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        found += (Path(folder, name) for name in names if _is_image(name) and not hidden(name))
    return sorted(found)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _listings(root: Path, names: Sequence[str]) -> list[Listing]:
    """Classes from relative image paths such as `cat/1.jpg` or `train/cat/1.jpg`."""
    parts = [PurePosixPath(name).parts for name in names]
    while parts and len({path[0] for path in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [path[1:] for path in parts]
    tops = {path[0] for path in parts if len(path) > 1}
    divided = tops <= set(PARTS) and {"train", "test"} <= tops
    keys: dict[tuple[str, str], list[Hashable]] = defaultdict(list)
    for name, path in zip(names, parts, strict=True):
        if divided and len(path) > 2:
            keys[PARTS[path[0]], unicodedata.normalize("NFC", path[1])].append(name)
        elif not divided and len(path) > 1:
            keys["", unicodedata.normalize("NFC", path[0])].append(name)
    if not keys:
        raise DataError(f"{root}: no images found; it needs one sub-folder of images per class")
    part_of: dict[str, str] = {}
    for part, name in keys:
        if part_of.setdefault(name, part) != part:
            raise DataError(f"{root}: class {name!r} is in both {part_of[name]} and {part}")
    return [Listing(name, part, keys[part, name]) for part, name in sorted(keys)]


SOURCE = Source(
    name="folder",
    spec=SPEC,
    wanted="a folder or a zip with one sub-folder of images per class",
    find=find,
    open=open_data,
    explicit=True,
)
