"""The seeds' figures, of runs and of entries: one file each, as PNG and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from training.checkpoint import write_atomically

#: Colours that stay apart for the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Row = Sequence[str | int | float]


@contextmanager
def figure_at(path: Path, width: float, height: float, palette: bool = False) -> Iterator[Figure]:
    """A figure of so many inches, written to `path` as PNG afterwards. No display is needed.

    `palette`: with 256 colours, a quarter of the file where there are many small images.
    """
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    yield figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    if palette:
        image = Image.open(buffer).convert("RGB").quantize(dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


@contextmanager
def picture(path: Path, width: float = 6.0, height: float = 3.8) -> Iterator[tuple[Figure, Axes]]:
    """One pair of axes to draw on, and the same."""
    with figure_at(path, width, height) as figure:
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        yield figure, axes


def write_table(path: Path, heading: Sequence[str], rows: Iterable[Row]) -> None:
    """The numbers of a figure, beside it: `path` with the ending .csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".csv"), text.getvalue().encode())


def label(text: str, most: int = 24) -> str:
    """A user's text as matplotlib is to draw it: cut to `most` letters, its dollars no formulas,
    and not left out of a legend for its first letter."""
    text = text if len(text) <= most else text[: most - 1] + "\u2026"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean `[T]` -> `[T]` over that share of all values around each, fewer at the ends."""
    window = max(1, round(len(values) * share)) // 2
    sums = np.append(0.0, np.cumsum(values, dtype=np.float64))
    places = np.arange(len(values))
    first, last = np.maximum(places - window, 0), np.minimum(places + window + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))
