"""One readable picture per query: its heat map, and every support example with its weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.classifier import Outcome
from service.images import Picture
from service.overlays import overlay

_QUERY, _EXAMPLE, _GAP, _MARGIN = 208, 92, 12, 20
_TEXT, _BAR, _CAPTION, _COLUMNS = 14, 6, 34, 8
_INK, _SOFT, _LINE, _FILL, _GROUND = "#1d2330", "#5a6375", "#e2e0da", "#d9480f", "#ffffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Layer:
    """One layer's attention for one query: task `[N]`, query `[h, w]`, support `[N, h, w]`."""

    task: NDArray[np.float32] | None = None
    query: NDArray[np.float32] | None = None
    support: NDArray[np.float32] | None = None


def layers_of(outcome: Outcome, index: int) -> list[Layer]:
    """What each layer drew from query `index`; one empty layer for a model without attention."""
    found = outcome.answer.attention
    parts = (found.task, found.query, found.support)
    count = max((len(part) for part in parts if part is not None), default=0)
    if not count:
        return [Layer()]
    return [
        Layer(*(None if part is None else part[layer, index] for part in parts))
        for layer in range(count)
    ]


def draw_sheet(outcome: Outcome, index: int) -> Image.Image:
    """A picture "RGB" of query `index`: the query at the left, one band of examples per layer."""
    layers = layers_of(outcome, index)
    rows = -(-len(outcome.labels) // _COLUMNS)
    columns = -(-len(outcome.labels) // rows)
    cell = _EXAMPLE + _GAP, _EXAMPLE + _CAPTION + _GAP
    header = 3 * _TEXT
    band = _TEXT + _GAP + max(_QUERY + _GAP, rows * cell[1]) + _GAP
    left = _MARGIN + _QUERY + 2 * _GAP
    width = left + max(columns * cell[0], 4 * cell[0]) + _MARGIN
    sheet = Image.new("RGB", (width, _MARGIN + header + band * len(layers)), _GROUND)
    pen, font = ImageDraw.Draw(sheet), _font(_TEXT)

    row = outcome.answer.probabilities[index]
    best = int(row.argmax())
    query = outcome.queries[index]
    title = f"{query.ref.name}: {outcome.classes[best]}, {row[best]:.1%}   ({outcome.card.id})"
    pen.text((_MARGIN, _MARGIN), _short(title, pen, width - 2 * _MARGIN), _INK, font)
    for number, layer in enumerate(layers):
        top = _MARGIN + header + number * band
        pen.line([(_MARGIN, top - _GAP // 2), (width - _MARGIN, top - _GAP // 2)], _LINE)
        name = f"layer {number + 1} of {len(layers)}" if len(layers) > 1 else "query"
        pen.text((_MARGIN, top), name, _SOFT, font)
        task = "" if layer.task is None else ", with their weight for this query"
        pen.text((left, top), f"support examples{task}", _SOFT, font)
        top += _TEXT + _GAP
        sheet.paste(framed(outcome, query, layer.query, _QUERY), (_MARGIN, top))
        for example, picture in enumerate(outcome.support):
            x = left + (example % columns) * cell[0]
            y = top + (example // columns) * cell[1]
            heat = None if layer.support is None else layer.support[example]
            sheet.paste(framed(outcome, picture, heat, _EXAMPLE), (x, y))
            _caption(pen, (x, y + _EXAMPLE + 4), outcome.labels[example], layer.task, example)
    return sheet


@cache
def _font(size: int) -> Font:
    """Pillow's own font, which it would unpack anew on every call."""
    return ImageFont.load_default(size)


def framed(
    outcome: Outcome, picture: Picture, heat: NDArray[np.float32] | None, side: int
) -> Image.Image:
    """The image, with its heat map where there is one, in the middle of a square."""
    assert picture.shown is not None
    heat = np.zeros((1, 1), np.float32) if heat is None else heat
    image = overlay(picture.shown, picture.size, heat, outcome.card.input, side, least=side)
    square = Image.new("RGB", (side, side), _GROUND)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    ImageDraw.Draw(square).rectangle([0, 0, side - 1, side - 1], outline=_LINE)
    return square


def _caption(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    label: str,
    task: NDArray[np.float32] | None,
    example: int,
) -> None:
    """The label, and the weight as a bar and as a number."""
    font = _font(_TEXT - 2)
    x, y = at
    share = "" if task is None else f"{float(task[example]):.0%}"
    room = _EXAMPLE - (pen.textlength(share, font) + 6 if share else 0)
    pen.text((x, y), _short(label, pen, room, font), _INK, font)
    if task is None:
        return
    pen.text((x + _EXAMPLE, y), share, _SOFT, font, anchor="ra")
    y += _TEXT + 3
    weight = min(1.0, max(0.0, float(task[example])))
    pen.rectangle([x, y, x + _EXAMPLE, y + _BAR], fill=_LINE)
    if round(_EXAMPLE * weight) > 0:
        pen.rectangle([x, y, x + round(_EXAMPLE * weight), y + _BAR], fill=_FILL)


def _short(
    text: str,
    pen: ImageDraw.ImageDraw,
    room: float,
    font: Font | None = None,
) -> str:
    """The text, cut to fit `room` pixels."""
    font = font or _font(_TEXT)
    if pen.textlength(text, font) <= room:
        return text
    while text and pen.textlength(text + "...", font) > room:
        text = text[:-1]
    return text + "..."
