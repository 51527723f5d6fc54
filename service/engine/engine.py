"""The engine: episodes go in, answers come out; a lane for forward passes, one for gradients."""

from __future__ import annotations

import asyncio
import time

from service.engine.episode import Answer, Episode
from service.engine.events import Events
from service.engine.gathering import Job
from service.engine.lane import Lane
from service.engine.models import Models


class Engine:
    """`submit` is all that the rest of the service knows."""

    def __init__(
        self, models: Models, batch_images: int | None = None, events: Events | None = None
    ) -> None:
        """Batches hold at most `batch_images` images, by default as suits the device; 0 runs every
        request by itself."""
        events = events or Events()
        self._models, self._events = models, events
        self._forward = Lane("forward", batch_images, events)
        self._gradient = Lane("gradient", batch_images, events)
        self._lanes = (self._forward, self._gradient)

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    @property
    def alive(self) -> bool:
        """Whether every lane has a worker."""
        return all(lane.alive for lane in self._lanes)

    def close(self, grace_s: float = 60.0) -> None:
        """Refuse new episodes, give up those that wait, and wait for those that run.

        A run that takes longer than `grace_s` is left behind: its thread ends with the process.
        """
        until = time.perf_counter() + grace_s
        for lane in self._lanes:
            lane.close()
        for lane in self._lanes:
            lane.join(max(0.0, until - time.perf_counter()))

    async def submit(self, episode: Episode, deadline: float | None = None) -> Answer:
        """Run one episode. Cancelling drops it if it has not started, and so does `deadline`, a
        time of `time.perf_counter`.

        Raises `UnknownModel`, `ModelUnavailable`, `Diverged`, `DeadlineExceeded`, `OutOfMemory` or
        `NotReady`.
        """
        start = time.perf_counter()
        runtime = await self._models.runtime(episode.model)
        job = Job(episode, runtime, queued=start, deadline=deadline)
        lane = self._forward if runtime.card.adaptation is None else self._gradient
        lane.put(job)
        answer = await asyncio.wrap_future(job.answer)
        self._events.request(episode.model, start, answer.seconds)
        return answer
