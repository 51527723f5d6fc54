"""From a recipe's data section to the three stores of a split."""

from __future__ import annotations

from pathlib import Path

from models_zoo.cards import InputSpec
from training.data.sources import load_dataset
from training.data.splits import split_classes
from training.data.store import PackedStore
from training.recipe import DataConfig


def load_splits(
    config: DataConfig, root: Path | None = None, download: bool = False
) -> dict[str, PackedStore]:
    """The "train", "val" and "test" stores, their classes disjoint. Raises `DataError`."""
    store = load_dataset(config.dataset, root or config.root, config.input, download=download)
    split = split_classes(config.dataset, config.split, store)
    return {part: store.select(classes) for part, classes in split.items()}


def load_test(
    dataset: str, split: str, spec: InputSpec, root: Path | None = None, download: bool = False
) -> PackedStore:
    """The test classes of a split, as `spec`'s pixels. Raises `DataError`."""
    store = load_dataset(dataset, root, spec, download=download)
    return store.select(split_classes(dataset, split, store)["test"])
