"""The seeds' figures, drawn from what a run has kept: one file each, as PNG and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.checkpoint import write_atomically

#: Colours that stay apart for the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Row = Sequence[str | int | float]


@contextmanager
def picture(path: Path, width: float = 6.0, height: float = 3.8) -> Iterator[tuple[Figure, Axes]]:
    """One pair of axes to draw on; written to `path` as PNG afterwards. No display is needed."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    yield figure, axes
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def write_table(path: Path, heading: Sequence[str], rows: Iterable[Row]) -> None:
    """The numbers of a figure, beside it: `path` with the ending .csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".csv"), text.getvalue().encode())


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean `[T]` -> `[T]` over that share of all values around each, fewer at the ends."""
    window = max(1, round(len(values) * share)) // 2
    sums = np.append(0.0, np.cumsum(values, dtype=np.float64))
    places = np.arange(len(values))
    first, last = np.maximum(places - window, 0), np.minimum(places + window + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))
