"""A user's own images, in folders or a zip; what is wrong with them is said by name."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models_zoo.preprocess import to_pixels
from training.data import reading
from training.data.folder import SPEC
from training.data.sources import load_dataset
from training.data.splits import split_classes
from training.data.store import DataError


def load(root: Path):
    return load_dataset("folder", root, cache=root.parent / "cache")


@pytest.fixture
def make(tmp_path, pixels):
    """Write images (by relative path) into a folder or a zip -> its path."""

    def build(names, zipped=False, extra=()):
        members = dict(extra)
        for name in names:
            file = io.BytesIO()
            Image.fromarray(pixels(40, 30)).save(file, {"jpg": "jpeg"}.get(name[-3:], name[-3:]))
            members[name] = file.getvalue()
        if zipped:
            path = tmp_path / "own.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
            return path
        for name, data in members.items():
            (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name).write_bytes(data)
        return tmp_path / "own"

    return build


@pytest.mark.parametrize("zipped", [False, True])
def test_one_sub_folder_per_class(make, zipped):
    names = ["cat/1.png", "cat/2.jpg", "dog/a.bmp", "dog/more/b.gif", "été/c.png"]
    litter = {
        "README.txt": b"x",
        "cat/notes.md": b"x",
        "__MACOSX/cat/._1.png": b"x",
        "cat/.hidden.png": b"x",
        ".git/a.png": b"x",
        "cat/Thumbs.db": b"x",
    }
    root = make(names, zipped, litter.items())
    store = load(root)
    assert store.classes == ("cat", "dog", "été")
    assert np.diff(store.offsets).tolist() == [2, 2, 1]
    assert store.images.shape == (5, 3, 84, 84)
    if not zipped:
        expected = to_pixels(Image.open(root / "cat" / "1.png"), SPEC)
        np.testing.assert_array_equal(store.images[0], expected)


@pytest.mark.parametrize("zipped", [False, True])
def test_one_wrapping_folder_is_seen_through(make, zipped):
    store = load(make(["mine/cat/1.png", "mine/dog/1.png"], zipped))
    assert store.classes == ("cat", "dog")


def test_folders_divided_already(make):
    root = make(["train/a/1.png", "train/b/1.png", "valid/c/1.png", "test/d/1.png"])
    assert split_classes("folder", "files", load(root)) == {
        "train": ("a", "b"),
        "val": ("c",),
        "test": ("d",),
    }


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["a/1.png", "b/1.png"], "c"),
        (["mine/a/1.png", "mine/b/1.png"], "mine/c"),
        (["train/a/1.png", "test/b/1.png"], "train/c"),
        (["train/a/1.png", "test/b/1.png"], "val"),
    ],
)
def test_a_class_without_images_is_named(make, names, empty, zipped):
    for extra in (f"{empty}/notes.md", f"{empty}/.hidden.png"):
        root = make(names, zipped, [(extra, b"x")])
        if zipped:
            with zipfile.ZipFile(root, "a") as archive:
                archive.mkdir(empty)
        with pytest.raises(DataError, match=rf"own.*no images in the class folder {empty};"):
            load(root)


def test_a_class_without_images_is_named_once_packed_too(make):
    root = make(["a/1.png", "b/1.png"])
    load(root)
    (root / "c").mkdir()
    with pytest.raises(DataError, match="class folder c;"):
        load(root)


@pytest.mark.parametrize("zipped", [False, True])
def test_only_folders_of_classes_need_images(make, zipped):
    extra = [(f"{folder}/notes.md", b"x") for folder in ("a/deeper", "__MACOSX/c", ".git/c")]
    assert load(make(["a/1.png", "b/more/1.png"], zipped, extra)).classes == ("a", "b")


def test_a_class_cannot_train_and_test(make):
    with pytest.raises(DataError, match="class 'a' is in both test and train"):
        load(make(["train/a/1.png", "test/a/2.png"]))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_broken_image_is_named(make, zipped):
    root = make(["a/1.png", "b/1.png"], zipped, [("b/broken.png", b"not an image")])
    line = r"own.*b/broken\.png: not a readable image; mend or remove it$"
    with pytest.raises(DataError, match=line):
        load(root)


def test_a_truncated_image_is_named(make, tmp_path):
    root = make(["a/1.jpg", "b/1.jpg"])
    (root / "a" / "1.jpg").write_bytes((root / "a" / "1.jpg").read_bytes()[:-400])
    with pytest.raises(DataError, match=r"a/1\.jpg: not a readable image"):
        load(root)


def test_a_new_image_is_noticed(make):
    load(make(["a/1.png", "b/1.png"]))
    assert len(load(make(["b/2.png"])).images) == 3


@pytest.mark.parametrize(
    "name", ["../a/1.png", "/a/1.png", "a/../../1.png", "..\\a\\1.png", "C:\\a\\1.png"]
)
def test_a_zip_cannot_reach_outside(make, name, tmp_path):
    root = make(["b/1.png"], True, [(name, b"x")])
    with pytest.raises(DataError, match="outside the archive"):
        load(root)
    assert not (tmp_path / "a").exists()


def test_windows_separators_are_understood(make):
    store = load(make(["a\\1.png", "b\\1.png"], zipped=True))
    assert store.classes == ("a", "b")


def test_oversized_images_are_refused(make, monkeypatch):
    monkeypatch.setattr(reading, "MAX_IMAGE_BYTES", 1 << 20)
    bomb = make(["b/1.png"], True, [("a/1.png", bytes((1 << 20) + 1))])
    with pytest.raises(DataError, match=r"a/1\.png: larger than 1 MiB"):
        load(bomb)
    monkeypatch.setattr(reading, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="30x40 is more than"):
        load(make(["a/1.png", "b/1.png"]))


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_images_too_long_are_refused(make, png, size):
    long = png(np.zeros(size, np.uint8))
    with pytest.raises(DataError, match=r"a/1\.png: \d+x\d+ is more than 16384 pixels on a side"):
        load(make(["b/1.png"], extra=[("a/1.png", long)]))
    longest = png(np.zeros((16_384, 1), np.uint8))
    assert load(make(["b/1.png"], extra=[("a/1.png", longest)])).classes == ("a", "b")


def test_an_encrypted_zip_is_refused(make):
    root = make(["a/1.png"], zipped=True)
    data = bytearray(root.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    root.write_bytes(data)
    with pytest.raises(DataError, match=r"a/1\.png: cannot be read .*encrypted"):
        load(root)


def test_a_zip_that_cannot_be_listed_is_named(make):
    """A name that is not UTF-8 although its flag says so; a version of the format yet to come."""
    whole = make(["é/1.png"], zipped=True).read_bytes()
    entry = whole.index(b"PK\x01\x02")
    later = bytearray(whole)
    later[entry + 6] = 99
    for damaged in (whole.replace("é".encode(), b"\xe9\xe9"), bytes(later)):
        root = make(["é/1.png"], zipped=True)
        root.write_bytes(damaged)
        with pytest.raises(DataError, match=r"own\.zip: not a readable zip"):
            load(root)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_are_followed_once(make, tmp_path):
    root = make(["a/1.png", "a/2.png"])
    (tmp_path / "far").mkdir()
    (root / "a" / "1.png").rename(tmp_path / "far" / "1.png")
    (root / "b").symlink_to(tmp_path / "far")
    (root / "a" / "loop").symlink_to(root)
    store = load(root)
    assert store.classes == ("a", "b")
    assert len(store.images) == 2


def test_no_images_and_no_place(tmp_path):
    (tmp_path / "own").mkdir()
    with pytest.raises(DataError, match="one sub-folder of images per class"):
        load(tmp_path / "own")
    with pytest.raises(DataError, match=r"nowhere: not a folder or a zip .*; name one by --data"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="say where the data are by --data: a folder or a zip"):
        load_dataset("folder")
