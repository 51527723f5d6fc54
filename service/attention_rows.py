"""A query's attention as rows of images and as rows of numbers, for `fewshot plot attention`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from service.classifier import Outcome
from service.sheet import Layer, framed, layers_of

#: Examples beside a query, and pixels of an image.
EXAMPLES, _SIDE = 12, 112

#: The map of entries that adapt by gradient steps: they compute no attention
#: (docs/decisions/gradient-attention.md).
GRADIENT_MAP = "gradient map"

#: An image, what stands above it, and its weight, if it has one.
Tile = tuple[Image.Image, str, float | None]
#: A row's name and its tiles, the query's first.
Row = tuple[str, list[Tile]]


def block(outcome: Outcome, index: int) -> list[Row]:
    """Query `index`: the images as they are, then layer by layer under their attention.

    Without spatial attention there is nothing to lay over them, and the first row is left out. Of
    more than `EXAMPLES` examples those of the largest weight are shown, in their order. Above the
    first row stand the classes, the query's as predicted and behind its name.
    """
    layers = layers_of(outcome, index)
    shown = heaviest(layers, len(outcome.labels))
    pictures = [outcome.queries[index], *(outcome.support[i] for i in shown)]
    odds = outcome.answer.probabilities[index]
    best = int(odds.argmax())
    answer = f"{outcome.queries[index].ref.name}\n{outcome.classes[best]}\n{odds[best]:.1%}"
    captions = [answer, *(outcome.labels[i] for i in shown)]

    rows: list[Row] = []
    kind = ""
    if any(layer.query is not None or layer.support is not None for layer in layers):
        rows.append(
            (
                "images",
                [
                    (framed(outcome, picture, None, _SIDE), caption, None)
                    for picture, caption in zip(pictures, captions, strict=True)
                ],
            )
        )
        kind = "attention" if outcome.card.adaptation is None else GRADIENT_MAP
    for number, layer in enumerate(layers, start=1):
        maps = [layer.query, *(None if layer.support is None else layer.support[i] for i in shown)]
        weights = [None, *(None if layer.task is None else float(layer.task[i]) for i in shown)]
        above = [""] * len(captions) if rows else captions
        images = [framed(outcome, p, heat, _SIDE) for p, heat in zip(pictures, maps, strict=True)]
        name = f"layer {number}" if len(layers) > 1 else kind
        tiles = list(zip(images, above, weights, strict=True))
        # Of the query alone, it says nothing of the examples, which stand in the first row.
        alone = layer.task is None and layer.support is None
        rows.append((name, tiles[:1] if alone else tiles))
    return rows


def heaviest(layers: Sequence[Layer], count: int) -> list[int]:
    """Which of `count` examples to show, by their weights in all layers."""
    total = np.zeros(count)
    for layer in layers:
        total += 0 if layer.task is None else layer.task
    order = (-total).argsort(kind="stable")
    return sorted(order[:EXAMPLES].tolist())


def numbers(outcome: Outcome, index: int) -> Iterator[list[str | int | float]]:
    """Query `index`, layer by layer: a row for the query and one for every example, as query,
    layer, image, class, task attention and the spatial attention row by row; "" for what is not
    there."""
    query = outcome.queries[index].ref.name
    for number, layer in enumerate(layers_of(outcome, index), start=1):
        seen = [] if layer.query is None else layer.query.flatten().tolist()
        yield [query, number, query, "", "", *seen]
        for i, (label, picture) in enumerate(zip(outcome.labels, outcome.support, strict=True)):
            weight = "" if layer.task is None else float(layer.task[i])
            seen = [] if layer.support is None else layer.support[i].flatten().tolist()
            yield [query, number, picture.ref.name, label, weight, *seen]
