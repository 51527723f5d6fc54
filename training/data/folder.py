"""Anyone's own data: a folder or zip with one sub-folder of images per class.

Folders named train, val and test on top divide the classes themselves; the part is then the group.
Otherwise the group is "" and a split names percentages (`training.data.splits`). Files that are not
images, hidden files and a single folder wrapped around everything are passed over; a class's folder
without images is not.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence, Set
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
    """The zip, or the folder and every image in it. Raises `DataError` where a class has none.

    Here and not when the folder is opened: what was packed before is not opened again.
    """
    if root.is_file():
        return (root,)
    if not root.is_dir():
        return None
    images, folders = _contents(root)
    _check_filled(root, [path.relative_to(root).as_posix() for path in images], folders)
    return (root, *images)


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
        seen = [name for name in sorted(members) if not hidden(name)]
        wanted = [name for name in seen if _is_image(name)]
        folders = {PurePosixPath(name) for name in seen if name.endswith("/")}
        folders |= {parent for name in seen for parent in PurePosixPath(name).parents}
        _check_filled(root, wanted, folders)
        yield Reader(_listings(root, wanted), image)


def _contents(root: Path) -> tuple[list[Path], set[PurePosixPath]]:
    """Every image below `root`, sorted, and the folders, relative to it; linked folders are
    followed once."""
    found: list[Path] = []
    below: set[PurePosixPath] = set()
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        below.add(PurePosixPath(Path(folder).relative_to(root).as_posix()))
        folders[:] = sorted(name for name in folders if not hidden(name))
        found += (Path(folder, name) for name in names if _is_image(name) and not hidden(name))
    return sorted(found), below


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _layout(names: Sequence[str]) -> tuple[int, bool]:
    """How many folders are wrapped around all images, and whether those inside are parts."""
    parts = [PurePosixPath(name).parts for name in names]
    wraps = 0
    while parts and len({path[0] for path in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [path[1:] for path in parts]
        wraps += 1
    tops = {path[0] for path in parts if len(path) > 1}
    return wraps, tops <= set(PARTS) and {"train", "test"} <= tops


def _check_filled(root: Path, names: Sequence[str], folders: Set[PurePosixPath]) -> None:
    """Raises `DataError` where one of the `folders`, no deeper than a class, has no images.

    Else its class would be missing from the training without a word.
    """
    wraps, divided = _layout(names)
    filled = {parent for name in names for parent in PurePosixPath(name).parents}
    empty = [path for path in folders - filled if len(path.parts) <= wraps + 1 + divided]
    if names and empty:
        raise DataError(
            f"{root}: no images in the class folder {min(empty)}; fill it or take it away"
        )


def _listings(root: Path, names: Sequence[str]) -> list[Listing]:
    """Classes from relative image paths such as `cat/1.jpg` or `train/cat/1.jpg`."""
    wraps, divided = _layout(names)
    parts = [PurePosixPath(name).parts[wraps:] for name in names]
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
