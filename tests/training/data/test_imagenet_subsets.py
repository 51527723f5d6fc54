"""miniImageNet and tieredImageNet from the files people have, made small here."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models_zoo.cards import InputSpec
from models_zoo.preprocess import to_pixels
from training.data.sources import load_dataset
from training.data.splits import split_classes
from training.data.store import DataError

PARTS = ("train", "val", "test")


def load(name: str, root: Path, spec: InputSpec | None = None):
    return load_dataset(name, root, spec, cache=root / "cache")


@pytest.fixture
def tables(tmp_path, pixels) -> dict[str, list[np.ndarray]]:
    """train.csv, val.csv, test.csv and images/; two images of one class each."""
    (tmp_path / "images").mkdir()
    drawn = {}
    for number, part in enumerate(PARTS):
        label = f"n0{number}"
        drawn[label] = [pixels(100, 60), pixels(84, 84)]
        rows = ["filename,label"]
        for i, image in enumerate(drawn[label]):
            Image.fromarray(image).save(tmp_path / "images" / f"{label}{i}.png")
            rows.append(f"{label}{i}.png,{label}")
        (tmp_path / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return drawn


def test_tables_and_images(tables, tmp_path):
    store = load("miniimagenet", tmp_path)
    assert store.classes == ("n00", "n01", "n02")
    assert split_classes("miniimagenet", "files", store) == {
        "train": ("n00",),
        "val": ("n01",),
        "test": ("n02",),
    }
    spec = InputSpec(channels=3, height=84, width=84, fit="stretch", invert=False)
    expected = [to_pixels(Image.fromarray(image), spec) for of in tables.values() for image in of]
    np.testing.assert_array_equal(store.images, expected)


def test_images_may_lie_in_folders_by_label(tables, tmp_path):
    images = np.array(load("miniimagenet", tmp_path).images)
    for path in (tmp_path / "images").glob("*.png"):
        (tmp_path / "images" / path.stem[:3]).mkdir(exist_ok=True)
        path.rename(path.parent / path.stem[:3] / path.name)
    np.testing.assert_array_equal(load("miniimagenet", tmp_path).images, images)


def test_an_image_the_table_lists_is_missing(tables, tmp_path):
    (tmp_path / "images" / "n011.png").unlink()
    with pytest.raises(DataError, match=r"n011\.png: No such file"):
        load("miniimagenet", tmp_path)


def test_a_table_cannot_reach_outside(tables, tmp_path):
    for name in ("../secret.png", "/etc/secret.png"):
        (tmp_path / "val.csv").write_text(f"filename,label\n{name},n01\n")
        with pytest.raises(DataError, match=r"val\.csv: .*outside"):
            load("miniimagenet", tmp_path)


def test_a_table_without_columns_is_named(tables, tmp_path):
    (tmp_path / "test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"test\.csv: every row needs a filename and a label"):
        load("miniimagenet", tmp_path)


@pytest.mark.parametrize("form", ["class_dict", "labels"])
def test_both_pickle_forms(form, tmp_path, pixels):
    images = {part: np.stack([pixels(84, 84) for _ in range(4)]) for part in PARTS}
    for number, part in enumerate(PARTS):
        if form == "class_dict":
            file = f"mini-imagenet-cache-{part}.pkl"
            classes = {f"n{number}b": [0, 3], f"n{number}a": [2, 1]}
            content = {"image_data": images[part], "class_dict": classes}
        else:
            stem = "train_phase_train" if part == "train" else part
            file = f"miniImageNet_category_split_{stem}.pickle"
            names = {f"n{number}b": 2 * number, f"n{number}a": 2 * number + 1}
            labels = [2 * number, 2 * number + 1, 2 * number + 1, 2 * number]
            content = {"data": images[part], "labels": labels, "catname2label": names}
        (tmp_path / file).write_bytes(pickle.dumps(content, protocol=2))
    store = load("miniimagenet", tmp_path)
    assert store.classes == ("n0a", "n0b", "n1a", "n1b", "n2a", "n2b")
    assert split_classes("miniimagenet", "files", store)["val"] == ("n1a", "n1b")
    val_b = store.select(["n1b"]).images.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(val_b, images["val"][[0, 3]])


@pytest.mark.parametrize(
    "content",
    [
        {"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n0": [0, 2]}},
        {"image_data": np.zeros((2, 84, 84, 3), np.float32), "class_dict": {"n0": [0, 1]}},
        {"image_data": np.zeros((2, 84, 84, 3), np.uint8)},
        [1, 2, 3],
    ],
    ids=["row out of range", "not uint8", "no labels", "no dictionary"],
)
def test_a_cache_of_another_kind_is_named(content, tmp_path):
    for part in PARTS:
        (tmp_path / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"mini-imagenet-cache-train\.pkl: not a miniImageNet"):
        load("miniimagenet", tmp_path)


@pytest.fixture
def tiered(tmp_path, pixels, png) -> dict[str, list[np.ndarray]]:
    """Four images of two classes and two categories in each part; classes share one name."""
    drawn = {}
    for number, part in enumerate(PARTS):
        drawn[part] = [pixels(84, 84) for _ in range(4)]
        files = [np.frombuffer(png(image), np.uint8)[:, None] for image in drawn[part]]
        (tmp_path / f"{part}_images_png.pkl").write_bytes(pickle.dumps(files, protocol=2))
        labels = {
            "label_specific": np.array([1, 0, 1, 0]),
            "label_specific_str": ["crane", "crane"] if number == 1 else [f"a{part}", f"b{part}"],
            "label_general": np.array([0, 1, 0, 1]),
            "label_general_str": ["bird", "machine"],
        }
        (tmp_path / f"{part}_labels.pkl").write_bytes(pickle.dumps(labels, protocol=2))
    return drawn


def test_tiered_pickles(tiered, tmp_path):
    store = load("tieredimagenet", tmp_path)
    assert store.classes == ("atrain", "btrain", "crane #0", "crane #1", "atest", "btest")
    assert store.groups[:3] == ("train/machine", "train/bird", "val/machine")
    assert split_classes("tieredimagenet", "files", store)["val"] == ("crane #0", "crane #1")
    np.testing.assert_array_equal(
        store.select(["btest"]).images.transpose(0, 2, 3, 1), [tiered["test"][0], tiered["test"][2]]
    )


def test_tiered_with_fewer_images_than_labels(tiered, tmp_path):
    path = tmp_path / "val_images_png.pkl"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes())[:3]))
    with pytest.raises(DataError, match=r"val_images_png\.pkl: image 3: .*not there"):
        load("tieredimagenet", tmp_path)
