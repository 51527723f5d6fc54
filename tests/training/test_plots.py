"""`fewshot plot`: the numbers of each figure against their definitions, and pictures that open."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fewshot import app
from training.history import History


def plot(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    """The CSV beside a picture; the picture is checked to be one, with something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
    with path.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_with(folder: Path, **series: dict[int, torch.Tensor]) -> Path:
    """A run folder with a history of rows by step."""
    history = History()
    for name, rows in series.items():
        for step, row in rows.items():
            history.add(step, name, row)
    folder.mkdir(parents=True)
    history.save(folder)
    return folder


def test_validation_curves_of_several_runs(tmp_path: Path) -> None:
    one = run_with(tmp_path / "a", validation={5: torch.tensor(0.5), 10: torch.tensor(0.75)})
    two = run_with(tmp_path / "b", validation={5: torch.tensor(0.25)})
    done = plot("validation", one, two)
    assert done.exit_code == 0, done.output
    rows = rows_of(one / "plots" / "validation.png")
    assert [(r["run"], r["iteration"], float(r["accuracy"])) for r in rows] == [
        ("a", "5", 0.5),
        ("a", "10", 0.75),
        ("b", "5", 0.25),
    ]


def test_runs_called_alike_are_told_apart(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / parent / "run", validation={1: torch.tensor(0.5)}) for parent in "ab"
    ]
    out = tmp_path / "both.png"
    assert plot("validation", *runs, "--out", out).exit_code == 0
    assert len({row["run"] for row in rows_of(out)}) == 2


@pytest.mark.parametrize("command", ["validation"])
def test_a_mistake_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("text")
    empty = run_with(tmp_path / "empty", other={1: torch.tensor(1.0)})
    torn = run_with(tmp_path / "torn", validation={1: torch.tensor(0.5)})
    (torn / "history.npz").write_bytes((torn / "history.npz").read_bytes()[:50])
    good = run_with(tmp_path / "good", validation={1: torch.tensor(0.5)})
    for arguments, message in [
        ((tmp_path / "nowhere",), "nowhere"),
        ((text,), "text"),
        ((empty,), "empty"),
        ((torn,), "unreadable"),
        ((good, "--out", tmp_path / "picture.svg"), ".png"),
        ((good, "--out", text / "picture.png"), "text"),
    ]:
        result = plot(command, *arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("fewshot: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert message in result.stderr
