"""Batching across requests: what gathers, in what order, and that no neighbour is harmed by it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models_zoo.cards import Card, find_card
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.episode import Answer, Episode
from service.engine.events import Events
from service.engine.models import Models
from service.engine.onnx import OnnxRuntime
from service.engine.stages import answers
from service.problems import DeadlineExceeded, NotReady, OutOfMemory
from tests.service.gate import episode

PATIENCE_S = 30


class Noted(Events):
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def batch(self, *what: object) -> None:
        self.told.append(("batch", *what))

    def dropped(self, *what: object) -> None:
        self.told.append(("dropped", *what))

    def halved(self, *what: object) -> None:
        self.told.append(("halved", *what))

    def restarted(self, *what: object) -> None:
        self.told.append(("restarted", *what))

    def of(self, kind: str) -> list[tuple[object, ...]]:
        return [what[1:] for what in self.told if what[0] == kind]


class Held(OnnxRuntime):
    """The real thing, whose encoder waits until the gate is open; `fault` may break it."""

    opened: threading.Event
    entered: threading.Semaphore
    fault: Callable[[int], BaseException | None]

    def __init__(self, card: Card, root: Path) -> None:
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.fault = lambda images: None
        self.opened.set()
        super().__init__(card, root, "cpu", threads=1)  # which tries its encoder
        self.opened.clear()
        self.entered = threading.Semaphore(0)

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.entered.release()
        assert self.opened.wait(PATIENCE_S)
        if fault := self.fault(len(images)):
            raise fault
        return super().encode(images)


class Bench:
    """An engine over held runtimes, with one request at work and others behind it."""

    def __init__(self, zoo: Path, batch_images: int | None) -> None:
        self.events = Noted()
        self.runtimes = {m: Held(find_card(m, zoo), zoo) for m in ("mean", "attentive", "descent")}
        self.models = Models(zoo, lambda card, root: self.runtimes[card.id])
        self.engine = Engine(self.models, batch_images, self.events)

    async def ask(self, *episodes: Episode, **options: Any) -> list[asyncio.Task[Answer]]:
        """Submit, and return once all wait (or run)."""
        tasks = []
        for one in episodes:
            before = self.waiting
            tasks.append(asyncio.create_task(self.engine.submit(one, **options)))
            await until(lambda before=before: self.waiting > before)  # type: ignore[misc]
        return tasks

    async def occupy(self, model: str = "mean") -> asyncio.Task[Answer]:
        """One request that holds the model's lane until the gate opens."""
        task = asyncio.create_task(self.engine.submit(episode(99, 2, 1, 1, model)))
        await asyncio.to_thread(self.runtimes[model].entered.acquire)
        return task

    @property
    def waiting(self) -> int:
        return sum(len(lane._waiting) for lane in self.engine._lanes)

    def open(self) -> None:
        for runtime in self.runtimes.values():
            runtime.opened.set()

    def alone(self, one: Episode) -> Answer:
        [(_, answer)] = answers(self.runtimes[one.model], [one])
        assert isinstance(answer, Answer)
        return answer

    def assert_as_alone(self, asked: list[Episode], found: list[Answer]) -> None:
        for one, answer in zip(asked, found, strict=True):
            expected = self.alone(one)
            np.testing.assert_array_equal(answer.logits, expected.logits)
            for part in ("task", "query", "support"):
                ours = getattr(answer.attention, part)
                theirs = getattr(expected.attention, part)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    np.testing.assert_array_equal(ours, theirs)


async def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.001)


@contextmanager
def bench(zoo: Path, batch_images: int | None = 1000) -> Iterator[Bench]:
    made = Bench(zoo, batch_images)
    made.engine.start()
    try:
        yield made
    finally:
        made.open()
        made.engine.close()
        made.models.close()


MIXED = [
    episode(i, way, shot, queries)
    for i, (way, shot, queries) in enumerate(
        [(2, 1, 1), (5, 3, 4), (3, 2, 7), (2, 1, 1), (6, 1, 2)]
    )
]


def test_what_gathers_while_the_runtime_works_runs_together_and_answers_as_alone(
    zoo: Path,
) -> None:
    with bench(zoo) as made:

        async def scenario() -> list[Answer]:
            first = await made.occupy()
            rest = await made.ask(*MIXED)
            made.open()
            await first
            return await asyncio.gather(*rest)

        found = asyncio.run(scenario())
        made.assert_as_alone(MIXED, found)
    images = sum(one.images for one in MIXED)
    assert made.events.of("batch") == [
        ("mean", "forward", 1, 3),  # alone, it did not wait for company
        ("mean", "forward", len(MIXED), images),
    ]


