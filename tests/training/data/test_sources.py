"""Where data are looked for, what is kept, and what a user reads when something is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from models_zoo.cards import InputSpec
from training.data.packing import cache_folder
from training.data.sources import load_dataset
from training.data.store import DataError


@pytest.fixture
def omniglot_zips(tmp_path: Path, pixels, png) -> Path:
    """Two tiny archives of the official names in `tmp_path/source`."""
    folder = tmp_path / "source"
    folder.mkdir()
    for which in ("background", "evaluation"):
        with zipfile.ZipFile(folder / f"images_{which}.zip", "w") as archive:
            for character in (1, 2):
                name = f"images_{which}/{which}/character{character:02d}/0001_01.png"
                archive.writestr(name, png(pixels(105, 105, 1)))
    return folder


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Neither this machine's data nor its cache."""
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))


def packs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "packed").iterdir())


@pytest.mark.parametrize("place", ["data", "data/omniglot", "../shared/data/omniglot"])
def test_default_places_are_searched(place, omniglot_zips):
    shutil.copytree(omniglot_zips, Path(place))
    assert len(load_dataset("omniglot").classes) == 4


def test_the_environment_names_the_place(omniglot_zips, monkeypatch):
    monkeypatch.setenv("FEWSHOT_DATA", str(omniglot_zips))
    assert len(load_dataset("omniglot").classes) == 4
    with pytest.raises(DataError):
        load_dataset("omniglot", root=Path("elsewhere"))  # an argument goes first


def test_missing_data_say_where_and_what():
    with pytest.raises(DataError) as caught:
        load_dataset("omniglot")
    message = str(caught.value)
    assert str(Path("data").absolute()) in message
    assert "images_background.zip" in message
    assert "by --data or FEWSHOT_DATA, or let --download fetch it" in message
    assert "\n" not in message
    with pytest.raises(DataError) as caught:
        load_dataset("miniimagenet", root=Path("elsewhere"))
    assert str(caught.value).endswith("name their folder by --data (not free to download)")


def test_an_unknown_data_set_names_the_known_ones():
    with pytest.raises(DataError, match="omniglot, cifar100, miniimagenet, tieredimagenet, folder"):
        load_dataset("imagenet")


def test_a_pack_is_reused(omniglot_zips, tmp_path, monkeypatch):
    first = load_dataset("omniglot", omniglot_zips)

    def fail(*_):
        raise AssertionError("packed again")

    monkeypatch.setattr("training.data.sources.pack", fail)
    np.testing.assert_array_equal(load_dataset("omniglot", omniglot_zips).images, first.images)
    assert not first.images.flags.writeable


def test_a_changed_archive_is_packed_again(omniglot_zips, tmp_path, pixels, png):
    load_dataset("omniglot", omniglot_zips)
    path = omniglot_zips / "images_evaluation.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images_evaluation/new/character01/1.png", png(pixels(105, 105, 1)))
    assert len(load_dataset("omniglot", omniglot_zips).classes) == 5
    before = packs(tmp_path)
    assert len(before) == 1, "the outdated pack is gone"
    os.utime(path, ns=(1, 1))  # same size, another time
    load_dataset("omniglot", omniglot_zips)
    (after,) = packs(tmp_path)
    assert after != before[0]


def test_each_spec_has_its_own_pack(omniglot_zips, tmp_path):
    small = InputSpec(channels=3, height=16, width=20, fit="stretch", invert=False)
    assert load_dataset("omniglot", omniglot_zips).images.shape == (4, 1, 28, 28)
    assert load_dataset("omniglot", omniglot_zips, small).images.shape == (4, 3, 16, 20)
    assert load_dataset("omniglot", omniglot_zips).images.shape == (4, 1, 28, 28)
    assert len(packs(tmp_path)) == 2


def test_a_damaged_pack_is_made_again(omniglot_zips, tmp_path):
    images = np.array(load_dataset("omniglot", omniglot_zips).images)
    (pack,) = (tmp_path / "cache" / "packed").iterdir()
    (pack / "images.npy").write_bytes(b"")
    np.testing.assert_array_equal(load_dataset("omniglot", omniglot_zips).images, images)


def test_an_unwritable_cache_says_so(omniglot_zips, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="FEWSHOT_CACHE"):
        load_dataset("omniglot", omniglot_zips, cache=tmp_path / "file")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"HOME": "/home/a"}, "/home/a/.cache/fewshot"),
        ("linux", {"HOME": "/home/a", "XDG_CACHE_HOME": "/big"}, "/big/fewshot"),
        ("darwin", {"HOME": "/Users/a"}, "/Users/a/Library/Caches/fewshot"),
        ("win32", {"LOCALAPPDATA": "/L"}, "/L/fewshot/Cache"),
        ("win32", {"LOCALAPPDATA": "/L", "FEWSHOT_CACHE": "/mine"}, "/mine"),
    ],
)
def test_the_cache_follows_the_platform(platform, environment, expected):
    assert cache_folder(environment, platform) == Path(expected)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def served(monkeypatch):
    """Serve a folder from this machine -> its address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(folder: Path) -> str:
        handler = partial(QuietHandler, directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_omniglot_is_downloaded_whole_or_not_at_all(omniglot_zips, tmp_path, monkeypatch, served):
    datasets = pytest.importorskip("torchvision.datasets")
    sums = {path.stem: md5(path) for path in omniglot_zips.iterdir()}
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", served(omniglot_zips))
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums | {"images_evaluation": "0" * 32})
    root = tmp_path / "downloaded"
    with pytest.raises(DataError, match="the download failed"):
        load_dataset("omniglot", root, download=True)
    assert not (root / "omniglot" / "images_evaluation.zip").exists()
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    assert len(load_dataset("omniglot", root, download=True).classes) == 4
    assert not list(root.rglob("*.part"))


def test_cifar_download_asks_for_the_official_archive(tmp_path, monkeypatch, served):
    datasets = pytest.importorskip("torchvision.datasets")
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.write_bytes(b"stands for the archive")
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{served(tmp_path)}/{archive.name}")
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", md5(archive))
    with pytest.raises(DataError, match="not a readable archive"):  # found, and opened
        load_dataset("cifar100", tmp_path / "root", download=True)
    assert (tmp_path / "root" / "cifar100" / archive.name).read_bytes() == archive.read_bytes()
