"""CIFAR-100: 100 classes of 20 super-classes, 600 colour images 32x32 each (Krizhevsky, 2009).

Read from `train.zip` and `test.zip` (`train/<class>/*.png`) or from the official
`cifar-100-python.tar.gz`; both give the same images in the same order: the 500 training images
sorted by file name, then the 100 test images. Classes are sorted by name.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from models_zoo.cards import InputSpec
from training.data.reading import (
    Listing,
    Reader,
    Source,
    decode,
    fetch,
    first_with,
    hidden,
    opened_zip,
    read_member,
    read_tar_member,
)
from training.data.restricted_pickle import loads
from training.data.store import DataError

PARTS = ("train", "test")
TAR = "cifar-100-python.tar.gz"
SPEC = InputSpec(channels=3, height=32, width=32, fit="stretch", invert=False)
MAX_PICKLE_BYTES = 1 << 30


def superclasses() -> dict[str, str]:
    """Class -> super-class, all 100."""
    path = Path(__file__).parent / "class_lists" / "cifar100_superclasses.json"
    parents: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return {name: parent for parent, names in parents.items() for name in names}


def find(root: Path) -> tuple[Path, ...] | None:
    """The two zips, or the official archive."""
    folders = (root / "cifar100", root / "cifar-100", root)
    return first_with(folders, [f"{part}.zip" for part in PARTS]) or first_with(folders, [TAR])


@contextmanager
def open_archives(files: tuple[Path, ...]) -> Iterator[Reader]:
    """Opens either form. Raises `DataError`."""
    if len(files) == 1:
        yield _from_tar(files[0])
        return
    with ExitStack() as stack:
        archives = [stack.enter_context(opened_zip(path)) for path in files]
        keys: dict[str, list[Hashable]] = defaultdict(list)
        for which, archive in enumerate(archives):
            for name in sorted(archive.namelist()):
                parts = PurePosixPath(name).parts
                if len(parts) == 3 and parts[2].endswith(".png") and not hidden(name):
                    keys[parts[1]].append((which, name))

        def image(key: Hashable) -> Image.Image:
            assert isinstance(key, tuple)
            which, name = key
            return decode(read_member(archives[which], name), f"{files[which]}: {name}")

        yield Reader(_listings(keys, files[0]), image)


def _from_tar(path: Path) -> Reader:
    """The official archive: three pickles of arrays and lists, read without running any code."""
    content = {
        name: loads(
            read_tar_member(path, f"cifar-100-python/{name}", MAX_PICKLE_BYTES), f"{path}: {name}"
        )
        for name in ("meta", *PARTS)
    }
    try:
        names: list[str] = content["meta"]["fine_label_names"]
        rows: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        pixels: list[Any] = []
        for which, part in enumerate(PARTS):
            facts = content[part]
            pixels.append(np.asarray(facts["data"]).reshape(-1, 3, 32, 32))
            for row, label in enumerate(facts["fine_labels"]):
                rows[names[label]].append((facts["filenames"][row], which, row))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not CIFAR-100's content ({error!r})") from None
    keys: dict[str, list[Hashable]] = {
        name: [(which, row) for _, which, row in sorted(found, key=lambda r: (r[1], r[0]))]
        for name, found in rows.items()
    }

    def image(key: Hashable) -> Image.Image:
        assert isinstance(key, tuple)
        which, row = key
        return Image.fromarray(np.ascontiguousarray(pixels[which][row].transpose(1, 2, 0)))

    return Reader(_listings(keys, path), image)


def _listings(keys: dict[str, list[Hashable]], path: Path) -> list[Listing]:
    parents = superclasses()
    unknown = sorted(set(keys) - set(parents))
    if unknown or not keys:
        raise DataError(f"{path}: not CIFAR-100's classes ({', '.join(unknown[:3]) or 'none'})")
    return [Listing(name, parents[name], keys[name]) for name in sorted(keys)]


def download(root: Path) -> None:
    """The official archive, from where torchvision has it."""
    from torchvision.datasets import CIFAR100

    fetch(CIFAR100.url, root / "cifar100", TAR, CIFAR100.tgz_md5)


SOURCE = Source(
    name="cifar100",
    spec=SPEC,
    wanted=f"cifar100/train.zip and cifar100/test.zip, or cifar100/{TAR}",
    find=find,
    open=open_archives,
    download=download,
)