@pytest.mark.parametrize("model", ["attentive", "descent"])
def test_attention_and_gradients_answer_as_alone_too(zoo: Path, model: str) -> None:
    asked = [episode(i, 2 + i, 2, 3, model) for i in range(4)]
    with bench(zoo) as made:

        async def scenario() -> list[Answer]:
            first = await made.occupy(model)
            rest = await made.ask(*asked)
            made.open()
            await first
            return await asyncio.gather(*rest)

        made.assert_as_alone(asked, asyncio.run(scenario()))


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_who_leaves_harms_no_neighbour(zoo: Path, moment: str) -> None:
    """Before the batch forms, while it is at work, and when its answers are on their way."""
    with bench(zoo) as made:
        runtime = made.runtimes["mean"]

        async def scenario() -> list[Answer]:
            first = await made.occupy()
            rest = await made.ask(*MIXED)
            leaver = rest.pop(2)
            if moment == "before":
                leaver.cancel()
                await until(lambda: made.waiting == len(MIXED) - 1)
            runtime.opened.set()
            await first
            if moment == "during":
                await asyncio.to_thread(runtime.entered.acquire)  # of the second batch
                leaver.cancel()
            if moment == "after":
                await rest[-1]
                leaver.cancel()
            found = await asyncio.gather(*rest)
            await asyncio.gather(leaver, return_exceptions=True)
            return found

        made.assert_as_alone(MIXED[:2] + MIXED[3:], asyncio.run(scenario()))
        ran = made.events.of("batch")[1][2]
        assert ran == (len(MIXED) - 1 if moment == "before" else len(MIXED))
        gone = [("mean", "gone")] if moment == "before" else []
        assert made.events.of("dropped") == gone
        assert made.engine.alive


def test_whose_time_is_over_is_dropped_before_it_runs(zoo: Path) -> None:
    with bench(zoo) as made:

        async def scenario() -> list[object]:
            first = await made.occupy()
            past = await made.ask(MIXED[1], deadline=time.perf_counter() - 1)
            rest = await made.ask(MIXED[2], deadline=time.perf_counter() + PATIENCE_S)
            made.open()
            await first
            return await asyncio.gather(*past, *rest, return_exceptions=True)

        late, in_time = asyncio.run(scenario())
        assert isinstance(late, DeadlineExceeded)
        assert isinstance(in_time, Answer)
    assert made.events.of("batch")[1:] == [("mean", "forward", 1, MIXED[2].images)]
    assert made.events.of("dropped") == [("mean", "deadline")]


def test_whose_request_ends_at_its_deadline_was_too_late_and_not_gone(zoo: Path) -> None:
    with bench(zoo) as made:

        async def scenario() -> None:
            first = await made.occupy()
            with pytest.raises(DeadlineExceeded):
                async with Admission(10, timeout_s=0.05).admit(1) as deadline:
                    await made.engine.submit(MIXED[1], deadline=deadline)
            assert made.waiting == 0
            made.open()
            await first

        asyncio.run(scenario())
    assert made.events.of("dropped") == [("mean", "deadline")]


@pytest.mark.parametrize(("most", "sizes"), [(0, [1, 1, 1, 1]), (6, [2, 2]), (1000, [4])])
def test_a_batch_is_counted_in_images(zoo: Path, most: int, sizes: list[int]) -> None:
    """0 is batching switched off."""
    with bench(zoo, most) as made:

        async def scenario() -> None:
            first = await made.occupy()
            rest = await made.ask(*(episode(i, 2, 1, 1) for i in range(4)))
            made.open()
            await asyncio.gather(first, *rest)

        asyncio.run(scenario())
    assert [told[2] for told in made.events.of("batch")[1:]] == sizes


@pytest.mark.parametrize(("joined", "sizes"), [(False, [21, 19]), (True, [40])])
def test_by_default_the_device_says_how_much_goes_together(
    zoo: Path, joined: bool, sizes: list[int]
) -> None:
    with bench(zoo, None) as made:
        made.runtimes["mean"].joins_tasks = joined

        async def scenario() -> None:
            first = await made.occupy()
            rest = await made.ask(*(episode(i, 2, 1, 1) for i in range(40)))
            made.open()
            await asyncio.gather(first, *rest)

        asyncio.run(scenario())
    assert [told[2] for told in made.events.of("batch")[1:]] == sizes


