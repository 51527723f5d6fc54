"""From a recipe's data section to the three stores of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from models_zoo.cards import InputSpec
from training.data.sources import load_dataset
from training.data.splits import fingerprint, split_classes
from training.data.store import DataError, PackedStore
from training.recipe import DataConfig


def load_splits(
    config: DataConfig, root: Path | None = None, download: bool = False
) -> dict[str, PackedStore]:
    """The "train" and "val" stores, their classes disjoint unless `config.classes` says that both
    are trained on. Raises `DataError`."""
    store = load_dataset(config.dataset, root or config.root, config.input, download=download)
    split = split_classes(config.dataset, config.split, store)
    empty = [part for part in ("train", "val") if not split[part]]
    if empty:
        raise DataError(
            f"{config.dataset}, split {config.split}: no classes are left for {empty[0]!r} of "
            f"{len(store.classes)}; add classes or give this part a larger share"
        )
    known = split["train"] if config.classes == "train" else split["train"] + split["val"]
    return {"train": store.select(known), "val": store.select(split["val"])}


def load_test(
    dataset: str,
    split: str,
    spec: InputSpec,
    root: Path | None = None,
    download: bool = False,
    classes: Literal["test", "val"] = "test",
    seen: str | None = None,
) -> PackedStore:
    """The test (or validation) classes of a split, as `spec`'s pixels. Raises `DataError`, also
    where the others are not those whose `fingerprint` was `seen` in training."""
    store = load_dataset(dataset, root, spec, download=download)
    parts = split_classes(dataset, split, store)
    if seen not in (None, fingerprint(parts["train"] + parts["val"])):
        raise DataError(
            f"{dataset}, split {split}: the data have other classes than in the training, so that "
            "some of those tested on may be among those trained on; give the data of the training, "
            "or divide the folder yourself into train, val and test and train with split 'files'"
        )
    return store.select(parts[classes])
