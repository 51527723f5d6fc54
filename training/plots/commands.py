"""Bodies of `fewshot plot …`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from training.commands import user_errors
from training.recipe import RecipeError


def validation(runs: list[Path], out: Path | None) -> None:
    """Fig. 3 of seed 001."""
    from training.plots.validation import draw

    finish(lambda path: draw(runs, path), out or runs[0] / "plots" / "validation.png")


def finish(draw: Callable[[Path], None], path: Path) -> None:
    """Draw into `path` and say where the picture and its numbers are."""
    with user_errors():
        if path.suffix.lower() != ".png":
            raise RecipeError(f"{path}: the picture is written as .png")
        draw(path)
    Console().print(f"{path} and {path.with_suffix('.csv').name}", soft_wrap=True)
