"""Attention maps as pictures: a heat map laid over what the user uploaded."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models_zoo.cards import InputSpec

#: From no weight to the most: position, red, green, blue, opacity.
_COLOURS = np.array(
    [
        (0.00, 48, 60, 160, 0.00),
        (0.25, 40, 130, 220, 0.30),
        (0.50, 40, 190, 120, 0.50),
        (0.75, 250, 200, 40, 0.60),
        (1.00, 220, 30, 30, 0.70),
    ]
)
_LEVELS = np.linspace(0, 1, 256)
#: Red, green, blue and opacity of each of 256 levels, as Pillow's `point` takes them.
_TABLES = [
    np.interp(_LEVELS, _COLOURS[:, 0], _COLOURS[:, i] * scale).round().astype(int).tolist()
    for i, scale in ((1, 1), (2, 1), (3, 1), (4, 255))
]
#: A map's strongest colour needs a weight of this many times its mean, so that attention spread
#: evenly looks pale and even, not hot all over.
_CONTRAST = 3
_SMALLEST = 96
_COMPRESSION = 1  # of 9: beyond it, time grows and size hardly shrinks


def overlay(
    image: Image.Image,
    size: tuple[int, int],
    weights: NDArray[np.float32],
    spec: InputSpec,
    side: int,
    least: int = _SMALLEST,
) -> Image.Image:
    """A heat map over an image.

    `weights` `[h, w]` >= 0 over the model's input; `size` is the original's, which says what part
    of it the model saw under `spec.fit`. Colours are relative to the map's own largest weight, or
    to three times its mean where that is more.
    The result is "RGB", keeps the original's aspect, and its long side is at most `side` pixels
    and, so that small images can be seen, at least the smaller of `side` and `least`.
    """
    shown = _resize(image, size, side, least).convert("RGB")
    heat = place(weights, size, shown.size, spec)
    levels = Image.fromarray((heat * 255).round().astype(np.uint8))
    red, green, blue, opacity = (levels.point(table) for table in _TABLES)
    return Image.composite(Image.merge("RGB", (red, green, blue)), shown, opacity)


def place(
    weights: NDArray[np.float32],
    size: tuple[int, int],
    shown: tuple[int, int],
    spec: InputSpec,
) -> NDArray[np.float64]:
    """Weights over the model's input -> `[height, width]` in [0, 1] over the shown image.

    Undoes `models_zoo.preprocess`: `stretch` maps one to the other, `crop` saw only the middle,
    `pad` saw margins that the image does not have.
    """
    weights = np.clip(np.nan_to_num(weights), 0, None)
    top = max(float(weights.max()), _CONTRAST * float(weights.mean()))
    grid = Image.fromarray((weights / (top or 1.0)).astype(np.float32))
    ratio = (size[0] / spec.width) / (size[1] / spec.height)  # > 1: wider than the model's input
    if spec.fit == "stretch" or (ratio == 1 and spec.resize is None):
        return _scale(grid, shown, (0.0, 0.0, float(grid.width), float(grid.height)))
    across, down = (1.0, 1 / ratio) if ratio > 1 else (ratio, 1.0)
    if spec.fit == "pad":
        width, height = grid.width * across, grid.height * down
        left, upper = (grid.width - width) / 2, (grid.height - height) / 2
        return _scale(grid, shown, (left, upper, left + width, upper + height))
    # The share of the image that a crop keeps is what a pad would leave empty, the other way round.
    kept = down, across
    if spec.resize is not None:
        scale = spec.resize / min(size)
        kept = spec.width / (scale * size[0]), spec.height / (scale * size[1])
    inner = max(1, round(shown[0] * kept[0])), max(1, round(shown[1] * kept[1]))
    placed = np.zeros((shown[1], shown[0]))
    left, upper = (shown[0] - inner[0]) // 2, (shown[1] - inner[1]) // 2
    box = (0.0, 0.0, float(grid.width), float(grid.height))
    placed[upper : upper + inner[1], left : left + inner[0]] = _scale(grid, inner, box)
    return placed


def data_url(image: Image.Image) -> str:
    """A PNG as a `data:` URL, for an `img` element."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _resize(image: Image.Image, size: tuple[int, int], side: int, least: int) -> Image.Image:
    """To the original's aspect, with a long side that is neither tiny nor above `side`."""
    long_side = min(side, max(least, *size))
    scale = long_side / max(size)
    wanted = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return image.resize(wanted, Image.Resampling.BILINEAR)


def _scale(
    grid: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    scaled = grid.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.clip(np.asarray(scaled, np.float64), 0, 1)
