"""`fewshot models time`: medians of the stages, and their row on the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fewshot import app
from models_zoo.cards import load_card
from service.commands import timing
from service.engine.episode import Answer, Attention, Episode
from tests.service.zoo import build_zoo

run = CliRunner().invoke


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="the test zoo is written with the onnx package")
    return build_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def zoo(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "zoo")
    return tmp_path / "zoo"


def time_model(zoo: Path, *rest: str, model: str = "mean") -> object:
    return run(app, ["models", "time", model, "--zoo", str(zoo), *rest])


def test_medians_leave_out_the_first_runs(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Episode] = []
    slow, counted = [9.0] * timing.WARM_UPS, [0.004, 0.5, 0.003, 0.001, 0.002]
    times = iter(slow + counted)

    def answers(runtime: object, episodes: list[Episode]) -> Iterator[tuple[int, Answer]]:
        asked.extend(episodes)
        encode = next(times)
        seconds = {"encode": encode, "adapt": 2 * encode, "predict": 3 * encode}
        yield 0, Answer(np.zeros((1, 2), np.float32), Attention(), seconds)

    monkeypatch.setattr(timing, "answers", answers)
    card = load_card(zoo / "descent")
    row = timing.measure(card, zoo, way=3, shot=2, queries=4, runs=len(counted))
    assert (row.encode_ms, row.adapt_ms, row.predict_ms, row.runs) == (3, 6, 9, 5)
    assert row.total_ms == 18
    assert len(asked) == len(slow + counted)
    assert len(asked[0].support) == len(asked[0].labels) == 6
    assert sorted(asked[0].labels) == [0, 0, 1, 1, 2, 2]
    assert len(asked[0].query) == 12
    assert asked[0].inner_lr == card.adaptation.rates


def test_a_recorded_row_is_shown_and_takes_the_place_of_an_older_one(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = load_card(zoo / "mean")
    row = json.loads(time_model(zoo, "--queries", "2", "--json").stdout)
    assert load_card(zoo / "mean") == before  # not without --record
    assert row["command"] == "fewshot models time mean --way 5 --shot 1 --queries 2"
    assert row["hardware"].startswith(timing.processor())
    for options in (["--way", "3"], [], ["--way", "3"], ["--shot", "2"]):
        result = time_model(zoo, "--record", "--queries", "2", *options)
        assert result.exit_code == 0, result.output
        assert "encode" in result.stdout
    after = load_card(zoo / "mean")
    assert [(one.way, one.shot) for one in after.speed] == [(3, 1), (5, 1), (5, 2)]
    assert after.model_copy(update={"speed": ()}) == before
    shown = " ".join(run(app, ["models", "show", "mean", "--zoo", str(zoo)]).stdout.split())
    assert "3-way 1-shot" in shown


def test_a_task_that_the_model_does_not_take_is_one_line(zoo: Path) -> None:
    result = time_model(zoo, "--way", "1000", "--record")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "takes at most" in result.stderr
