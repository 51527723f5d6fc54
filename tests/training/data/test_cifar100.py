"""CIFAR-100 is read losslessly, from either of its forms, with its super-classes."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import cifar100
from training.data.packing import pack
from training.data.reading import Reader, read_tar_member
from training.data.sources import load_dataset
from training.data.store import DataError, PackedStore


def test_twenty_superclasses_of_five():
    parents = cifar100.superclasses()
    assert len(parents) == 100
    assert set(Counter(parents.values()).values()) == {5}
    assert parents["maple_tree"] == "trees"
    assert parents["lawn_mower"] == "vehicles_2"
    assert parents["crab"] == "non-insect_invertebrates"


def test_train_and_test_images_are_merged(cifar_root):
    with cifar100.open_archives(cifar100.find(cifar_root)) as reader:
        listings = reader.listings
    assert [listing.name for listing in listings] == sorted(cifar100.superclasses())
    assert {len(listing.keys) for listing in listings} == {600}
    parents = cifar100.superclasses()
    assert all(listing.group == parents[listing.name] for listing in listings)


def test_packing_is_lossless(cifar_root, tmp_path):
    files = cifar100.find(cifar_root)
    with cifar100.open_archives(files) as reader:
        if len(files) != 2:
            pytest.skip("needs the two zips")
        pack(Reader(reader.listings[41:42], reader.image), cifar100.SPEC, tmp_path / "p", "cifar")
    store = PackedStore.load(tmp_path / "p")
    expected = []
    for path in files:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if f"/{store.classes[0]}/" in n)
            expected += [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    assert len(expected) == 600
    np.testing.assert_array_equal(store.images.transpose(0, 2, 3, 1), expected)


@pytest.fixture
def both_forms(tmp_path: Path, pixels, png) -> tuple[Path, Path]:
    """The same few images as zips and as the official archive."""
    zips, official = tmp_path / "zips", tmp_path / "official"
    zips.mkdir()
    official.mkdir()
    names = ["apple", "bowl", "worm"]
    pickles = {"meta": {"fine_label_names": names, "coarse_label_names": ["x"]}}
    for part in ("train", "test"):
        labels = [2, 0, 1, 0, 2, 2]
        images = [pixels() for _ in labels]
        files = [f"{names[label]}_s_{9 - i:06d}.png" for i, label in enumerate(labels)]
        with zipfile.ZipFile(zips / f"{part}.zip", "w") as archive:
            for label, image, file in zip(labels, images, files, strict=True):
                archive.writestr(f"{part}/{names[label]}/{file}", png(image))
        flat = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in images])
        pickles[part] = {"data": flat, "fine_labels": labels, "filenames": files}
    with tarfile.open(official / "cifar-100-python.tar.gz", "w:gz") as archive:
        for name, content in pickles.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return zips, official


def test_both_forms_give_the_same_store(both_forms, tmp_path):
    stores = [load_dataset("cifar100", form, cache=tmp_path / "cache") for form in both_forms]
    assert stores[0].classes == stores[1].classes == ("apple", "bowl", "worm")
    assert stores[0].groups == stores[1].groups
    assert np.diff(stores[0].offsets).tolist() == [4, 2, 6]
    np.testing.assert_array_equal(stores[0].images, stores[1].images)


def test_other_classes_are_refused(tmp_path, pixels, png):
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/unicorn/1.png", png(pixels()))
    with pytest.raises(DataError, match=r"not CIFAR-100's classes \(unicorn\)"):
        load_dataset("cifar100", tmp_path, cache=tmp_path / "cache")


def test_an_archive_without_its_pickles_is_named(tmp_path):
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz: no cifar-100-python/meta"):
        load_dataset("cifar100", tmp_path, cache=tmp_path / "cache")


def test_a_tar_that_is_damaged_inside_is_told_as_such(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo("train")
        member.size = 500_000  # more than is read ahead, which `tarfile` would tell of itself
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(500_000)))
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(plain.getvalue()[:400_000]) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "x.tar.gz").write_bytes(packed + b"\x07 is no block of any kind")
    with pytest.raises(DataError, match="not a readable archive"):
        read_tar_member(tmp_path / "x.tar.gz", "train", 1 << 20)
