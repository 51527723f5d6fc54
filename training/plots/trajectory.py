"""Paths of several runs through the space of weights (Fig. 1 of Aimen et al. 2021).

The seed shows that training on one task at a time goes a longer and more winding way than training
on batches. It does not say how it drew that; here the weights, kept as sketches, are projected on
the two directions in which the paths together spread most (principal components). The lengths are
those of the paths before the projection, summed over every update: between the points kept (about
500 in a run) the zigzag would be lost, and the more of it the longer the run. Runs that kept no
such sum get the length between the points, and the figure says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.checkpoint import CheckpointError
from training.history import read_history
from training.plots import COLOURS, label, picture, write_table
from training.plots.reading import names_of, series_of, shapes_of

#: What a length is summed over, by whether the run kept every update's.
SUMMED = {True: "updates", False: "points kept"}


def draw(runs: list[Path], path: Path) -> None:
    """Draw `path` and its CSV. Raises `CheckpointError`, also for runs of unlike weights: where
    these lie in each other's space means nothing."""
    first, *others = runs
    for run in others:
        if shapes_of(run) != shapes_of(first):
            raise CheckpointError(
                f"{first} and {run} train different weights, so they have no space in common"
            )
    hint = "train it again with this version"
    steps, paths = zip(*(series_of(run, "trajectory", hint) for run in runs), strict=True)
    flat, spread = project(list(paths))
    names = names_of(runs)
    lengths, kept = zip(*map(lengths_of, runs, steps, paths), strict=True)
    with picture(path, 6.0, 5.0) as (_, axes):
        for number, (name, points, length, every, whole) in enumerate(
            zip(names, flat, lengths, kept, paths, strict=True)
        ):
            colour = COLOURS[number % len(COLOURS)]
            ends = float(np.linalg.norm(whole[-1] - whole[0]))
            way = f"length {float(f'{length[-1]:.3g}'):g}" + (
                "" if every else " between the points kept"
            )
            axes.plot(
                *points.T,
                color=colour,
                linewidth=0.9,
                label=f"{label(name)}: {way}, end to end {ends:.3g}",
            )
            axes.plot(*points[0], "o", markersize=7, color="white", markeredgecolor=colour)
            axes.plot(*points[-1], "o", markersize=7, color=colour)
        axes.set_xlabel(f"First principal component ({spread[0]:.0%} of the spread)")
        axes.set_ylabel(f"Second principal component ({spread[1]:.0%})")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    write_table(
        path,
        ("run", "iteration", "x", "y", "length", "summed over"),
        (
            (name, int(step), float(x), float(y), float(length), SUMMED[every])
            for name, of_run, points, so_far, every in zip(
                names, steps, flat, lengths, kept, strict=True
            )
            for step, (x, y), length in zip(of_run, points, so_far, strict=True)
        ),
    )


def project(paths: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Paths `[T_i, D]` -> `[T_i, 2]` on their common principal components; these' shares `[2]`."""
    sizes = {points.shape[1] for points in paths}
    if len(sizes) > 1:
        raise CheckpointError("these runs' trajectories were kept in different sizes")
    together = np.concatenate(paths).astype(np.float64)
    centred = together - together.mean(0)
    _, strengths, directions = np.linalg.svd(centred, full_matrices=False)
    strengths, directions = np.append(strengths**2, 0)[:2], directions[:2]
    if len(directions) < 2 or not np.square(centred).sum():
        raise CheckpointError("too short a trajectory to draw: train for a few steps")
    flat = np.split(centred @ directions.T, np.cumsum([len(points) for points in paths])[:-1])
    return flat, strengths / np.square(centred).sum()


def lengths_of(run: Path, steps: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, bool]:
    """Length of the way up to each of the points `[T, D]` -> `[T]`, and whether it is the sum over
    every update. Raises `CheckpointError`."""
    at, lengths = read_history(run).get("length", (np.empty(0), np.empty(0)))
    if np.array_equal(at, steps) and np.isfinite(lengths).all():
        return lengths, True
    return distances(points), False


def distances(points: np.ndarray) -> np.ndarray:
    """Length of the path up to each of its points: `[T, D]` -> `[T]`."""
    return np.append(0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum())
