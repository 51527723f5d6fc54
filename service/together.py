"""Several waits at once, of which none is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def gathered(works: Iterable[Awaitable[T]]) -> list[T]:
    """What each of them gives, in their order. The first fault, in this order, is raised; with it,
    or where the caller is cancelled, the others are cancelled and their end is awaited."""
    running: list[asyncio.Future[T]] = []
    try:
        for work in works:  # which may raise between two
            running.append(asyncio.ensure_future(work))
        return [await each for each in running]
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
