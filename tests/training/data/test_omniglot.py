"""Omniglot is read whole, in order, and as serving would see it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models_zoo.preprocess import to_pixels
from training.data import omniglot
from training.data.packing import pack
from training.data.reading import Reader
from training.data.sources import load_dataset
from training.data.store import DataError, PackedStore


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_every_character_and_drawing_is_listed(omniglot_root):
    files = omniglot.find(omniglot_root)
    with omniglot.open_archives(files) as reader:
        listings = reader.listings
    assert len(listings) == 1623
    assert {len(listing.keys) for listing in listings} == {20}
    assert len({listing.group for listing in listings}) == 50
    assert all(listing.name.startswith(f"{listing.group}/character") for listing in listings)
    background = {name.split("/")[1] for name in zipfile.ZipFile(files[0]).namelist()} - {""}
    assert [listing.group in background for listing in listings] == [True] * 964 + [False] * 659
    names = [listing.name for listing in listings]
    assert names[:964] == sorted(names[:964])
    assert names[964:] == sorted(names[964:])


def test_packed_pixels_are_those_of_serving(omniglot_root, tmp_path):
    files = omniglot.find(omniglot_root)
    with omniglot.open_archives(files) as reader:
        chosen = [reader.listings[i] for i in (0, 700, 963, 964, 1622)]
        pack(Reader(chosen, reader.image), omniglot.SPEC, tmp_path / "pack", "omniglot")
    store = PackedStore.load(tmp_path / "pack")
    assert store.images.shape == (100, 1, 28, 28)
    expected = []
    for listing in chosen:
        for path in files:
            with zipfile.ZipFile(path) as archive:
                drawings = sorted(n for n in archive.namelist() if f"/{listing.name}/" in n)
                expected += [
                    to_pixels(Image.open(io.BytesIO(archive.read(name))), omniglot.SPEC)
                    for name in drawings
                    if name.endswith(".png")
                ]
    np.testing.assert_array_equal(store.images, expected)
    assert store.images.mean() < 80, "strokes are bright on a dark ground"
    assert (store.images.reshape(100, -1).max(1) > 100).all(), "every drawing has a stroke"


def test_litter_in_an_archive_is_passed_over(tmp_path, pixels, png):
    drawing = png(pixels(105, 105, 1))
    for which in ("background", "evaluation"):
        write_archive(
            tmp_path / f"images_{which}.zip",
            {
                f"images_{which}/": b"",
                f"images_{which}/{which}/character01/0001_02.png": drawing,
                f"images_{which}/{which}/character01/0001_01.png": drawing,
                f"images_{which}/{which}/character01/.hidden.png": b"not an image",
                f"__MACOSX/{which}/character01/0001_01.png": b"not an image",
                f"images_{which}/README.txt": b"hello",
            },
        )
    store = load_dataset("omniglot", tmp_path, cache=tmp_path / "cache")
    assert store.classes == ("background/character01", "evaluation/character01")
    assert len(store.images) == 4


def test_a_damaged_archive_is_named(tmp_path, pixels, png):
    write_archive(tmp_path / "images_background.zip", {"b/A/c/1.png": b"junk"})
    write_archive(tmp_path / "images_evaluation.zip", {"e/E/c/1.png": png(pixels(105, 105, 1))})
    with pytest.raises(
        DataError, match=r"images_background\.zip: b/A/c/1\.png: not a readable image"
    ):
        load_dataset("omniglot", tmp_path, cache=tmp_path / "cache")
    (tmp_path / "images_evaluation.zip").write_bytes(b"half of a downlo")
    with pytest.raises(DataError, match=r"images_evaluation\.zip: not a readable zip"):
        load_dataset("omniglot", tmp_path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("packed/*")), "a failed packing leaves nothing"
