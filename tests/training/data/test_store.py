"""Packed stores: what goes in comes out, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.store import DataError, PackedStore


def images(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 5, 4), dtype=np.uint8)


CLASSES = [("cat", "pets", images(3, 0)), ("ant", "", images(1, 1)), ("dog", "pets", images(5, 2))]


def of(store: PackedStore, name: str) -> NDArray[np.uint8]:
    i = store.classes.index(name)
    return np.asarray(store.images[store.offsets[i] : store.offsets[i + 1]])


def check(store: PackedStore, names: list[str]) -> None:
    assert list(store.classes) == names
    for name, group, pixels in CLASSES:
        if name in names:
            assert store.groups[names.index(name)] == group
            assert np.array_equal(of(store, name), pixels)


def save(store: PackedStore, folder: Path) -> Path:
    """A store's two files, as `training.data.packing` writes them."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", store.images)
    counts = np.diff(store.offsets).tolist()
    index = {"classes": store.classes, "groups": store.groups, "counts": counts}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_classes_keep_their_images_through_packing_saving_and_loading(tmp_path: Path) -> None:
    store = PackedStore.pack(CLASSES)
    check(store, ["cat", "ant", "dog"])
    loaded = PackedStore.load(save(store, tmp_path / "store"))
    check(loaded, ["cat", "ant", "dog"])
    assert isinstance(loaded.images, np.memmap)
    assert loaded.images.dtype == np.uint8


def test_a_selection_is_in_the_order_asked_for() -> None:
    check(PackedStore.pack(CLASSES).select(["dog", "cat"]), ["dog", "cat"])


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(DataError, match="'cow'"):
        PackedStore.pack(CLASSES).select(["cat", "cow"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "no classes"),
        ([("cat", "", images(0, 0))], "'cat' has no images"),
        ([("cat", "", images(1, 0)), ("cat", "x", images(1, 1))], "share one name"),
    ],
)
def test_what_is_no_data_set_is_refused(
    classes: list[tuple[str, str, NDArray[np.uint8]]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        PackedStore.pack(classes)


@pytest.mark.parametrize("damage", ["no index", "no images", "bad json", "cut", "counts", "empty"])
def test_a_damaged_store_is_told(tmp_path: Path, damage: str) -> None:
    folder = save(PackedStore.pack(CLASSES), tmp_path / "store")
    index, pixels = folder / "index.json", folder / "images.npy"
    if damage == "no index":
        index.unlink()
    elif damage == "no images":
        pixels.unlink()
    elif damage == "bad json":
        index.write_text("{")
    elif damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "empty":
        pixels.write_bytes(b"")
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "counts": [3, 1, 4]}))
    with pytest.raises(DataError, match="not a packed store"):
        PackedStore.load(folder)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = save(PackedStore.pack(CLASSES), tmp_path / "store")
    np.save(folder / "images.npy", np.array([{"code": 1}] * 9, dtype=object))
    with pytest.raises(DataError, match="not a packed store"):
        PackedStore.load(folder)
