"""Episodes of one model run together: encode all images, then adapt and predict group by group."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

import numpy as np

from service.engine.episode import (
    Answer,
    Attention,
    Batch,
    Encoded,
    Episode,
    Floats,
    State,
    check,
    stack,
)
from service.engine.events import Events, Stage
from service.engine.orders import mean, spread
from service.engine.runtime import Prediction, Runtime
from service.problems import Diverged

#: A group's sizes agree to within a quarter of the power of two below them: so much padding.
_STEPS = 4


def answers(
    runtime: Runtime, episodes: Sequence[Episode], events: Events | None = None
) -> Iterator[tuple[int, Answer | Exception]]:
    """Yield each episode's position and its answer as soon as it is there, in no set order.

    An episode's own fault (`Diverged`, or `ValueError` for numbers that are not finite) is yielded
    in place of its answer; what befalls the batch is raised.
    """
    clock = _Clock(runtime.card.id, events or Events())
    for episode in episodes:
        check(episode)
    encoded = _encode(runtime, episodes)
    clock.stop("encode")
    groups: dict[Hashable, list[int]] = {}
    # Padding among the queries would change the answers of a transductive entry.
    joins = runtime.joins_tasks and not runtime.card.transductive
    for row, task in enumerate(encoded):
        groups.setdefault(_likeness(task) if joins else row, []).append(row)
    for rows in groups.values():
        yield from zip(rows, _heads(runtime, [encoded[row] for row in rows], clock), strict=True)


def _encode(runtime: Runtime, episodes: Sequence[Episode]) -> list[Encoded]:
    """All images of all episodes go through the encoder at once."""
    images = [part for e in episodes for part in (e.support, e.query) if len(part)]
    features = np.zeros(0, np.float32)
    if images:
        features = runtime.encode(images[0] if len(images) == 1 else np.concatenate(images))
    encoded, start = [], 0
    for episode in episodes:
        middle = start + len(episode.support)
        end = middle + len(episode.query)
        support = _support(episode, features[start:middle])
        query = features[middle:end] if episode.asked is None else episode.asked
        encoded.append(Encoded(episode, support, query))
        start = end
    return encoded


def _support(episode: Episode, fresh: Floats) -> Floats | None:
    """Known and fresh features in the order of the examples."""
    if episode.state is not None:
        return None
    if not episode.known:
        return fresh
    rest = iter(fresh)
    return np.stack(
        [episode.known[i] if i in episode.known else next(rest) for i in range(len(episode.labels))]
    )


def _likeness(task: Encoded) -> Hashable:
    """Tasks with the same one may share a pass."""
    episode, q = task.episode, _size(len(task.query))
    if episode.state is not None:
        return tuple((name, value.shape) for name, value in sorted(episode.state.items())), q
    return episode.inner_lr, _size(len(episode.labels)), _size(episode.way), q


def _size(count: int) -> int:
    """`count` rounded up to a step of a quarter of the power of two below it."""
    step = max(1, (1 << count.bit_length() - 1) // _STEPS)
    return -(-count // step) * step


def _heads(runtime: Runtime, tasks: Sequence[Encoded], clock: _Clock) -> list[Answer | Exception]:
    """Adapt and ask tasks of one group in one pass, each in all of its orders."""
    clock.restart()
    whole, tasks = tasks, [turned for task in tasks for turned in spread(task)]
    states = [task.episode.state for task in tasks if task.episode.state is not None]
    if states:
        state = {name: np.concatenate([s[name] for s in states]) for name in states[0]}
    else:
        batch = Batch.of(tasks)
        state = runtime.adapt(
            batch.support, batch.labels, batch.mask, batch.class_mask, batch.inner_lr
        )
        clock.stop("adapt")
    query = stack([task.query for task in tasks])
    found = runtime.predict(state, query, any(task.episode.attention for task in tasks))
    if found.logits.shape[:2] != query.shape[:2]:
        raise ValueError(f"{runtime.card.id}: {found.logits.shape} logits of {query.shape} queries")
    clock.stop("predict")
    answers = iter(
        [_answer(found, state, row, task, clock.seconds) for row, task in enumerate(tasks)]
    )
    return [mean(task, list(islice(answers, task.episode.orders))) for task in whole]


def _answer(
    found: Prediction, state: State, row: int, task: Encoded, seconds: dict[str, float]
) -> Answer | Exception:
    """Cut one episode's part out of the group: `[: Q, : way]`, and attention without padding."""
    episode = task.episode
    q, n = len(task.query), len(episode.labels)
    logits = found.logits[row, :q, : episode.way]
    if logits.shape[1] != episode.way:
        return ValueError(f"{episode.model} answered {logits.shape[1]} of {episode.way} classes")
    if not np.isfinite(logits).all():
        fault = f"{episode.model} gave numbers that are not finite"
        if episode.inner_lr is None:
            return ValueError(fault)
        return Diverged(f"{fault}; try fewer steps or a smaller inner_lr")

    def cut(weights: Floats | None, *, by_example: bool) -> Floats | None:
        if weights is None or not episode.attention:
            return None
        return weights[row, :, :q, :n] if by_example else weights[row, :, :q]

    attention = Attention(
        task=cut(found.task_attention, by_example=True),
        query=cut(found.query_attention, by_example=False),
        support=cut(found.support_attention, by_example=True),
    )
    kept = episode.remember and episode.state is None
    return Answer(
        logits,
        attention,
        dict(seconds),
        uncertainty=None if found.uncertainty is None else found.uncertainty[row, :q],
        features=task.support if kept else None,
        # A copy: a view would keep the whole group's arrays in memory.
        state={name: value[row : row + 1].copy() for name, value in state.items()}
        if kept
        else None,
    )


class _Clock:
    """Seconds of each stage as this batch's episodes see them, told to `events` as they pass."""

    def __init__(self, model: str, events: Events) -> None:
        self._model, self._events = model, events
        self.seconds = {"encode": 0.0, "adapt": 0.0, "predict": 0.0}
        self._start = time.perf_counter()

    def restart(self) -> None:
        """A new group begins: its stages are its own, the encoder was shared."""
        self.seconds |= {"adapt": 0.0, "predict": 0.0}
        self._start = time.perf_counter()

    def stop(self, stage: Stage) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._start
        self._events.stage(self._model, stage, self.seconds[stage])
        self._start = now
