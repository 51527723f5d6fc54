"""The engine and its admission: limits hold, and one fault stays one fault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from models_zoo.cards import Card, ZooError, find_card
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.episode import Answer
from service.engine.models import Models
from service.problems import DeadlineExceeded, ModelUnavailable, NotReady, Overloaded, UnknownModel
from tests.service.gate import Gate, episode


@pytest.fixture
def gate(zoo: Path) -> Gate:
    return Gate(find_card("mean", zoo))


@pytest.fixture
def engine(zoo: Path, gate: Gate) -> Iterator[Engine]:
    models = Models(zoo, lambda card, root: gate)
    engine = Engine(models)
    engine.start()
    yield engine
    gate.opened.set()
    engine.close()
    models.close()


def test_cancelled_work_is_dropped_before_it_runs(engine: Engine, gate: Gate) -> None:
    async def scenario() -> None:
        first = asyncio.create_task(engine.submit(episode(1, 2, 1, 1)))
        await asyncio.to_thread(gate.entered.acquire)
        second = asyncio.create_task(engine.submit(episode(2, 2, 1, 5)))
        third = asyncio.create_task(engine.submit(episode(3, 2, 1, 7)))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(first, third)

    asyncio.run(scenario())
    assert gate.seen == [3, 9]  # 2 + 1 and 2 + 7 images: the second never ran


def test_cancelling_what_runs_harms_no_one(engine: Engine, gate: Gate) -> None:
    async def scenario() -> Answer:
        running = asyncio.create_task(engine.submit(episode(1, 2, 1, 1)))
        await asyncio.to_thread(gate.entered.acquire)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.opened.set()
        return await engine.submit(episode(2, 3, 1, 2))

    assert asyncio.run(scenario()).logits.shape == (2, 3)
    assert engine.alive


def test_a_fault_reaches_its_caller_and_the_worker_lives(engine: Engine, gate: Gate) -> None:
    gate.opened.set()
    gate.fault = RuntimeError("a node failed")
    with pytest.raises(RuntimeError, match="a node failed"):
        asyncio.run(engine.submit(episode(1, 2, 1, 1)))
    gate.fault = None
    assert asyncio.run(engine.submit(episode(1, 2, 1, 1))).logits.shape == (1, 2)
    assert engine.alive


def test_closing_finishes_what_runs_and_gives_up_what_waits(engine: Engine, gate: Gate) -> None:
    async def scenario() -> list[object]:
        running = asyncio.create_task(engine.submit(episode(1, 2, 1, 1)))
        await asyncio.to_thread(gate.entered.acquire)
        waiting = asyncio.create_task(engine.submit(episode(2, 2, 1, 1)))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        while not waiting.done():  # the one that runs holds the lane
            await asyncio.sleep(0.01)
        gate.opened.set()
        await closing
        return await asyncio.gather(running, waiting, return_exceptions=True)

    done, given_up = asyncio.run(scenario())
    assert isinstance(done, Answer)
    assert isinstance(given_up, NotReady)
    with pytest.raises(NotReady):
        asyncio.run(engine.submit(episode(3, 2, 1, 1)))
    assert not engine.alive


# Admission


def test_the_queue_is_counted_in_images_and_says_when_to_return() -> None:
    async def scenario() -> None:
        admission = Admission(10, timeout_s=5)
        async with admission.admit(4), admission.admit(4):
            with pytest.raises(Overloaded) as caught:
                async with admission.admit(3):
                    pass
            assert int(caught.value.headers["Retry-After"]) >= 1
            async with admission.admit(2):
                assert admission.held == 10
        assert admission.held == 0

    asyncio.run(scenario())


def test_a_deadline_is_told_as_it_was_asked_for_however_little_is_left_of_it() -> None:
    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.02 s"):
            async with Admission(10, timeout_s=5).admit(1, timeout_s=0.0, asked_s=0.02):
                await asyncio.sleep(1)

    asyncio.run(scenario())


def test_the_largest_request_leaves_half_of_the_queue_to_the_others() -> None:
    async def scenario() -> None:
        admission = Admission(10, timeout_s=5)
        async with admission.admit(3), admission.admit(1000):  # does not wait until it is alone
            assert admission.held == 8
            async with admission.admit(2):
                pass

    asyncio.run(scenario())


def test_gradient_requests_leave_half_of_the_queue_to_the_others() -> None:
    async def scenario() -> None:
        admission = Admission(16, timeout_s=5)
        async with admission.admit(100, gradient=True), admission.admit(4, gradient=True):
            with pytest.raises(Overloaded):
                async with admission.admit(1, gradient=True):
                    pass
            async with admission.admit(8):
                assert admission.held == 16
        async with admission.admit(8), admission.admit(8):
            with pytest.raises(Overloaded):
                async with admission.admit(1, gradient=True):
                    pass
        async with admission.admit(1, gradient=True):
            assert admission.held == 1

    asyncio.run(scenario())


def test_a_key_leaves_half_of_the_queue_to_the_others() -> None:
    async def scenario() -> None:
        admission = Admission(10, timeout_s=5)
        async with admission.admit(3, key="a"), admission.admit(2, key="a"):
            with pytest.raises(Overloaded):
                async with admission.admit(1, key="a"):
                    pass
            async with admission.admit(100, key="b"):
                assert admission.held == 10
        async with admission.admit(5, key="a"):
            pass

    asyncio.run(scenario())


def test_gradient_requests_do_not_tell_the_others_to_stay_away_for_long() -> None:
    async def scenario() -> None:
        admission = Admission(4, timeout_s=5)
        for _ in range(10):
            async with admission.admit(1, gradient=True):
                await asyncio.sleep(0.3)
        waits = []
        async with admission.admit(2), admission.admit(2):
            for gradient in (False, True):
                with pytest.raises(Overloaded) as caught:
                    async with admission.admit(1000, gradient=gradient):
                        pass
                waits.append(int(caught.value.headers["Retry-After"]))
        assert waits == [1, 2]

    asyncio.run(scenario())


def test_the_deadline_cancels_and_frees() -> None:
    admission = Admission(10, timeout_s=0.02)

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded):
            async with admission.admit(6):
                await asyncio.sleep(5)

    asyncio.run(scenario())
    assert admission.held == 0


# Models


def test_an_entry_is_loaded_once_however_many_ask(zoo: Path) -> None:
    loads: list[str] = []

    def load(card: Card, root: Path) -> Gate:
        loads.append(card.id)
        return Gate(card)

    models = Models(zoo, load)

    async def scenario() -> None:
        found = await asyncio.gather(*(models.runtime("mean") for _ in range(20)))
        assert len({id(runtime) for runtime in found}) == 1

    asyncio.run(scenario())
    assert loads == ["mean"]
    with pytest.raises(UnknownModel):
        asyncio.run(models.runtime("nope"))


def test_a_failed_load_is_tried_again(zoo: Path) -> None:
    outcomes: list[Exception | None] = [ZooError("/secret/path: sha256 differs"), None]

    def load(card: Card, root: Path) -> Gate:
        if fault := outcomes.pop(0):
            raise fault
        return Gate(card)

    models = Models(zoo, load)
    with pytest.raises(ModelUnavailable) as caught:
        asyncio.run(models.runtime("mean"))
    assert "secret" not in caught.value.detail
    asyncio.run(models.runtime("mean"))
