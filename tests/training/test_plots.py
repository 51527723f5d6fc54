"""`fewshot plot`: the numbers of each figure against their definitions, and pictures that open."""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner, Result

from fewshot import app
from tests.training.making import recipe
from training import trainer
from training.history import History, read_history
from training.plots import picture, smooth, task_correlation, task_weights
from training.plots.trajectory import distances
from training.sketch import Sketch
from training.trainer import train


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


def test_a_folder_in_brackets_is_told_as_it_is(tmp_path: Path) -> None:
    run = run_with(tmp_path / "x[" / "bold]", validation={1: torch.tensor(0.5)})
    done = plot("validation", run)
    assert done.stdout == f"{run / 'plots' / 'validation.png'} and validation.csv\n"


def test_runs_called_alike_are_told_apart(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / parent / "run", validation={1: torch.tensor(0.5)}) for parent in "ab"
    ]
    out = tmp_path / "both.png"
    assert plot("validation", *runs, "--out", out).exit_code == 0
    assert len({row["run"] for row in rows_of(out)}) == 2


WEIGHTS = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])


def attended(folder: Path) -> tuple[Path, torch.Tensor]:
    """A run of three steps with three tasks each; the inputs' order is that of Eq. 1."""
    inputs = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, :, 1] = torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.3, 0.2], [0.9, 0.4, 0.3]])  # losses
    inputs[1:, :, 2] = 1.0  # all tasks right: no correlation
    rows = {"attention": WEIGHTS, "attention_inputs": inputs}
    series = {name: dict(enumerate(each, start=1)) for name, each in rows.items()}
    return run_with(folder, **series), inputs


def test_task_weights_are_each_iteration_s_largest_and_smallest(tmp_path: Path) -> None:
    run, _ = attended(tmp_path / "run")
    done = plot("task-weights", run)
    assert done.exit_code == 0, done.output
    rows = rows_of(run / "plots" / "task-weights.png")
    found = [(int(r["iteration"]), float(r["largest"]), float(r["smallest"])) for r in rows]
    assert found == [(1, 0.5, 0.2), (2, 0.8, 0.1), (3, 0.5, 0.25)]


def test_task_correlation_is_pearson_s_averaged_over_iterations(tmp_path: Path) -> None:
    run, inputs = attended(tmp_path / "run")
    assert plot("task-correlation", run).exit_code == 0
    rows = rows_of(run / "plots" / "task-correlation.png")
    assert [row["input"] for row in rows] == ["gradient norm", "loss", "accuracy", "loss ratio"]
    for number, row in enumerate(rows):
        steps = [0] if number == 2 else [0, 1, 2]
        found = [statistics.correlation(inputs[t, :, number].tolist(), WEIGHTS[t].tolist())
                 for t in steps]  # fmt: skip
        assert float(row["mean"]) == pytest.approx(statistics.mean(found), abs=1e-4)
        deviation = statistics.stdev(found) if len(found) > 1 else math.nan
        assert float(row["standard deviation"]) == pytest.approx(deviation, abs=1e-4, nan_ok=True)
        whisker = 1.96 * deviation / math.sqrt(len(found))
        drawn = float(row["1.96 standard errors"])
        assert drawn == pytest.approx(whisker, abs=1e-4, nan_ok=True)
        assert int(row["iterations"]) == len(steps)


