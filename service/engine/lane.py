"""A lane: one worker thread over what gathers while it works."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress

from service.engine import events as told
from service.engine.episode import Answer
from service.engine.events import Events
from service.engine.gathering import Gathering, Job
from service.engine.stages import answers
from service.problems import NotReady, OutOfMemory

log = logging.getLogger(__name__)

#: How the runtimes word it; their exceptions have no class in common.
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "alloc_failed")


class Lane:
    """No timer: the worker takes what waits, and while it runs that, more may gather."""

    def __init__(self, name: told.Lane, batch_images: int | None, events: Events) -> None:
        self._name, self._events = name, events
        self._waiting = Gathering(batch_images, events)
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._closed = False
        self._worker = self._thread()

    def start(self) -> None:
        self._worker.start()

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def put(self, job: Job) -> None:
        """Raises `NotReady` once closed, and where no worker can be had."""
        with self._changed:
            if self._closed:
                raise NotReady("the service is stopping")
            if not self.alive and not self._revive():
                raise NotReady("the engine's worker has stopped")
            self._waiting.append(job)
            self._changed.notify()
        job.answer.add_done_callback(lambda answer: self._forget(job, answer))

    def close(self) -> None:
        """Refuse new jobs and give up those that wait; the one that runs is finished."""
        with self._changed:
            self._closed = True
            left = self._waiting.drain()
            self._changed.notify()
        for job in left:
            if job.claim(self._events):
                self._events.dropped(job.episode.model, "stopping")
                job.answer.set_exception(NotReady("the service is stopping"))

    def join(self, timeout_s: float) -> None:
        """Wait for the run that was going on."""
        if self._worker.is_alive():
            self._worker.join(timeout_s)

    def _thread(self) -> threading.Thread:
        return threading.Thread(target=self._live, name=f"engine-{self._name}", daemon=True)

    def _live(self) -> None:
        """Work, and should that end in a fault: fail what ran and leave a successor."""
        try:
            self._work()
        except BaseException:  # whatever it is, somebody must go on working
            log.critical("the %s worker died", self._name, exc_info=True)
        with self._changed:
            lost, self._running = self._running, []
            if not self._closed:
                self._revive()
        for job in lost:
            with suppress(Exception):
                job.answer.set_exception(NotReady("the engine's worker died; send it again"))

    def _revive(self) -> bool:
        """Start a new worker. Called with the lock held."""
        self._worker = self._thread()
        try:
            self._worker.start()
        except RuntimeError:  # no more threads
            log.critical("the %s worker cannot be started", self._name)
            return False
        self._events.restarted(self._name)
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                batch = self._waiting.next()
            if not batch:
                continue
            self._running = batch
            started = time.perf_counter()
            for job in batch:
                self._events.stage(job.episode.model, "queue", started - job.queued)
            self._run(batch, started)
            self._running = []

    def _forget(self, job: Job, answer: Future[Answer]) -> None:
        """A cancelled job must not hold its images until its turn comes."""
        if answer.cancelled():
            with self._changed:
                waited = self._waiting.forget(job)
            if waited:
                job.left(self._events)

    def _run(self, jobs: Sequence[Job], started: float) -> None:
        """Run jobs of one model; what fails together is tried again in halves, down to one."""
        runtime, model = jobs[0].runtime, jobs[0].episode.model
        images = sum(job.episode.images for job in jobs)
        self._events.batch(model, self._name, len(jobs), images)
        try:
            for row, answer in answers(runtime, [job.episode for job in jobs], self._events):
                job = jobs[row]
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    answer.seconds["queue"] = started - job.queued
                    job.answer.set_result(answer)
        except Exception as error:  # must reach the callers, not end the worker
            fault = error
        else:
            return
        left = [job for job in jobs if not job.answer.done()]
        if len(jobs) == 1:
            for job in left:
                job.answer.set_exception(_told(fault, model))
            return
        if is_out_of_memory(fault):
            self._events.halved(model, self._name, len(jobs))
        log.warning("%s: %d requests failed together: %s", model, len(jobs), fault)
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            if half:
                self._run(half, started)


def is_out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def _told(error: Exception, model: str) -> Exception:
    if not is_out_of_memory(error):
        return error
    log.error("%s: out of memory: %s", model, error)
    return OutOfMemory(f"{model} ran out of memory on this request alone; send fewer images")
