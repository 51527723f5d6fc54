"""What a user asks, checked against a card: labelled examples and queries to one episode."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models_zoo.cards import Card
from service.images import Upload
from service.problems import (
    AdaptationRange,
    InvalidLabel,
    LabelCount,
    NoAdaptation,
    NoOrders,
    NoQuery,
    NoSupport,
    OneClass,
    Problem,
    TooManyClasses,
    TooManyImages,
    TooManyShots,
)
from service.text import is_blank, is_plain

#: Most presentation orders that a request may be averaged over.
MAX_ORDERS = 16


@dataclass(frozen=True)
class Example:
    """One labelled support image; or, from an archive of which the rest is taken, what is wrong
    with it."""

    label: str
    upload: Upload
    problem: Problem | None = None


@dataclass(frozen=True)
class Ask:
    """One stateless request: support set, queries, and the adaptation's hyperparameters."""

    model: str
    support: tuple[Example, ...]
    queries: tuple[Upload, ...]
    steps: int | None = None
    inner_lr: float | None = None
    orders: int | None = None


def pair(
    uploads: Sequence[Upload], labels: Sequence[str], max_length: int, one_for_all: bool = False
) -> list[Example]:
    """Images and labels in the same order -> examples; `one_for_all`: a single label may stand for
    every image. Raises `LabelCount` or `InvalidLabel`."""
    if one_for_all and len(labels) == 1:
        labels = [clean_label(labels[0], 0, max_length)] * len(uploads)
    if len(uploads) != len(labels):
        raise LabelCount(
            f"support images: {len(uploads)}, labels: {len(labels)}; send one label per image, "
            f"in the same order{', or one label for all' if one_for_all else ''}",
            images=len(uploads),
            labels=len(labels),
        )
    return [
        Example(clean_label(label, index, max_length), upload)
        for index, (label, upload) in enumerate(zip(labels, uploads, strict=True))
    ]


def stored_label(label: str) -> str:
    """A label without surrounding blanks, composed (NFC): folders of one name that two systems
    spell in other bytes are one class."""
    return unicodedata.normalize("NFC", label.strip())


def clean_label(label: str, index: int, max_length: int) -> str:
    """A label as it is stored. Raises `InvalidLabel`."""
    label = stored_label(label)
    fault = ""
    if is_blank(label):
        fault = "is empty"
    elif len(label) > max_length:
        fault = f"has {len(label)} characters; at most {max_length} are taken"
    elif not is_plain(label):
        fault = "holds characters that cannot be printed"
    if fault:
        raise InvalidLabel(f"label {index} {fault}", index=index)
    return label


def classes_of(labels: Sequence[str]) -> list[str]:
    """The classes, sorted: what a model makes of its first output should not hang on which class
    somebody happened to send first."""
    return sorted(set(labels))


def check_limits(labels: Sequence[str], queries: int, card: Card) -> None:
    """Raise the problem of an episode that the model does not take. `labels`: one per example."""
    if not labels:
        raise NoSupport("send support images with labels, or a support archive")
    if not queries:
        raise NoQuery("send at least one query image")
    limits, shots = card.limits, Counter(labels)
    if len(shots) < 2:
        raise OneClass(f"all support images are of class {next(iter(shots))!r}; send two or more")
    if len(shots) > limits.max_way:
        raise TooManyClasses(
            f"{len(shots)} classes; {card.id} takes at most {limits.max_way}",
            classes=len(shots),
            max_way=limits.max_way,
        )
    label, most = shots.most_common(1)[0]
    if most > limits.max_shot:
        raise TooManyShots(
            f"{most} images of class {label!r}; {card.id} takes at most {limits.max_shot} a class",
            label=label,
            shots=most,
            max_shot=limits.max_shot,
        )
    for kind, count, most in (
        ("support", len(labels), limits.max_support),
        ("query", queries, limits.max_query),
    ):
        if count > most:
            raise TooManyImages(
                f"{count} {kind} images; {card.id} takes at most {most}", images=count, limit=most
            )


def order_count(orders: int | None, card: Card) -> int:
    """How many presentation orders to average over. Raises `NoOrders`."""
    if orders is not None and not card.order_dependent:
        raise NoOrders(f"{card.id} does not depend on the order of the examples: omit orders")
    return orders or 1


def learning_rates(
    steps: int | None, inner_lr: float | None, card: Card
) -> tuple[float, ...] | None:
    """One learning rate per adaptation step, or None for a learner without such steps.

    Raises `NoAdaptation` or `AdaptationRange`.
    """
    spec = card.adaptation
    if spec is None:
        if steps is not None or inner_lr is not None:
            raise NoAdaptation(f"{card.id} adapts without gradient steps: omit steps and inner_lr")
        return None
    steps = spec.steps if steps is None else steps
    rate = spec.inner_lr if inner_lr is None else inner_lr
    if not 0 <= steps <= spec.max_steps:
        raise AdaptationRange(f"steps is {steps}; {card.id} takes 0 to {spec.max_steps}")
    if not 0 < rate <= spec.max_inner_lr:  # refuses NaN, too
        raise AdaptationRange(
            f"inner_lr is {rate}; {card.id} takes more than 0 and at most {spec.max_inner_lr}"
        )
    # A graph's loop needs a step to run: one at rate 0 learns as much as none.
    return (rate,) * steps or (0.0,)
