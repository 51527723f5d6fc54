"""An `Outcome` as the documented answer, attention drawn or as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models_zoo.cards import Card
from service.classifier import Outcome
from service.images import Picture
from service.overlays import data_url, overlay
from service.problems import AnswerTooLarge
from service.schemas import AttentionMode, Predictions
from service.settings import Settings

_DIGITS = 6
#: A weight of the task attention comes with its example and label: as long as five numbers.
_LABELLED = 5


def check_asked(
    card: Card, examples: int, queries: int, mode: AttentionMode, settings: Settings
) -> None:
    """Refuse what would be too large an answer before any image is read, by the attention that the
    card promises. Raises `AnswerTooLarge`."""
    spec, each = card.attention, card.attention.layers * queries
    maps = [(each, spec.query), (each * examples, spec.support)]
    _check(
        mode,
        settings,
        queries,
        weights=each * examples if spec.task else 0,
        pictures=sum(count for count, shape in maps if shape),
        values=sum(count * shape[0] * shape[1] for count, shape in maps if shape),
    )


def check_size(outcome: Outcome, mode: AttentionMode, settings: Settings) -> None:
    """Refuse an answer that would be too large before it is built. Raises `AnswerTooLarge`."""
    found = outcome.answer.attention
    parts = [part for part in (found.query, found.support) if part is not None]
    _check(
        mode,
        settings,
        len(outcome.queries),
        weights=0 if found.task is None else found.task.size,
        pictures=sum(part.size // (part.shape[-1] * part.shape[-2]) for part in parts),
        values=sum(part.size for part in parts),
    )


def _check(
    mode: AttentionMode, settings: Settings, queries: int, weights: int, pictures: int, values: int
) -> None:
    """`weights` of the task attention; `pictures` as overlays, or their `values` as maps."""
    if mode is AttentionMode.none:
        return
    numbers = weights * _LABELLED
    if mode is AttentionMode.maps:
        numbers += values
    else:
        maps = " or attention=maps" if numbers + values <= settings.max_map_values else ""
        _refuse_above(
            settings.max_overlays, pictures, f"{pictures} overlay pictures", queries, maps
        )
    _refuse_above(settings.max_map_values, numbers, f"attention of {numbers} numbers", queries)


def _refuse_above(most: int, count: int, what: str, queries: int, instead: str = "") -> None:
    if count > most:
        alone = count <= most * queries  # whether one query would be answered
        advice = "Send fewer queries at a time" if alone else f"Ask with fewer examples{instead}"
        raise AnswerTooLarge(f"{what}; at most {most} are given. {advice}")


def build(
    outcome: Outcome, mode: AttentionMode, top_k: int | None, settings: Settings
) -> Predictions:
    """The answer. Probabilities fall; equal ones keep the order of the classes.

    Raises `AnswerTooLarge`.
    """
    check_size(outcome, mode, settings)
    seconds = outcome.answer.seconds | {"decode": outcome.decode_seconds}
    rows, unsure = outcome.answer.probabilities, outcome.answer.uncertainty
    orders = np.argsort(-rows, axis=1, kind="stable")
    # Validated in one go: made one by one, its many small parts would cost ten times as much.
    return Predictions.model_validate(
        {
            "model": outcome.card.id,
            "model_ref": outcome.card.ref,
            "support_set_ref": outcome.support_key,
            "classes": outcome.classes,
            "predictions": [
                _prediction(outcome, index, row, order, mode, top_k, settings)
                | {"uncertainty": None if unsure is None else float(unsure[index])}
                for index, (row, order) in enumerate(
                    zip(rows.tolist(), orders.tolist(), strict=True)
                )
            ],
            "timing_ms": {stage: round(s * 1000, 3) for stage, s in seconds.items()},
        }
    )


def _prediction(
    outcome: Outcome,
    index: int,
    row: list[float],
    order: list[int],
    mode: AttentionMode,
    top_k: int | None,
    settings: Settings,
) -> dict[str, object]:
    """A `QueryPrediction`; `order` has the most probable class first."""
    classes, best = outcome.classes, order[0]
    return {
        "index": index,
        "filename": outcome.queries[index].ref.name,
        "label": classes[best],
        "confidence": row[best],
        "probabilities": [{"label": classes[i], "probability": row[i]} for i in order[:top_k]],
        "attention": None
        if mode is AttentionMode.none
        else _attention(outcome, index, mode, settings.overlay_side),
    }


def _attention(outcome: Outcome, index: int, mode: AttentionMode, side: int) -> dict[str, object]:
    """An `Attention`."""
    found, labels = outcome.answer.attention, outcome.labels
    task = query = support = None
    if found.task is not None:
        task = [
            [
                {"example": i, "label": label, "weight": _round(weight)}
                for i, (label, weight) in enumerate(zip(labels, layer, strict=True))
            ]
            for layer in found.task[:, index]
        ]
    # Each part is a list per layer of either numbers or pictures.
    if found.query is not None:
        query = [
            _map(layer, outcome, outcome.queries[index], mode, side)
            for layer in found.query[:, index]
        ]
    if found.support is not None:
        support = [
            _maps(layer, outcome, outcome.support, mode, side // 2)
            for layer in found.support[:, index]
        ]
    return {"task": task, "query": query, "support": support}


def _maps(
    weights: NDArray[np.float32],
    outcome: Outcome,
    pictures: Sequence[Picture],
    mode: AttentionMode,
    side: int,
) -> list[object]:
    shown: Sequence[Picture | None] = pictures or [None] * len(weights)
    return [
        _map(mine, outcome, picture, mode, side)
        for mine, picture in zip(weights, shown, strict=True)
    ]


def _map(
    weights: NDArray[np.float32],
    outcome: Outcome,
    picture: Picture | None,
    mode: AttentionMode,
    side: int,
) -> object:
    """One map: rows of numbers, or a picture's data URL."""
    if mode is AttentionMode.maps or picture is None or picture.shown is None:
        return np.nan_to_num(weights).astype(np.float64).round(_DIGITS).tolist()
    return data_url(overlay(picture.shown, picture.size, weights, outcome.card.input, side))


def _round(weight: np.float32) -> float:
    return round(float(np.nan_to_num(weight)), _DIGITS)
