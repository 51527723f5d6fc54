"""Largest and smallest task attention in every iteration (Fig. 4 of Aimen et al. 2021)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.plots import COLOURS, picture, smooth, write_table
from training.plots.reading import attention_of


def draw(run: Path, path: Path) -> None:
    """Draw `path` and its CSV. Raises `CheckpointError` where the run has no task attention."""
    steps, weights, _ = attention_of(run)
    largest, smallest = np.nanmax(weights, 1), np.nanmin(weights, 1)
    with picture(path) as (_, axes):
        for values, colour, label in (
            (largest, COLOURS[1], "largest"),
            (smallest, COLOURS[0], "smallest"),
        ):
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
            name = f"{label}, running mean"
            axes.plot(steps, smooth(values), color=colour, linewidth=1.4, label=name)
        axes.axhline(
            float(np.nanmean(weights)),
            color="#555555",
            linewidth=0.8,
            linestyle="--",
            label="mean of all",
        )
        axes.set_xlabel("Iteration")
        axes.set_ylabel("Attention")
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    write_table(
        path,
        ("iteration", "largest", "smallest"),
        zip(steps.tolist(), largest.tolist(), smallest.tolist(), strict=True),
    )
