"""The engine: episodes go in, answers come out; one worker thread runs them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from service.engine.episode import Answer, Attention, Batch, Episode, Floats
from service.engine.models import Models
from service.engine.runtime import Prediction, Runtime
from service.problems import Diverged, NotReady

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One episode on its way; cancelling the future drops it, unless it already runs."""

    episode: Episode
    runtime: Runtime
    answer: Future[Answer] = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)


class Engine:
    """`submit` is all that the rest of the service knows.

    The worker takes one job at a time today; `run_batch` takes several of one model, so that
    batching across requests only changes what `_next_batch` gathers.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._closed = False

    def start(self) -> None:
        self._worker.start()

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def close(self) -> None:
        """Refuse new episodes, finish the running one, and give up those that wait."""
        self._closed = True
        self._jobs.put(None)
        if self._worker.is_alive():
            self._worker.join()

    async def submit(self, episode: Episode) -> Answer:
        """Run one episode. Cancelling drops it if it has not started.

        Raises `UnknownModel`, `ModelUnavailable`, `Diverged` or `NotReady`.
        """
        start = time.perf_counter()
        runtime = await self._models.runtime(episode.model)
        if self._closed:
            raise NotReady("the service is stopping")
        job = Job(episode, runtime, queued=start)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.answer)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            runnable = [job for job in batch if job.answer.set_running_or_notify_cancel()]
            if runnable:
                self._run(runnable)

    def _next_batch(self) -> list[Job] | None:
        job = self._jobs.get()
        if job is not None and self._closed:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(NotReady("the service is stopping"))
            return []
        return None if job is None else [job]

    def _run(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        try:
            answers = run_batch(jobs[0].runtime, [job.episode for job in jobs])
        except Exception as error:  # must reach the callers, not end the worker
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            answer.seconds["queue"] = started - job.queued
            job.answer.set_result(answer)


def run_batch(runtime: Runtime, episodes: Sequence[Episode]) -> list[Answer]:
    """Run episodes of one model as one batch: encode all images, then adapt, then predict.

    Raises `Diverged` where gradient steps led to numbers that are not finite.
    """
    seconds: dict[str, float] = {}
    batch = Batch.of(episodes)
    with _timed(seconds, "encode"):
        support, query = batch.arrange(runtime.encode(batch.images()))
    with _timed(seconds, "adapt"):
        state = runtime.adapt(support, batch.labels, batch.mask, batch.class_mask, batch.inner_lr)
    with _timed(seconds, "predict"):
        wanted = any(episode.attention for episode in episodes)
        found = runtime.predict(state, query, wanted)
    expected = (len(episodes), query.shape[1], batch.class_mask.shape[1])
    if found.logits.shape != expected:
        raise ValueError(f"{runtime.card.id}: logits {found.logits.shape}, expected {expected}")
    return [_answer(found, row, episode, seconds) for row, episode in enumerate(episodes)]


def _answer(found: Prediction, row: int, episode: Episode, seconds: dict[str, float]) -> Answer:
    """Cut one episode's part out of the batch: `[: Q, : way]`, and attention without padding."""
    q, n = len(episode.query), len(episode.support)
    logits = found.logits[row, :q, : episode.way]
    if not np.isfinite(logits).all():
        fault = f"{episode.model} gave numbers that are not finite"
        if episode.inner_lr is None:
            raise ValueError(fault)
        raise Diverged(f"{fault}; try fewer steps or a smaller inner_lr")
    if not episode.attention:
        return Answer(logits, Attention(), dict(seconds))

    def cut(weights: Floats | None, *, by_example: bool) -> Floats | None:
        if weights is None:
            return None
        return weights[row, :, :q, :n] if by_example else weights[row, :, :q]

    attention = Attention(
        task=cut(found.task_attention, by_example=True),
        query=cut(found.query_attention, by_example=False),
        support=cut(found.support_attention, by_example=True),
    )
    return Answer(logits, attention, dict(seconds))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
