"""How each of task attention's inputs goes with the attention (Fig. 5a of Aimen et al. 2021).

Pearson's correlation over the tasks of a batch, in every iteration; the bars are means over the
iterations, the whiskers 1.96 standard errors of these means, as if the iterations of the one run
were independent of each other. Iterations in which an input or the attention is the same for all
tasks have no correlation and are left out; an input that never has one gets no bar.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.objectives.task_attention import INPUTS
from training.plots import COLOURS, picture, write_table
from training.plots.reading import attention_of


def draw(run: Path, path: Path) -> None:
    """Draw `path` and its CSV. Raises `CheckpointError` where the run has no task attention."""
    _, weights, inputs = attention_of(run)
    rows: list[tuple[str, float, float, float, int]] = []
    for number, name in enumerate(INPUTS):
        found = correlations(inputs[:, :, number], weights)
        mean = float(found.mean()) if len(found) else float("nan")
        deviation = float(found.std(ddof=1)) if len(found) > 1 else float("nan")
        error = 1.96 * deviation / max(len(found), 1) ** 0.5
        rows.append((name, mean, error, deviation, len(found)))
    with picture(path, 5.0, 3.6) as (_, axes):
        names, means, errors, *_ = zip(*rows, strict=True)
        axes.bar(names, means, width=0.6, color=COLOURS[0])
        axes.errorbar(names, means, errors, fmt="none", ecolor="#222222", linewidth=1.2, capsize=3)
        axes.axhline(0, color="black", linewidth=0.8)
        ends = np.abs(means) + np.nan_to_num(errors)
        reach = np.fmax(0.1, np.fmax.reduce(ends))
        axes.set_ylim(-1.1 * reach, 1.1 * reach)
        axes.set_ylabel("Correlation with attention:\nmean \u00b1 1.96 standard errors")
    heading = ("input", "mean", "1.96 standard errors", "standard deviation", "iterations")
    write_table(path, heading, rows)


def correlations(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r of every iteration that has one: `[T, B]`, `[T, B]` -> at most `[T]`."""
    x = inputs - np.nanmean(inputs, 1, keepdims=True)
    y = weights - np.nanmean(weights, 1, keepdims=True)
    scale = np.sqrt(np.nansum(x * x, 1) * np.nansum(y * y, 1))
    # Below this only rounding is left of a difference.
    least = 1e-6 * np.abs(inputs).max(1, initial=0, where=~np.isnan(inputs))
    varied = (np.nanmax(np.abs(x), 1) > least) & (np.nanmax(np.abs(y), 1) > 1e-7)
    return np.asarray(np.nansum(x * y, 1)[varied] / scale[varied])
