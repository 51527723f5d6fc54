"""The folder in which workers add up their metrics: there while they run, and never for longer."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from service.commands import shared_metrics as module
from service.commands.shared_metrics import hold_shared_metrics, shared_metrics
from service.metrics import MULTIPROCESS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_MEMORY", tmp_path)
    return tmp_path


def test_it_is_there_for_the_block_alone(place: Path) -> None:
    with shared_metrics():
        folder = Path(os.environ[MULTIPROCESS])
        assert folder.is_dir() and folder.parent == place
    assert not folder.exists() and MULTIPROCESS not in os.environ


def test_it_is_elsewhere_where_its_place_is_full(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROOM", 1 << 60)
    with shared_metrics():
        assert Path(os.environ[MULTIPROCESS]).parent == Path(tempfile.gettempdir())


def test_a_worker_holds_it_when_its_supervisor_is_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / "fewshot-metrics-orphans"
    folder.mkdir()
    monkeypatch.setenv(MULTIPROCESS, str(folder))
    held = hold_shared_metrics()
    with shared_metrics():
        assert folder.is_dir()
    os.close(held)
    with shared_metrics():
        assert not folder.exists()


def test_what_a_killed_supervisor_left_is_removed_and_nothing_else(place: Path) -> None:
    for name in ("fewshot-metrics-left", "fewshot-metrics-used", "other"):
        (place / name).mkdir()
        (place / name / "lock").write_bytes(b"1")
        (place / name / "counter_1.db").touch()
    for name in ("fewshot-metrics-new", "fewshot-metrics-newer"):  # just being made
        (place / name).mkdir()
    (place / "fewshot-metrics-newer" / "lock").touch()
    (place / "fewshot-metrics-link").symlink_to(place / "other")
    with (place / "fewshot-metrics-used" / "lock").open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        with shared_metrics():
            pass
    kept = {f"fewshot-metrics-{name}" for name in ("used", "new", "newer", "link")} | {"other"}
    assert {folder.name for folder in place.iterdir()} == kept
    assert len(list((place / "other").iterdir())) == 2
