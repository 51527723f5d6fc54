"""One packed uint8 tensor per data set, cached on disk, memory-mapped when read.

A store is a folder: `images.npy` uint8 `[n, C, H, W]`, sorted by class, and `index.json` with the
class names, their groups (alphabet, super-class) and the number of images of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class DataError(Exception):
    """A data set that is missing or malformed. The message says which file and what to do."""


@dataclass(frozen=True)
class PackedStore:
    """Images `[n, C, H, W]` uint8 in class order; class c owns rows offsets[c]..offsets[c + 1]."""

    images: NDArray[np.uint8]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    offsets: NDArray[np.int64]

    @classmethod
    def pack(cls, classes: Iterable[tuple[str, str, NDArray[np.uint8]]]) -> PackedStore:
        """From (class name, group, images `[m, C, H, W]`) triples. Raises `DataError`."""
        names, groups, arrays = [], [], []
        for name, group, images in classes:
            if len(images) == 0:
                raise DataError(f"class {name!r} has no images")
            names.append(name)
            groups.append(group)
            arrays.append(images)
        if not arrays:
            raise DataError("no classes found")
        if len(set(names)) != len(names):
            raise DataError("two classes share one name")
        offsets = np.concatenate([[0], np.cumsum([len(images) for images in arrays])])
        return cls(np.concatenate(arrays), tuple(names), tuple(groups), offsets.astype(np.int64))

    def select(self, names: Iterable[str]) -> PackedStore:
        """The store of these classes alone, in this order. Raises `DataError` on an unknown one."""
        where = {name: i for i, name in enumerate(self.classes)}
        try:
            picked = [where[name] for name in names]
        except KeyError as error:
            raise DataError(f"class {error.args[0]!r} is not in this data set") from None
        return PackedStore.pack(
            (
                self.classes[i],
                self.groups[i],
                self.images[self.offsets[i] : self.offsets[i + 1]],
            )
            for i in picked
        )

    @classmethod
    def load(cls, folder: Path) -> PackedStore:
        """Raises `DataError` when the folder is not a store."""
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            offsets = np.concatenate([[0], np.cumsum(index["counts"])]).astype(np.int64)
            if offsets[-1] != len(images):
                raise ValueError("images and index disagree")
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: not a packed store ({error}); delete it and rerun"
            ) from None
        return cls(images, tuple(index["classes"]), tuple(index["groups"]), offsets)
