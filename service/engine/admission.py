"""Admission: a permit per request, counted in images, taken before any work and held to the end.

The largest request counts for half of what there is room for, so that it neither locks out
everybody else nor waits for the moment when nobody else asks. Gradient steps take long, and so do
the permits of who waits for them: such requests have half of the room together. So has an API key:
what one asks for leaves room to the others.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from service.engine.events import Events
from service.problems import DeadlineExceeded, Overloaded

T = TypeVar("T")

_SMOOTHING = 0.2
_MAX_RETRY_AFTER = 60


async def in_time(
    work: Awaitable[T], timeout_s: float, asked_s: float | None = None
) -> tuple[T, float]:
    """What `work`, which comes before a permit, gives, and the seconds that are left for the rest.

    `asked_s`: as of `Admission.admit`. Raises `DeadlineExceeded`.
    """
    start = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            found = await work
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within {asked_s or timeout_s:g} s") from None
    return found, max(0.0, timeout_s - (time.perf_counter() - start))


class Admission:
    """Bounds the images that wait or run."""

    def __init__(self, max_images: int, timeout_s: float, events: Events | None = None) -> None:
        self._max_images, self._most = max_images, max(1, max_images // 2)
        self._timeout_s = timeout_s
        self._events = events or Events()
        self._lock = threading.RLock()
        #: Without gradient steps, and with them.
        self._seconds_per_image = [0.01, 0.01]
        self.held = self._gradient = 0
        self._by = Counter[str]()

    @asynccontextmanager
    async def admit(
        self,
        images: int,
        timeout_s: float | None = None,
        gradient: bool = False,
        *,
        asked_s: float | None = None,
        key: str = "",
    ) -> AsyncIterator[float]:
        """Hold a permit for `images` images, and a deadline for what is done under it.

        Gives the deadline as a time of `time.perf_counter`; `timeout_s` is the caller's own wish,
        or what is left of it where `asked_s` was, `gradient` whether gradient steps are part of it,
        `key` the id of the caller's API key, "" for none.
        Raises `Overloaded` with Retry-After, or `DeadlineExceeded`.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        images = self._counted(images, gradient)
        self._take(images, gradient, key)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                yield start + timeout_s
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {asked_s or timeout_s:g} s") from None
        else:
            # Others were served meanwhile, so this counts the wait that a newcomer would see.
            seconds = (time.perf_counter() - start) / max(1, self.held)
            known = self._seconds_per_image[gradient]
            self._seconds_per_image[gradient] += _SMOOTHING * (seconds - known)
        finally:
            self._add(-images, gradient, key)

    def keep(self, images: int, job: Future[Any], gradient: bool = False) -> None:
        """Count `images` until `job` is done: what is given up while it runs still has its thread.

        Refused to nobody: it is called under a permit that ends now.
        """
        images = self._counted(images, gradient)
        self._add(images, gradient)
        job.add_done_callback(lambda _: self._add(-images, gradient))

    def _counted(self, images: int, gradient: bool) -> int:
        return min(images, max(1, self._most // 2) if gradient else self._most)

    def _take(self, images: int, gradient: bool = False, key: str = "") -> None:
        with self._lock:
            self._check(self.held, images, self._max_images, gradient)
            if gradient:
                self._check(self._gradient, images, self._most, gradient)
            if key:
                self._check(self._by[key], images, self._most, gradient)
            self._add(images, gradient, key)

    def _check(self, held: int, images: int, most: int, gradient: bool) -> None:
        if held and held + images > most:
            wait = math.ceil(held * self._seconds_per_image[gradient])
            seconds = min(max(1, wait), _MAX_RETRY_AFTER)
            self._events.refused(images)
            raise Overloaded(
                f"{held} images are waiting and {images} more would exceed {most}; "
                f"try again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )

    def _add(self, images: int, gradient: bool, key: str = "") -> None:
        with self._lock:
            self.held += images
            self._gradient += images if gradient else 0
            self._by[key] += images
            if not self._by[key]:
                del self._by[key]
        self._events.queue(self.held)
