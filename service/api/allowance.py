"""What a key may still ask: its rate, in each process, and its daily quota, over all of them.

The rate is a token bucket of a minute's size. Each of several worker processes has its own, with
its share of the rate, so together they let through no more than the rate in the long run, except
that each lets at least one request through at once. The quota is exact upwards: requests are
claimed from the database in small blocks, so a key never gets more than its quota, and loses at
most a block per process (a hundredth of the quota) when a process ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import OPEN, Caller
from service.middleware import refuse
from service.problems import Problem, QuotaExceeded, RateExceeded
from service.store.database import ANSWER_S
from service.store.store import Store
from service.store.threads import in_time

_DAY_S = 86_400
_MOST_CLAIMED = 100


class Bucket:
    """A token bucket: `size` tokens, refilled by `rate` a second. Starts full."""

    def __init__(self, size: float, rate: float, now: float) -> None:
        self._size, self._rate, self._tokens, self._at = size, rate, size, now

    def take(self, now: float) -> float:
        """Take a token and return 0, or the seconds until there is one."""
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    @property
    def left(self) -> int:
        return int(self._tokens)

    @property
    def full_in(self) -> float:
        """Seconds until it is full again."""
        return (self._size - self._tokens) / self._rate


@dataclass
class _Claimed:
    """Requests of a key's quota that this process may still let through, and what is left beside
    them for all: where that is nothing, it stays so until the next day and is not asked again."""

    day: int = -1
    mine: int = 0
    left: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Allowance:
    """Middleware within `Authentication`: 429 with Retry-After for a key that asks too much, and
    RateLimit headers for every key that has limits."""

    def __init__(
        self,
        app: ASGIApp,
        store: Store,
        workers: int,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app, self._store, self._workers = app, store, workers
        self._monotonic, self._clock = monotonic, clock
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._claimed: dict[str, _Claimed] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope.get("state", {}).get("caller", OPEN)
        if caller.rate_per_minute is None and caller.daily_quota is None:
            return await self._app(scope, receive, send)
        policies: list[str] = []
        states: list[str] = []

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and policies:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"] = ", ".join(policies)
                headers["RateLimit"] = ", ".join(states)
            await send(message)

        try:
            if caller.rate_per_minute is not None:
                self._take_token(caller.id, caller.rate_per_minute, policies, states)
            if caller.daily_quota is not None:
                await self._take_quota(caller.id, caller.daily_quota, policies, states)
        except Problem as problem:
            return await refuse(problem, scope, receive, send_with_limits)
        await self._app(scope, receive, send_with_limits)

    def _take_token(self, key: str, rate: int, policies: list[str], states: list[str]) -> None:
        """Raises `RateExceeded`."""
        now, share = self._monotonic(), rate / self._workers
        bucket = self._buckets.get((key, rate))
        if bucket is None:
            bucket = self._buckets[key, rate] = Bucket(max(1.0, share), share / 60, now)
        wait = bucket.take(now)
        policies.append(f'"minute";q={rate};w=60')
        states.append(f'"minute";r={bucket.left};t={math.ceil(bucket.full_in)}')
        if wait > 0:
            seconds = max(1, math.ceil(wait))
            raise RateExceeded(
                f"this key may ask {rate} times a minute; try again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )

    async def _take_quota(
        self, key: str, quota: int, policies: list[str], states: list[str]
    ) -> None:
        """Raises `QuotaExceeded` or `StoreUnavailable`."""
        now = self._clock()
        day, until = int(now // _DAY_S), math.ceil(_DAY_S - now % _DAY_S)
        claimed = self._claimed.setdefault(key, _Claimed())
        async with in_time(ANSWER_S), claimed.lock:  # others of the key wait for the lock as long
            if claimed.day != day:
                claimed.day, claimed.mine, claimed.left = day, 0, quota
            if not claimed.mine and claimed.left:
                wanted = max(1, min(_MOST_CLAIMED, quota // (100 * self._workers)))
                claim = self._store.usage.claim
                claimed.mine, claimed.left = await self._store.run_write(
                    claim, key, day, wanted, quota
                )
            granted = claimed.mine > 0
            claimed.mine -= granted
        policies.append(f'"day";q={quota};w={_DAY_S}')
        states.append(f'"day";r={claimed.mine + claimed.left};t={until}')
        if not granted:
            raise QuotaExceeded(
                f"this key may ask {quota} times a day, counted from midnight UTC",
                headers={"Retry-After": str(until)},
            )
