"""What `benchmarks.adaptation` compares is the same mathematics, or it says so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import adaptation
from benchmarks.adaptation import TOLERANCE
from benchmarks.adaptation_arms import LIBRARIES, Arm, Case, learn2learn, ours

SMALL = {"tasks": 2, "way": 3, "queries": 2, "dtype": torch.float64}


def assert_same(arm: Arm, case: Case) -> None:
    wanted, found = ours(case)(), arm()
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max() / value.abs().max()) < TOLERANCE, name


@pytest.mark.parametrize(("steps", "shot"), [(1, 1), (3, 1), (2, 2)])
def test_cloning_and_updating_task_by_task_gives_our_meta_gradient(steps: int, shot: int) -> None:
    case = Case(steps=steps, shot=shot, **SMALL)  # type: ignore[arg-type]
    assert_same(learn2learn(case), case)


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_libraries_give_our_meta_gradient(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed; the benchmark runs without it")
    case = Case(steps=2, **SMALL)  # type: ignore[arg-type]
    assert_same(LIBRARIES[name](case), case)


def test_an_arm_that_computes_something_else_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def different(case: Case) -> dict[str, Arm]:
        two, three = (Case(steps=steps, **SMALL) for steps in (2, 3))  # type: ignore[arg-type]
        return {"ours": ours(two), "learn2learn": learn2learn(three)}

    monkeypatch.setattr(adaptation, "arms", different)
    with pytest.raises(SystemExit, match="learn2learn computes another gradient by"):
        adaptation.check()


def test_libraries_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adaptation, "arms", lambda case: {"ours": ours(Case(**SMALL))})  # type: ignore[arg-type]
    adaptation.check()
    said = capsys.readouterr().out
    assert all(f"{name} is not installed and takes no part" in said for name in LIBRARIES)


def test_every_part_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {n: Case(steps=n, **SMALL) for n in (1, 2)}  # type: ignore[arg-type]
    monkeypatch.setattr(adaptation, "GROWTH", {"steps": sizes, "shot": sizes})
    adaptation.against_torch(1)
    adaptation.growth(1, tmp_path / "growth.png")
    said = capsys.readouterr().out
    assert said.count("adapt one task, ") == 2
    assert said.count("ms a task by steps") == 2 + sum(map(bool, map(find_spec, LIBRARIES)))
    with Image.open(tmp_path / "growth.png") as picture:
        wide, high = picture.size
    assert wide > 2 * high
