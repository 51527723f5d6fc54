"""miniImageNet: 100 ImageNet classes, 600 colour images each (Vinyals et al., 2016).

Three usual forms are read: `train.csv`, `val.csv`, `test.csv` (filename, label) beside an `images`
folder; `mini-imagenet-cache-{train,val,test}.pkl`; and `miniImageNet_category_split_*.pickle`.
The part a class comes from is its group, since miniImageNet has no super-classes.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from models_zoo.cards import InputSpec
from training.data import restricted_pickle
from training.data.reading import Listing, Reader, Source, first_with, read_image
from training.data.store import DataError

PARTS = ("train", "val", "test")
CSV = [f"{part}.csv" for part in PARTS]
CACHES = [f"mini-imagenet-cache-{part}.pkl" for part in PARTS]
CATEGORY_SPLITS = [
    f"miniImageNet_category_split_{part}.pickle" for part in ("train_phase_train", "val", "test")
]
SPEC = InputSpec(channels=3, height=84, width=84, fit="stretch", invert=False)


def find(root: Path) -> tuple[Path, ...] | None:
    """The three pickles, or the three tables and their images folder."""
    folders = [root / name for name in ("miniimagenet", "mini-imagenet", "miniImageNet", "")]
    if pickles := first_with(folders, CACHES) or first_with(folders, CATEGORY_SPLITS):
        return pickles
    folders = [folder for folder in folders if (folder / "images").is_dir()]
    tables = first_with(folders, CSV)
    return (*tables, tables[0].parent / "images") if tables else None


@contextmanager
def open_files(files: tuple[Path, ...]) -> Iterator[Reader]:
    """Opens any of the three forms. Raises `DataError`."""
    yield _from_tables(files[:3], files[3]) if len(files) == 4 else _from_pickles(files)


def _from_tables(tables: tuple[Path, ...], images: Path) -> Reader:
    listings: list[Listing] = []
    for part, table in zip(PARTS, tables, strict=True):
        files: dict[str, list[Path]] = defaultdict(list)
        for filename, label in _rows(table):
            path = images / filename
            files[label].append(path if path.is_file() else images / label / filename)
        listings += (Listing(label, part, files[label]) for label in sorted(files))

    def image(key: Hashable) -> Image.Image:
        assert isinstance(key, Path)
        return read_image(key)

    return Reader(listings, image)


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """The (filename, label) rows of a table."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                filename, label = row.get("filename"), row.get("label")
                if not filename or not label:
                    raise DataError(f"{table}: every row needs a filename and a label")
                for name in (filename, label):
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        raise DataError(f"{table}: {name!r} is outside the images folder")
                yield filename, label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable table ({error})") from None


def _from_pickles(files: tuple[Path, ...]) -> Reader:
    listings: list[Listing] = []
    arrays: list[Any] = []
    for which, (part, path) in enumerate(zip(PARTS, files, strict=True)):
        content = restricted_pickle.load(path)
        try:
            pixels = content["image_data" if "image_data" in content else "data"]
            rows = _rows_by_class(content)
            if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] != 3:
                raise ValueError("images are not uint8 [n, H, W, 3]")
            if any(not 0 <= row < len(pixels) for of in rows.values() for row in of):
                raise ValueError("a class lists an image that is not there")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: not a miniImageNet cache ({error})") from None
        arrays.append(pixels)
        listings += (
            Listing(name, part, [(which, row) for row in rows[name]]) for name in sorted(rows)
        )

    def image(key: Hashable) -> Image.Image:
        assert isinstance(key, tuple)
        which, row = key
        return Image.fromarray(np.ascontiguousarray(arrays[which][row]))

    return Reader(listings, image)


def _rows_by_class(content: Mapping[str, Any]) -> dict[str, list[int]]:
    """Class name -> image rows, from `class_dict` or from `labels` and `catname2label`."""
    if "class_dict" in content:
        return {str(name): [int(row) for row in of] for name, of in content["class_dict"].items()}
    names = {int(label): str(name) for name, label in content.get("catname2label", {}).items()}
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(content["labels"]):
        rows[names.get(int(label), f"class{int(label):03d}")].append(row)
    return rows


SOURCE = Source(
    name="miniimagenet",
    spec=SPEC,
    wanted=(
        "miniimagenet/ with train.csv, val.csv, test.csv and images/, or with "
        "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl"
    ),
    find=find,
    open=open_files,
)
