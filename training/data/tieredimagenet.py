"""tieredImageNet: 608 ImageNet classes of 34 categories (Ren et al., 2018).

Read from its usual pickles: `{train,val,test}_images_png.pkl`, lists of PNG files, and
`{train,val,test}_labels.pkl`. A class's group is `part/category`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models_zoo.cards import InputSpec
from training.data import restricted_pickle
from training.data.reading import Listing, Reader, Source, decode, first_with
from training.data.store import DataError

PARTS = ("train", "val", "test")
FILES = [f"{part}_{kind}.pkl" for kind in ("images_png", "labels") for part in PARTS]
SPEC = InputSpec(channels=3, height=84, width=84, fit="stretch", invert=False)


def find(root: Path) -> tuple[Path, ...] | None:
    """The three pickles of images, then the three of labels."""
    names = ("tieredimagenet", "tiered-imagenet", "tieredImageNet", "")
    return first_with([root / name for name in names], FILES)


@contextmanager
def open_files(files: tuple[Path, ...]) -> Iterator[Reader]:
    """Opens the pickles; one part's images are in memory at a time. Raises `DataError`."""
    listings: list[Listing] = []
    for which, part in enumerate(PARTS):
        listings += _listings(files[3 + which], part, which)
    loaded: dict[int, Any] = {}

    def image(key: Hashable) -> Image.Image:
        assert isinstance(key, tuple)
        which, row = key
        if which not in loaded:
            loaded.clear()
            loaded[which] = restricted_pickle.load(files[which])
        where = f"{files[which]}: image {row}"
        try:
            png = loaded[which][row]
        except (IndexError, KeyError, TypeError):
            raise DataError(f"{where}: the labels list it, but it is not there") from None
        data = png if isinstance(png, bytes) else np.asarray(png, dtype=np.uint8).tobytes()
        return decode(data, where)

    yield Reader(listings, image)


def _listings(path: Path, part: str, which: int) -> list[Listing]:
    """The classes of one part, in the order of their labels."""
    content = restricted_pickle.load(path)
    try:
        names, categories = content["label_specific_str"], content["label_general_str"]
        rows: dict[int, list[Hashable]] = defaultdict(list)
        category: dict[int, str] = {}
        pairs = zip(content["label_specific"], content["label_general"], strict=True)
        for row, (label, general) in enumerate(pairs):
            rows[int(label)].append((which, row))
            category[int(label)] = str(categories[int(general)])
        seen = Counter(str(names[label]) for label in rows)
        return [
            Listing(
                f"{names[label]} #{label}" if seen[str(names[label])] > 1 else str(names[label]),
                f"{part}/{category[label]}",
                rows[label],
            )
            for label in sorted(rows)
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not tieredImageNet's labels ({error!r})") from None


SOURCE = Source(
    name="tieredimagenet",
    spec=SPEC,
    wanted="tieredimagenet/ with {train,val,test}_images_png.pkl and {train,val,test}_labels.pkl",
    find=find,
    open=open_files,
)