def test_models_take_turns(zoo: Path) -> None:
    """A model that is asked a lot does not keep another one waiting."""
    with bench(zoo, 6) as made:

        async def scenario() -> None:
            first = await made.occupy()
            many = await made.ask(*(episode(i, 2, 1, 1) for i in range(8)))
            other = await made.ask(episode(1, 2, 1, 1, "attentive"))
            made.open()
            await asyncio.gather(first, *many, *other)

        asyncio.run(scenario())
    ran = [told[0] for told in made.events.of("batch")[1:]]
    assert ran == ["mean", "attentive", "mean", "mean", "mean"]


def test_a_long_adaptation_does_not_hold_up_forward_traffic(zoo: Path) -> None:
    with bench(zoo) as made:
        made.runtimes["mean"].opened.set()

        async def scenario() -> Answer:
            slow = await made.occupy("descent")
            answer = await asyncio.wait_for(made.engine.submit(MIXED[0]), PATIENCE_S)
            assert not slow.done()
            made.open()
            await slow
            return answer

        made.assert_as_alone([MIXED[0]], [asyncio.run(scenario())])


def test_out_of_memory_halves_the_batch_until_it_fits(zoo: Path) -> None:
    """One request that never fits is told so; the others are answered as if alone."""
    large = episode(7, 6, 3, 20)
    asked = [*MIXED, large]
    with bench(zoo) as made:

        async def scenario() -> list[object]:
            first = await made.occupy()
            rest = await made.ask(*asked)
            made.runtimes["mean"].fault = lambda images: (
                RuntimeError("Failed to allocate memory for requested buffer")
                if images > 30
                else None
            )
            made.open()
            await first
            return await asyncio.gather(*rest, return_exceptions=True)

        *found, failed = asyncio.run(scenario())
        assert isinstance(failed, OutOfMemory)
        assert failed.status == 503
        made.runtimes["mean"].fault = lambda images: None
        made.assert_as_alone(MIXED, found)  # type: ignore[arg-type]
    assert made.events.of("halved")[0] == ("mean", "forward", len(asked))


def test_one_bad_request_fails_alone(zoo: Path) -> None:
    """Steps too large for it overflow: that task diverges, its neighbours do not."""
    wild = Episode(
        **{**vars(episode(3, 2, 1, 1, "descent")), "inner_lr": (1e38, 1e38)},
    )
    asked = [episode(1, 2, 1, 1, "descent"), episode(2, 3, 1, 2, "descent")]
    with bench(zoo) as made:

        async def scenario() -> list[object]:
            first = await made.occupy("descent")
            rest = await made.ask(asked[0], wild, asked[1])
            made.open()
            await first
            return await asyncio.gather(*rest, return_exceptions=True)

        one, bad, other = asyncio.run(scenario())
        assert type(bad).__name__ == "Diverged"
        made.assert_as_alone(asked, [one, other])  # type: ignore[list-item]


def test_a_dead_worker_is_replaced(zoo: Path) -> None:
    with bench(zoo) as made:

        async def scenario() -> Answer:
            running = await made.occupy()
            made.runtimes["mean"].fault = lambda images: SystemExit("killed")
            made.open()
            with pytest.raises(NotReady, match="died"):
                await running
            made.runtimes["mean"].fault = lambda images: None
            return await asyncio.wait_for(made.engine.submit(MIXED[0]), PATIENCE_S)

        made.assert_as_alone([MIXED[0]], [asyncio.run(scenario())])
        assert made.engine.alive
    assert made.events.of("restarted") == [("forward",)]


def test_a_worker_that_cannot_be_replaced_is_told(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with bench(zoo) as made:

        async def scenario() -> None:
            running = await made.occupy()
            made.runtimes["mean"].fault = lambda images: SystemExit("killed")
            with monkeypatch.context() as patch:
                patch.setattr("threading.Thread.start", no_more)
                made.open()
                with pytest.raises(NotReady, match="died"):
                    await running
            await until(lambda: not made.engine.alive)  # so says /livez
            made.runtimes["mean"].fault = lambda images: None
            await made.engine.submit(MIXED[0])  # the next request brings it back
            assert made.engine.alive

        asyncio.run(scenario())


def test_a_cancelled_request_gives_its_images_back_at_once(zoo: Path) -> None:
    """Not only when its turn comes: a long run ahead must not pile up what nobody wants."""
    with bench(zoo) as made:

        async def scenario() -> None:
            await made.occupy()
            for task in await made.ask(*MIXED):
                task.cancel()
            await until(lambda: made.waiting == 0)

        asyncio.run(scenario())
