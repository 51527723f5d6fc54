"""Which models are in memory: loaded when asked, pinned, let go under a budget; nobody starves."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models_zoo.cards import Card, ZooError, load_card, write_card
from service.engine.events import Events
from service.engine.models import Models, memory_of
from service.engine.onnx import OnnxRuntime
from service.engine.runtime import Runtime
from service.problems import ModelUnavailable, NotReady
from tests.service.gate import Gate

PATIENCE_S = 30
NAMES = ("attentive", "descent", "mean")


class Loads(Events):
    def __init__(self) -> None:
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def loaded(self, model: str, seconds: float) -> None:
        self.loads.append(model)

    def unloaded(self, model: str) -> None:
        self.unloads.append(model)

    def models(self, count: int, size: int) -> None:
        self.sizes.append((count, size))


def make(
    zoo: Path,
    budget: Callable[[Models], int] | None = None,
    pinned: tuple[str, ...] = (),
    load: Callable[[Card, Path], Runtime] = lambda card, root: Gate(card),
) -> tuple[Models, Loads]:
    events = Loads()
    most = budget(Models(zoo, load)) if budget else None
    return Models(zoo, load, events, most, pinned), events


def two(models: Models) -> int:
    """Room for any two of the three."""
    return sum(memory_of(card) for card in models.cards.values()) - 1


def ask(models: Models, *names: str) -> list[Runtime]:
    async def scenario() -> list[Runtime]:
        return [await asyncio.wait_for(models.runtime(name), PATIENCE_S) for name in names]

    return asyncio.run(scenario())


def test_the_one_asked_longest_ago_is_let_go(zoo: Path) -> None:
    models, events = make(zoo, two)
    ask(models, "mean", "attentive", "mean", "descent")
    assert events.unloads == ["attentive"]
    assert models.loaded == ["mean", "descent"]
    count, size = events.sizes[-1]
    assert count == 2
    assert size <= two(models)
    ask(models, "attentive")
    assert events.loads == ["mean", "attentive", "descent", "attentive"]


def test_a_pinned_model_is_loaded_at_start_and_stays(zoo: Path) -> None:
    models, events = make(zoo, lambda _: 1, ("descent",))
    models.start()
    ask(models, "descent", "mean", "attentive", "descent")
    assert events.loads[0] == "descent"
    assert events.unloads == ["mean"]
    assert models.loaded == ["attentive", "descent"]


def test_a_pinned_model_that_does_not_exist_is_refused(zoo: Path) -> None:
    with pytest.raises(ZooError, match="unknown pinned model 'nope'"):
        make(zoo, pinned=("mean", "nope"))


def test_what_was_let_go_still_serves_who_has_it_and_all_get_an_answer(zoo: Path) -> None:
    """A budget for none at all: each load pushes the others out, and every request is served."""
    models, _ = make(zoo, lambda _: 1)

    async def scenario() -> list[Runtime]:
        asked = [models.runtime(name) for name in NAMES * 20]
        return await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)

    found = asyncio.run(scenario())
    assert [runtime.card.id for runtime in found] == list(NAMES * 20)
    assert len(models.loaded) == 1


def test_loading_one_model_delays_no_other(zoo: Path) -> None:
    go_on = threading.Event()

    def load(card: Card, root: Path) -> Runtime:
        assert card.id != "attentive" or go_on.wait(PATIENCE_S)
        return Gate(card)

    models, _ = make(zoo, load=load)

    async def scenario() -> None:
        slow = asyncio.create_task(models.runtime("attentive"))
        await asyncio.sleep(0)
        for name in ("mean", "descent", "mean"):
            await asyncio.wait_for(models.runtime(name), PATIENCE_S)
        assert not slow.done()
        go_on.set()
        await slow

    asyncio.run(scenario())


def test_whatever_a_loader_raises_the_model_is_unavailable(
    zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here graphs for other images than the card's."""
    shutil.copytree(zoo / "mean", tmp_path / "mean")
    card = load_card(tmp_path / "mean")
    other = card.input.model_copy(update={"height": 2 * card.input.height})
    write_card(card.model_copy(update={"input": other}), tmp_path)
    models, _ = make(tmp_path, load=lambda card, root: OnnxRuntime(card, root, "cpu", 1))
    with pytest.raises(ModelUnavailable, match="the server's log says why"):
        ask(models, "mean")
    assert "the graph declares" in caplog.text


def test_two_that_are_loaded_at_once_are_both_counted(zoo: Path) -> None:
    """Each is told of before the other's load is over."""
    told = threading.Barrier(2)

    class Together(Events):
        def models(self, count: int, size: int) -> None:
            told.wait(PATIENCE_S)

    def load(card: Card, root: Path) -> Runtime:
        return Gate(card)

    models = Models(zoo, load, Together(), 1)

    async def scenario() -> None:
        await asyncio.gather(models.runtime("mean"), models.runtime("descent"))

    asyncio.run(scenario())
    assert len(models.loaded) == 1


def test_where_no_thread_can_be_started_it_is_503_and_tried_again(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = make(zoo)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(ModelUnavailable, match="mean cannot be loaded"):
            asyncio.run(models.runtime("mean"))
    assert asyncio.run(models.runtime("mean")).card.id == "mean"
    assert models.loaded == ["mean"]


def no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_once_closed_it_says_so_to_who_waits_and_who_comes(zoo: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(card: Card, root: Path) -> Runtime:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return Gate(card)

    models, _ = make(zoo, load=load)
    models._threads = ThreadPoolExecutor(1)

    async def scenario() -> None:
        runs = asyncio.create_task(models.runtime("mean"))
        waits = asyncio.create_task(models.runtime("descent"))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        models.close()
        for asked in (waits, models.runtime("attentive")):
            with pytest.raises(NotReady):
                await asyncio.wait_for(asked, PATIENCE_S)
        go_on.set()
        assert (await runs).card.id == "mean"

    asyncio.run(scenario())
