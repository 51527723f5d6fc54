"""Bodies of `fewshot plot …`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from training.commands import user_errors
from training.recipe import RecipeError


def validation(runs: list[Path], out: Path | None) -> None:
    """Fig. 3 of Aimen et al. 2021."""
    from training.plots.validation import draw

    finish(lambda path: draw(runs, path), out or runs[0] / "plots" / "validation.png")


def trajectory(runs: list[Path], out: Path | None) -> None:
    """Fig. 1 of Aimen et al. 2021."""
    from training.plots.trajectory import draw

    finish(lambda path: draw(runs, path), out or runs[0] / "plots" / "trajectory.png")


def task_weights(run: Path, out: Path | None) -> None:
    """Fig. 4 of Aimen et al. 2021."""
    from training.plots.task_weights import draw

    finish(lambda path: draw(run, path), out or run / "plots" / "task-weights.png")


def task_correlation(run: Path, out: Path | None) -> None:
    """Fig. 5a of Aimen et al. 2021."""
    from training.plots.task_correlation import draw

    finish(lambda path: draw(run, path), out or run / "plots" / "task-correlation.png")


def task_rank(run: Path, out: Path | None) -> None:
    """Fig. 5b of Aimen et al. 2021."""
    from training.plots.task_rank import draw

    finish(lambda path: draw(run, path), out or run / "plots" / "task-rank.png")


def finish(draw: Callable[[Path], None], path: Path) -> None:
    """Draw into `path` and say where the picture and its numbers are."""
    with user_errors():
        if path.suffix.lower() != ".png":
            raise RecipeError(f"{path}: the picture is written as .png")
        draw(path)
    Console(markup=False, emoji=False).print(
        f"{path} and {path.with_suffix('.csv').name}", soft_wrap=True
    )