def test_the_figures_say_what_they_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whiskers as long as the column of their name, and lines that are means called so."""
    seen: list[Axes] = []

    @contextmanager
    def kept(path: Path, *size: float) -> Iterator[tuple[Figure, Axes]]:
        with picture(path, *size) as (figure, axes):
            yield figure, axes
            seen.append(axes)

    run, _ = attended(tmp_path / "run")
    for module in (task_correlation, task_weights):
        monkeypatch.setattr(module, "picture", kept)
        module.draw(run, tmp_path / f"{module.__name__}.png")
    bars, lines = seen
    assert "mean \u00b1 1.96 standard errors" in bars.get_ylabel()
    (whiskers,) = [c for c in bars.collections if isinstance(c, LineCollection)]
    lengths = [
        np.ptp(ends[:, 1]) / 2 if len(ends) else math.nan for ends in whiskers.get_segments()
    ]
    told = [
        float(row["1.96 standard errors"])
        for row in rows_of(tmp_path / f"{task_correlation.__name__}.png")
    ]
    assert lengths == pytest.approx(told, abs=1e-5, nan_ok=True)
    names = [text.get_text() for text in lines.get_legend().get_texts()]  # type: ignore[union-attr]
    assert names == ["largest, running mean", "smallest, running mean", "mean of all"]


def test_an_input_that_never_differs_has_no_correlation(tmp_path: Path) -> None:
    """Not one of 0."""
    rows = {"attention": WEIGHTS, "attention_inputs": torch.ones(3, 3, 4)}
    run = run_with(tmp_path / "run", **{k: dict(enumerate(v)) for k, v in rows.items()})
    assert plot("task-correlation", run).exit_code == 0
    for row in rows_of(run / "plots" / "task-correlation.png"):
        assert (row["mean"], row["iterations"]) == ("nan", "0")


def test_task_rank_is_where_the_largest_loss_stands(tmp_path: Path) -> None:
    """Weights .5 .2 .3 and largest loss first: rank 3; second; then a tie for the last places."""
    run, _ = attended(tmp_path / "run")
    assert plot("task-rank", run).exit_code == 0
    rows = rows_of(run / "plots" / "task-rank.png")
    assert [float(row["rank"]) for row in rows] == [3, 3, 1.5]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 3.0])
def test_a_running_mean_is_over_that_share_of_the_values(share: float) -> None:
    values = np.random.default_rng(0).random(41)
    half = max(1, round(41 * share)) // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(41)]
    assert smooth(values, share) == pytest.approx(expected)


def test_batches_of_unequal_size_leave_gaps_out(tmp_path: Path) -> None:
    weights = {1: torch.tensor([0.7, 0.3]), 2: torch.tensor([0.2, 0.5, 0.3])}
    inputs = {step: torch.stack([row] * 4, 1) for step, row in weights.items()}
    run = run_with(tmp_path / "run", attention=weights, attention_inputs=inputs)
    for command in ("task-weights", "task-correlation", "task-rank"):
        assert plot(command, run).exit_code == 0
    rows = rows_of(run / "plots" / "task-rank.png")
    assert [float(row["rank"]) for row in rows] == [2, 3]
    correlations = rows_of(run / "plots" / "task-correlation.png")
    assert [float(row["mean"]) for row in correlations] == pytest.approx([1.0] * 4)
    assert float(rows_of(run / "plots" / "task-weights.png")[0]["smallest"]) == pytest.approx(0.3)


def test_trajectories_keep_their_shape_and_their_length(tmp_path: Path) -> None:
    """Two paths in a plane of a large space: the projection is a rotation, nothing is lost."""
    torch.manual_seed(0)
    frame = torch.linalg.qr(torch.randn(40, 2))[0]
    straight = torch.tensor([[0.0, 0], [3, 0], [6, 0]])
    winding = torch.tensor([[0.0, 0], [0, 4], [3, 4], [3, 0]])
    runs = [
        run_with(tmp_path / name, trajectory=dict(enumerate(points @ frame.T)))
        for name, points in (("batch", straight), ("sequential", winding))
    ]
    done = plot("trajectory", *runs, "--out", tmp_path / "paths.png")
    assert done.exit_code == 0, done.output
    rows = rows_of(tmp_path / "paths.png")
    found = torch.tensor([[float(row["x"]), float(row["y"])] for row in rows])
    assert torch.allclose(torch.cdist(found, found), torch.cdist(
        *[torch.cat([straight, winding])] * 2), atol=1e-4)  # fmt: skip
    assert [float(row["length"]) for row in rows] == pytest.approx([0, 3, 6, 0, 4, 7, 11])
    assert {row["summed over"] for row in rows} == {"points kept"}


def test_a_trajectory_s_length_is_that_of_every_update(tmp_path: Path) -> None:
    """A run that did not keep it, or not from the start, says so."""
    points = dict(enumerate(torch.tensor([[0.0, 0], [3, 0], [3, 1]])))
    sums = torch.tensor([0.0, 7.0, 9.0])
    late = torch.tensor([torch.nan, 2.0])
    runs = [
        run_with(tmp_path / "all", trajectory=points, length=dict(enumerate(sums))),
        run_with(tmp_path / "late", trajectory=points, length=dict(enumerate(late, start=1))),
        run_with(tmp_path / "none", trajectory=points),
    ]
    done = plot("trajectory", *runs)
    assert done.exit_code == 0, done.output
    rows = rows_of(runs[0] / "plots" / "trajectory.png")
    assert [float(row["length"]) for row in rows] == pytest.approx([0, 7, 9, *[0, 3, 4] * 2])
    assert [row["summed over"] for row in rows] == ["updates"] * 3 + ["points kept"] * 6


def test_the_length_kept_does_not_depend_on_how_many_points_are(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe("maml"), tmp_path / "all", root=made_data, quiet=True)
    monkeypatch.setattr(trainer, "PATH_POINTS", 3)
    train(recipe("maml"), tmp_path / "few", root=made_data, quiet=True)
    every, few = (read_history(tmp_path / name) for name in ("all", "few"))
    assert few["length"][0].tolist() == few["trajectory"][0].tolist() == [0, 4, 8, 12]
    assert few["length"][1].tolist() == every["length"][1][::4].tolist()
    assert every["length"][1] == pytest.approx(distances(every["trajectory"][1]), rel=1e-5)
    assert distances(few["trajectory"][1])[-1] < 0.99 * few["length"][1][-1]


def test_trajectories_that_cannot_be_drawn_together_are_told(tmp_path: Path) -> None:
    sizes = [run_with(tmp_path / str(d), trajectory={0: torch.rand(d), 1: torch.rand(d)})
             for d in (3, 5)]  # fmt: skip
    assert_one_line(plot("trajectory", *sizes), "different sizes")
    unlike = [tmp_path / "maml", tmp_path / "metasgd"]
    for run in unlike:
        made = recipe(run.name).model_dump(mode="json")
        run_with(run, trajectory={0: torch.rand(4), 1: torch.rand(4)})
        (run / "recipe.yaml").write_text(yaml.safe_dump(made))
    assert_one_line(plot("trajectory", *unlike), "different weights")
    assert plot("trajectory", unlike[0], unlike[0]).exit_code == 0
    still = run_with(tmp_path / "still", trajectory={0: torch.ones(3), 1: torch.ones(3)})
    assert_one_line(plot("trajectory", still), "too short")


def test_a_sketch_keeps_lengths_and_is_linear() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4000), torch.randn(4000)
    lengths = [float(Sketch([x])().norm() / x.norm()) for x in (a, b, a - b)]
    assert lengths == pytest.approx([1, 1, 1], abs=0.12)
    parts = [a[:1000].view(10, 100), a[1000:]]
    assert torch.equal(Sketch(parts)(), Sketch([a])())
    assert torch.allclose(Sketch([a])() - Sketch([b])(), Sketch([a - b])(), atol=1e-4)


def test_every_figure_can_be_drawn_from_a_real_run(made_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe("maml", objective={"name": "task_attention"}), run, root=made_data, quiet=True)
    for command in COMMANDS:
        done = plot(command, run)
        assert done.exit_code == 0, done.output
        rows_of(run / "plots" / f"{command}.png")
    steps = {row["iteration"] for row in rows_of(run / "plots" / "trajectory.png")}
    assert steps == {str(step) for step in range(13)}


COMMANDS = ("validation", "trajectory", "task-weights", "task-correlation", "task-rank")


def assert_one_line(result: Result, part: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fewshot: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert part in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("text")
    empty = run_with(tmp_path / "empty", other={1: torch.tensor(1.0)})
    torn, _ = attended(tmp_path / "torn")
    (torn / "history.npz").write_bytes((torn / "history.npz").read_bytes()[:50])
    good, _ = attended(tmp_path / "good")
    series = History()
    series.load(good, until=3)
    for step in (1, 2, 3):
        series.add(step, "validation", torch.tensor(0.5))
        series.add(step, "trajectory", torch.rand(4))
    series.save(good)
    for arguments, message in [
        ((tmp_path / "nowhere",), "nowhere"),
        ((text,), "text"),
        ((empty,), "empty"),
        ((torn,), "unreadable"),
        ((good, "--out", tmp_path / "picture.svg"), ".png"),
        ((good, "--out", text / "picture.png"), "text"),
    ]:
        assert_one_line(plot(command, *arguments), message)


def test_a_run_cut_short_before_its_first_validation_says_what_counts(tmp_path: Path) -> None:
    run = run_with(tmp_path / "short", trajectory={1: torch.tensor(1.0)})
    assert_one_line(plot("validation", run), "every `validation.every` steps count")


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("training.plots")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = plot("validation", tmp_path)
    assert_one_line(result, "matplotlib is missing")
    assert ".[train]" in result.stderr
