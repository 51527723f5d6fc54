"""Support set against queries (Cai et al., Fig. 4): warmer colours for higher similarities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from training.plots import label, picture, write_table

#: Inches of one cell, and names that an axis has room for.
_CELL, _NAMES = 0.22, 60


def draw(
    title: str,
    examples: Sequence[str],
    classes: Sequence[str],
    queries: Sequence[str],
    values: np.ndarray,
    path: Path,
) -> None:
    """Draw `values` `[N, Q]` into `path`, and its CSV. Examples of a class stand together."""
    rows, columns = values.shape
    width, height = (min(9.0, max(2.0, n * _CELL)) for n in (columns, rows))
    with picture(path, width + 2.2, height + 1.6) as (figure, axes):
        axes.grid(False)
        axes.spines[:].set_visible(False)
        image = axes.imshow(values, cmap="turbo", aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
        ends = np.cumsum([len(list(group)) for _, group in groupby(classes)])
        starts = np.append(0, ends[:-1])
        axes.hlines(ends[:-1] - 0.5, -0.5, columns - 0.5, colors="white", linewidth=1.0)
        axes.set_yticks((starts + ends - 1) / 2, [label(classes[start]) for start in starts])
        shown = range(columns) if columns <= _NAMES else []
        axes.set_xticks(list(shown), [label(queries[i]) for i in shown], rotation=90, fontsize=8)
        axes.tick_params(length=0)
        axes.set_ylabel("Support set")
        axes.set_xlabel("Queries")
        axes.set_title(title, fontsize=10)
    write_table(
        path,
        ("example", "class", *queries),
        (
            (example, name, *map(float, row))
            for example, name, row in zip(examples, classes, values, strict=True)
        ),
    )
