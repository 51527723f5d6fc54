"""Validation accuracy over training iterations, one line for each run (Fig. 3 of Aimen et al.)."""

from __future__ import annotations

from pathlib import Path

from training.plots import COLOURS, label, picture, write_table
from training.plots.reading import names_of, series_of


def draw(runs: list[Path], path: Path) -> None:
    """Draw `path` and its CSV. Raises `CheckpointError` where a run has no history."""
    hint = "only validations every `validation.every` steps count, and the last: let it train on"
    curves = [series_of(run, "validation", hint) for run in runs]
    names = names_of(runs)
    with picture(path) as (_, axes):
        for number, (name, (steps, values)) in enumerate(zip(names, curves, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(steps, 100 * values, ".-", color=colour, label=label(name), linewidth=1.2)
        axes.set_xlabel("Iteration")
        axes.set_ylabel("Validation accuracy (%)")
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
    write_table(
        path,
        ("run", "iteration", "accuracy"),
        (
            (name, int(step), float(value))
            for name, (steps, values) in zip(names, curves, strict=True)
            for step, value in zip(steps, values, strict=True)
        ),
    )
