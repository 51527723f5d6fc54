"""Where jobs wait and become batches: it answers only `append`, `forget` and `next`."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from service.engine.episode import Answer, Episode
from service.engine.events import Events
from service.engine.runtime import Runtime
from service.problems import DeadlineExceeded

#: Images of a batch: many where they are one pass, few where they only follow one another, since
#: who comes meanwhile waits for the end.
_TOGETHER, _APART = 4096, 64


@dataclass(eq=False)
class Job:
    """One episode on its way; cancelling the future drops it, unless it already runs.

    `deadline` is a time of `time.perf_counter`.
    """

    episode: Episode
    runtime: Runtime
    answer: Future[Answer] = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)
    deadline: float | None = None

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.perf_counter() > self.deadline

    def left(self, events: Events) -> None:
        """Tell why it was cancelled: at the deadline the request itself does so."""
        events.dropped(self.episode.model, "deadline" if self.late else "gone")

    def claim(self, events: Events) -> bool:
        """Whether it is to be run now: not when its caller has gone, or its time is over."""
        if not self.answer.set_running_or_notify_cancel():
            self.left(events)
            return False
        if self.late:
            events.dropped(self.episode.model, "deadline")
            self.answer.set_exception(DeadlineExceeded("the time was over before it could run"))
            return False
        return True


class Gathering:
    """Jobs by model, each model's in order of arrival. Not safe in threads: its lane locks.

    Models take turns, a batch each, so that none starves another. A batch holds at most `images`
    images, counted as those to encode but one at least for each job, once for each of its orders,
    and always one job; with 0 it holds one job alone, and with None as many as suit the model's
    device.
    """

    def __init__(self, images: int | None, events: Events) -> None:
        self._images, self._events = images, events
        self._waiting: dict[Runtime, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def append(self, job: Job) -> None:
        self._waiting.setdefault(job.runtime, deque()).append(job)

    def forget(self, job: Job) -> bool:
        """Let go of a job that was cancelled; False where it is not here."""
        jobs = self._waiting.get(job.runtime, deque())
        if job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.runtime]
        return True

    def next(self) -> list[Job]:
        """The next batch, claimed; empty where nothing waits that is still wanted."""
        while self._waiting:
            runtime, jobs = next(iter(self._waiting.items()))
            del self._waiting[runtime]
            batch: list[Job] = []
            room = self._room(runtime)
            while jobs and (not batch or _weight(jobs[0]) <= room):
                job = jobs.popleft()
                if job.claim(self._events):
                    batch.append(job)
                    room -= _weight(job)
            if jobs:
                self._waiting[runtime] = jobs  # at the end of the round
            if batch:
                return batch
        return []

    def _room(self, runtime: Runtime) -> int:
        if self._images is not None:
            return self._images
        return _TOGETHER if runtime.joins_tasks else _APART

    def drain(self) -> list[Job]:
        """Everything that waits, no longer waiting."""
        jobs = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        return jobs


def _weight(job: Job) -> int:
    return max(1, job.episode.images) * job.episode.orders
