"""Where the task of the largest loss stands by its attention (Fig. 5b of Aimen et al. 2021).

Rank B has the largest weight of B tasks, rank 1 the smallest; equal weights share
their ranks' mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.objectives.task_attention import INPUTS
from training.plots import COLOURS, picture, smooth, write_table
from training.plots.reading import attention_of


def draw(run: Path, path: Path) -> None:
    """Draw `path` and its CSV. Raises `CheckpointError` where the run has no task attention."""
    steps, weights, inputs = attention_of(run)
    ranks = ranks_of_hardest(weights, inputs[:, :, INPUTS.index("loss")])
    tasks = weights.shape[1]
    with picture(path) as (_, axes):
        axes.plot(steps, ranks, ".", color=COLOURS[0], markersize=2.5, alpha=0.35, label="rank")
        axes.plot(steps, smooth(ranks), color=COLOURS[1], linewidth=1.4, label="running mean")
        chance = (1 + np.mean((~np.isnan(weights)).sum(1))) / 2
        axes.axhline(chance, color="#555555", linewidth=0.8, linestyle="--", label="by chance")
        axes.set_xlabel("Iteration")
        axes.set_ylabel(f"Attention rank of the task of largest loss\n({tasks} = most weight)")
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0.5, tasks + 0.5)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    write_table(path, ("iteration", "rank"), zip(steps.tolist(), ranks.tolist(), strict=True))


def ranks_of_hardest(weights: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Rank by weight of each iteration's task of largest loss: `[T, B]`, `[T, B]` -> `[T]`."""
    hardest = np.nanargmax(losses, 1)[:, None]
    own = np.take_along_axis(weights, hardest, 1)
    return np.asarray((weights < own).sum(1) + ((weights == own).sum(1) + 1) / 2)
