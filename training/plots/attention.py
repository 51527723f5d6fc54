"""Images under their spatial attention, with their task attention (Fig. 4 of Yan et al. 2019).

A block of rows for each query, the query at the left of each row: first the images with the class
given or predicted, then a row for each layer. a is the task attention, also drawn as a bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from training.plots import COLOURS, Row, figure_at, label, write_table

#: An image, what stands above it, and its weight, if it has one.
Tile = tuple[Image.Image, str, float | None]
#: A row's name and its tiles, the query's first.
Line = tuple[str, Sequence[Tile]]

#: Inches: an image; what stands beside, above and below one; the gaps between query and examples,
#: between blocks, and at the right edge.
_TILE, _GAP, _NAME, _TEXT, _APART = 0.7, 0.06, 0.3, 0.15, 0.14
#: Letters that stand above an image; inches of one of the title's.
_LETTERS, _LETTER = 15, 0.075


def draw(
    title: str,
    blocks: Sequence[Sequence[Line]],
    heading: Sequence[str],
    table: Sequence[Row],
    path: Path,
) -> None:
    """Draw `path` and its CSV of `heading` and `table`."""
    columns = max(len(tiles) for block in blocks for _, tiles in block)
    weighed = any(
        weight is not None for block in blocks for _, tiles in block for _, _, weight in tiles
    )
    title += "; a: task attention" * weighed
    images = columns * (_TILE + _GAP) - _GAP + _APART
    width = _NAME + max(images, _LETTER * len(title)) + _APART
    heights = [sum(map(_height, block)) for block in blocks]
    height = 2 * _TEXT + sum(heights) + _APART * len(blocks)
    with figure_at(path, width, height, palette=True) as figure:
        figure.set_layout_engine("none")
        figure.text(_NAME / width, 1 - _TEXT / height, title, fontsize=9, va="center")
        top = height - 2 * _TEXT
        for block in blocks:
            for line in block:
                _draw_line(figure, line, top)
                top -= _height(line)
            top -= _APART
    write_table(path, heading, table)


def _height(line: Line) -> float:
    """Inches of a row: its images, and what stands above and below them."""
    _, tiles = line
    below = any(weight is not None for _, _, weight in tiles)
    return _above(tiles) + _TILE + _GAP + (_TEXT + 0.04) * below


def _above(tiles: Sequence[Tile]) -> float:
    """Inches of the captions, which may be of several lines."""
    return _TEXT * max(len(caption.splitlines()) for _, caption, _ in tiles)


def _draw_line(figure: Figure, line: Line, top: float) -> None:
    name, tiles = line
    width, height = figure.get_size_inches()
    bottom, left = top - _above(tiles) - _TILE, _NAME
    for number, (image, caption, weight) in enumerate(tiles):
        box = (left / width, bottom / height, _TILE / width, _TILE / height)
        axes = figure.add_axes(box, xticks=[], yticks=[], frame_on=False)
        axes.imshow(image)
        _write(
            axes,
            0.5,
            1.04,
            "\n".join(label(text, _LETTERS) for text in caption.splitlines()),
            "bottom",
        )
        if weight is not None:
            _bar(axes, 1.0, "#e2e0da")
            _bar(axes, min(1.0, max(0.0, weight)), COLOURS[1])
            _write(axes, 0.5, -0.1, f"a = {weight:.2f}", "top")
        if number == 0:
            axes.set_ylabel(name, labelpad=3, fontsize=7, color="#333333")
        left += _TILE + _GAP + _APART * (number == 0)


def _write(axes: Axes, x: float, y: float, text: str, side: Literal["bottom", "top"]) -> None:
    """Text in the axes' own coordinates, its `side` at y."""
    where = axes.transAxes
    axes.text(x, y, text, transform=where, ha="center", va=side, fontsize=7, color="#333333")


def _bar(axes: Axes, share: float, colour: str) -> None:
    """Below the image, as broad as this share of it."""
    where = axes.transAxes
    axes.add_patch(
        Rectangle((0, -0.08), share, 0.05, transform=where, color=colour, clip_on=False, lw=0)
    )
