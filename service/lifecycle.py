"""From the signal to stop to the end: `/readyz` says no, what runs is finished, then it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.middleware import problem_response, refuse
from service.problems import NotReady

#: Answered to the end, and not waited for.
_PROBES = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
_TICK_S = 0.05
#: For the server, once `draining` is over: for last bytes, and clients that do not read them.
TAIL_S = 2


def stop_when_hung_up() -> None:
    """SIGHUP, which a terminal that is closed sends, ends it as SIGTERM does; not under nohup."""
    if sys.platform == "win32":  # there is none
        return
    first = iter([True])

    def on_hangup(number: int, frame: FrameType | None) -> None:
        # Shells pass on the terminal's; a second SIGTERM would end it in the middle of its work.
        if next(first, False):
            signal.raise_signal(signal.SIGTERM)

    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, on_hangup)


class Lifecycle:
    """Whether the service is stopping, and which requests it still works on."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[object]] = set()
        self.over = False
        self._stopped: float | None = None

    def stop(self) -> None:
        """Take no more requests."""
        self._stopped = self._stopped or time.monotonic()

    def give_up(self) -> None:
        """End what still runs."""
        self.over = True
        for task in self.running:
            task.cancel()

    @property
    def stopping(self) -> bool:
        return self._stopped is not None

    @property
    def stopping_s(self) -> float:
        """Seconds since `stop`."""
        return 0.0 if self._stopped is None else time.monotonic() - self._stopped


class Drain:
    """Middleware: notes the requests, and answers new ones 503 while the service is stopping."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PROBES:
            return await self._app(scope, receive, send)
        if self._lifecycle.stopping:
            headers = {"Retry-After": "1", "Connection": "close"}
            problem = NotReady("the service is stopping; send it again", headers=headers)
            return await refuse(problem, scope, receive, send)
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._lifecycle.running.add(task)
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if not self._lifecycle.over:
                raise
            if not started:  # an answer that has begun is cut off by the server
                problem = NotReady("the service stopped before this was done; send it again")
                await problem_response(problem)(scope, receive, send)
        finally:
            self._lifecycle.running.discard(task)


@asynccontextmanager
async def draining(lifecycle: Lifecycle, grace_s: float, drain_s: float) -> AsyncIterator[None]:
    """Put off SIGTERM and SIGINT: a server closes its doors at once, which a load balancer sees
    too late.

    The server learns of them once nothing runs and `drain_s` have passed, at the latest after
    `grace_s`, when what still runs is given up; or when the same signal comes again. For a server
    that has set its handler before the application's lifespan begins, as Uvicorn does in every
    worker: one for both signals.
    """
    before = signal.getsignal(signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(before):
        yield
        return
    loop = asyncio.get_running_loop()
    finishing: list[asyncio.Task[None]] = []
    #: Ctrl+C reaches a worker twice: as SIGINT, and as its supervisor's SIGTERM.
    seen: set[int] = set()

    async def finish() -> None:
        while lifecycle.stopping_s < grace_s and (
            lifecycle.running or lifecycle.stopping_s < drain_s
        ):
            await asyncio.sleep(_TICK_S)
        lifecycle.give_up()
        # SIGTERM comes last, and Uvicorn raises the last one first: a worker ends by it at once,
        # where Ctrl+C alone would leave Python waiting for threads that nothing can stop.
        for number in sorted(seen):
            before(number, None)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number in seen or lifecycle.over:
            before(number, frame)
            return
        seen.add(number)
        if not lifecycle.stopping:
            lifecycle.stop()
            loop.call_soon_threadsafe(lambda: finishing.append(loop.create_task(finish())))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, before)
