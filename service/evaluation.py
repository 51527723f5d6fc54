"""How well a stored support set tells its own classes apart: leave-one-out, model by model.

Each example is asked about by the others: N tasks of N - 1 examples. An example is encoded once
for all of them; the tasks then go through the engine as any request does, a few at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models_zoo.cards import Card
from service.classifier import Classifier, Learned, blank
from service.engine.episode import Episode
from service.problems import (
    DeadlineExceeded,
    Diverged,
    ModelUnavailable,
    NothingToLeaveOut,
    NotReady,
    OneClass,
    OutOfMemory,
    Problem,
    TooManyClasses,
    TooManyImages,
    TooManyShots,
)
from service.stored import StoredSupport
from service.tasks import check_limits
from service.together import gathered

#: What is one model's own trouble with a set, and no reason to judge no other.
_ITS_OWN = (
    TooManyClasses,
    TooManyShots,
    TooManyImages,
    Diverged,
    ModelUnavailable,
    OutOfMemory,
    DeadlineExceeded,
)
#: Examples of the tasks that share a pass, where the setting leaves it to the device.
_TOGETHER = 1024
#: Of the time there is, so much is kept for the answer.
_SPARE, _MOST_SPARE_S = 0.1, 2.0


@dataclass(frozen=True)
class Verdict:
    """What a model took the example at this position for; classes by index.

    `confidence` is the probability of what it said, `belief` that of the truth.
    """

    example: int
    truth: int
    said: int
    confidence: float
    belief: float


@dataclass(frozen=True)
class Judgement:
    """One model's verdicts, or the `fault` for which there are none."""

    card: Card
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    fault: Problem | None = None

    @property
    def correct(self) -> int:
        return sum(verdict.said == verdict.truth for verdict in self.verdicts)


def left_out(labels: Sequence[str]) -> list[int]:
    """The examples that can be left out: those whose class has another one."""
    shots = Counter(labels)
    return [i for i, label in enumerate(labels) if shots[label] > 1]


def check_set(labels: Sequence[str]) -> None:
    """Raises `OneClass` or `NothingToLeaveOut`."""
    if len(set(labels)) < 2:
        raise OneClass("leave-one-out needs examples of at least two classes")
    if not left_out(labels):
        raise NothingToLeaveOut("every class has a single example; add a second one of some class")


async def evaluate(
    classifier: Classifier, stored: StoredSupport, models: Sequence[str], deadline: float
) -> list[Judgement]:
    """Judge models one after another, in this order but those that adapt by gradient steps last.

    One that does not take the set, or is not done in time, has its `fault`. Raises `UnknownModel`,
    `OneClass`, `NothingToLeaveOut`, `SetChanged`; `DeadlineExceeded` where none was done in time.
    """
    cards = {model: classifier.models.card(model) for model in models}
    check_set(stored.labels)
    if not cards:
        raise NotReady("the zoo has no entries")
    now = time.perf_counter()
    until = deadline - min(_MOST_SPARE_S, _SPARE * (deadline - now))
    found = {}
    for model, card in sorted(cards.items(), key=lambda item: item[1].adaptation is not None):
        start = time.perf_counter()
        try:
            async with asyncio.timeout(until - start):
                verdicts = await leave_one_out(classifier, model, stored, until)
            found[model] = Judgement(card, verdicts, time.perf_counter() - start)
        except TimeoutError:
            detail = f"{model} was not done in time; ask for it alone, or allow more time"
            found[model] = Judgement(card, fault=DeadlineExceeded(detail))
        except _ITS_OWN as fault:
            found[model] = Judgement(card, fault=fault)
    if all(isinstance(each.fault, DeadlineExceeded) for each in found.values()):
        raise DeadlineExceeded("no model was done in time; name fewer, or allow more time")
    return [found[model] for model in cards]


async def leave_one_out(
    classifier: Classifier, model: str, stored: StoredSupport, deadline: float | None = None
) -> list[Verdict]:
    """Ask about each example that can be left out, as the stateless route would answer.

    Raises as `Classifier.learn`.
    """
    check_limits(stored.labels, 1, classifier.models.card(model))
    learned = await classifier.learn(model, stored, features=True, deadline=deadline)
    runtime = await classifier.models.runtime(model)
    # Where tasks share a pass, as many as fill a batch; elsewhere one by one, so that whoever else
    # asks waits for one task and not for many.
    room, count = classifier.settings.batch_images or _TOGETHER, len(stored.labels)
    together = max(1, room // count) if runtime.joins_tasks else 1
    examples, verdicts = left_out(stored.labels), []
    for start in range(0, len(examples), together):
        part = examples[start : start + together]
        verdicts += await gathered(
            _verdict(classifier, learned, stored.labels, i, deadline) for i in part
        )
    return verdicts


async def _verdict(
    classifier: Classifier,
    learned: Learned,
    labels: Sequence[str],
    example: int,
    deadline: float | None,
) -> Verdict:
    assert learned.features is not None
    rest = [i for i in range(len(labels)) if i != example]
    index = {label: i for i, label in enumerate(learned.classes)}
    none = blank(learned.card, 0)
    answer = await classifier.engine.submit(
        Episode(
            model=learned.card.id,
            support=none,
            labels=np.array([index[labels[i]] for i in rest], np.int64),
            way=len(index),
            query=none,
            inner_lr=learned.rates,
            known={place: learned.features[i] for place, i in enumerate(rest)},
            asked=learned.features[example][None],
        ),
        deadline,
    )
    [row] = answer.probabilities
    best = int(np.argsort(-row, kind="stable")[0])
    return Verdict(
        example=example,
        truth=index[labels[example]],
        said=best,
        confidence=float(row[best]),
        belief=float(row[index[labels[example]]]),
    )
