"""Threads that wait for the database, so that the event loop need not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from service.problems import StoreUnavailable

log = logging.getLogger(__name__)

R = TypeVar("R")

RETRY_AFTER_S = 5
#: Calls that may wait for a thread: a second's worth of a database in health. With one that hangs,
#: more would only hold memory for callers who have gone.
MOST_WAITING = 256


class Threads:
    """So many threads, and the calls that wait for one. Used in one event loop; `close` after."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)
        #: Calls that have not begun.
        self.waiting = 0

    async def run(self, call: Callable[[], R]) -> R:
        """Run `call` in the order asked. Cancelled before it has begun, it never is; after that it
        is finished all the same. Raises `StoreUnavailable` where too many wait."""
        if self.waiting >= MOST_WAITING:
            raise unavailable(f"{self.waiting} calls wait for the database already")
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        loop, running = asyncio.get_running_loop(), self._pool.submit(call)
        # Freed by the thread, not by the caller: one that gives up leaves it at work.
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Wait for what has begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """A block that waits for the database: for a lock in it, or because it hangs. Raises
    `StoreUnavailable` where that takes longer; what a thread has begun is finished all the same."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        log.warning("the database did not answer within %g s", seconds)
        raise unavailable(f"the database did not answer within {seconds:g} s") from None


def unavailable(reason: str) -> StoreUnavailable:
    """The problem to raise, with Retry-After."""
    return StoreUnavailable(
        f"{reason}; try again in {RETRY_AFTER_S} s", headers={"Retry-After": str(RETRY_AFTER_S)}
    )
