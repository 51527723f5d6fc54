"""Several waits at once: all or none."""

from __future__ import annotations

import asyncio

import pytest

from service.together import gathered

PATIENCE_S = 30


def test_results_come_in_the_order_of_the_works() -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0.01 * (3 - n))
        return n

    assert asyncio.run(gathered(later(n) for n in range(3))) == [0, 1, 2]


@pytest.mark.parametrize("ends", ["fault", "cancelled"])
def test_with_one_all_end_before_the_caller_goes_on(ends: str) -> None:
    ended: list[int] = []

    begun = asyncio.Semaphore(0)

    async def long(n: int) -> None:
        begun.release()
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            await asyncio.sleep(0)  # what it has to tidy up
            ended.append(n)

    async def fault() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def scenario() -> None:
        first = [fault()] if ends == "fault" else []
        work = asyncio.create_task(gathered([*first, *map(long, range(3))]))
        if not first:
            for _ in range(3):
                await begun.acquire()
            work.cancel()
        with pytest.raises(ZeroDivisionError if first else asyncio.CancelledError):
            await work
        assert ended == [0, 1, 2]

    asyncio.run(scenario())
