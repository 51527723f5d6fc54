"""One episode in several presentation orders of its support set, and the mean of their answers.

For learners that read the examples one after another, whose answer depends on the order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.engine.episode import Answer, Attention, Encoded, Floats


def permutations(count: int, orders: int) -> list[NDArray[np.int64]]:
    """Fixed orders of `count` examples, the first as they came: the same in every process."""
    given = list(range(count))
    drawn = (random.Random(number).sample(given, count) for number in range(1, orders))
    return [np.array(order, np.int64) for order in (given, *drawn)]


def spread(task: Encoded) -> list[Encoded]:
    """The task once for each of its orders; its images are encoded, each once."""
    episode, support = task.episode, task.support
    if episode.orders == 1:
        return [task]
    return [
        Encoded(
            replace(
                episode,
                labels=episode.labels[order],
                state=episode.state
                and {name: value[n : n + 1] for name, value in episode.state.items()},
            ),
            None if support is None else support[order],
            task.query,
        )
        for n, order in enumerate(permutations(len(episode.labels), episode.orders))
    ]


def mean(task: Encoded, answers: Sequence[Answer | Exception]) -> Answer | Exception:
    """One answer from those in each order: mean probabilities, uncertainty and attention, with the
    examples as they came. The first fault is that of all."""
    first = answers[0]
    if len(answers) == 1:
        return first
    found: list[Answer] = []
    for answer in answers:
        if isinstance(answer, Exception):
            return answer
        found.append(answer)
    orders = permutations(len(task.episode.labels), len(answers))
    backs = [order.argsort() for order in orders]
    probabilities = np.mean([answer.probabilities for answer in found], axis=0)
    tiny = np.finfo(np.float32).tiny

    def over(parts: Sequence[Floats | None]) -> Floats | None:
        given = [part for part in parts if part is not None]
        return np.mean(given, axis=0, dtype=np.float32) if given else None

    def returned(parts: Sequence[Floats | None]) -> list[Floats | None]:
        """With the examples, the third axis, as they came."""
        return [
            None if part is None else part[:, :, back]
            for part, back in zip(parts, backs, strict=True)
        ]

    attention = Attention(
        task=over(returned([answer.attention.task for answer in found])),
        query=over([answer.attention.query for answer in found]),
        support=over(returned([answer.attention.support for answer in found])),
    )
    states = [answer.state for answer in found if answer.state is not None]
    return Answer(
        np.log(np.maximum(probabilities, tiny)).astype(np.float32),
        attention,
        found[0].seconds,
        uncertainty=over([answer.uncertainty for answer in found]),
        features=None if found[0].features is None else task.support,
        state={name: np.concatenate([state[name] for state in states]) for name in states[0]}
        if states
        else None,
    )
