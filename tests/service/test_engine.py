"""The engine: batches equal single tasks, limits hold, and one fault stays one fault."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from models_zoo.cards import Card, ZooError, find_card
from service.engine.admission import Admission
from service.engine.engine import Engine, run_batch
from service.engine.episode import Answer, Attention, Batch, Episode
from service.engine.models import Models
from service.engine.onnx import OnnxRuntime
from service.engine.providers import CPU, CUDA, choose
from service.engine.runtime import Prediction, State
from service.problems import DeadlineExceeded, ModelUnavailable, NotReady, Overloaded, UnknownModel


def episode(seed: int, way: int, shot: int, queries: int, model: str = "mean") -> Episode:
    rng = np.random.default_rng(seed)
    channels = 3 if model == "attentive" else 1
    return Episode(
        model=model,
        support=rng.integers(0, 256, (way * shot, channels, 16, 16), dtype=np.uint8),
        labels=np.repeat(np.arange(way), shot),
        way=way,
        query=rng.integers(0, 256, (queries, channels, 16, 16), dtype=np.uint8),
        inner_lr=(0.5, 0.25) if model == "descent" else None,
        attention=model == "attentive",
    )


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_a_padded_batch_answers_like_each_task_alone(zoo: Path, model: str) -> None:
    runtime = OnnxRuntime(find_card(model, zoo), zoo, "cpu", threads=1, chunk=5)
    mixed = [episode(1, 2, 1, 3, model), episode(2, 5, 3, 1, model), episode(3, 3, 2, 4, model)]
    for together, alone in zip(run_batch(runtime, mixed), mixed, strict=True):
        (single,) = run_batch(runtime, [alone])
        assert together.logits.shape == (len(alone.query), alone.way)
        np.testing.assert_allclose(together.logits, single.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.probabilities.sum(1), 1, atol=1e-12)
        for name in ("task", "query", "support"):
            ours, theirs = getattr(together.attention, name), getattr(single.attention, name)
            assert (ours is None) == (model != "attentive")
            if ours is not None:
                assert ours.shape == theirs.shape
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_batch_refuses_mixed_models_and_wrong_labels() -> None:
    with pytest.raises(ValueError, match="one model"):
        Batch.of([episode(1, 2, 1, 1), episode(1, 2, 1, 1, "attentive")])
    wrong = episode(1, 2, 1, 1)
    wrong.labels[0] = 7
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Batch.of([wrong])


def test_shapes_that_onnx_runtime_would_broadcast_are_refused(zoo: Path) -> None:
    runtime = OnnxRuntime(find_card("mean", zoo), zoo, "cpu", threads=1)
    features = np.zeros((3, 4, 16), np.float32)
    labels, mask, classes = np.zeros((3, 4), np.int64), np.ones((3, 4), bool), np.ones((3, 2), bool)
    state = runtime.adapt(features, labels, mask, classes)
    for bad in (
        (features, labels, mask[:1], classes),
        (features, labels[:, :1], mask, classes),
        (features, labels, mask, classes[:1]),
        (features[..., :15], labels, mask, classes),
    ):
        with pytest.raises(ValueError, match="disagree|declares"):
            runtime.adapt(*bad)
    with pytest.raises(ValueError, match="number of tasks"):
        runtime.predict(state, np.zeros((1, 2, 16), np.float32))
    with pytest.raises(ValueError, match="declares"):
        runtime.predict(state, np.zeros((3, 2, 15), np.float32))


def test_probabilities_survive_extreme_logits() -> None:
    answer = Answer(np.array([[1e30, 0, -1e9], [-1e9, -1e9, -1e9]], np.float32), Attention(), {})
    np.testing.assert_allclose(answer.probabilities, [[1, 0, 0], [1 / 3] * 3])


# A runtime that waits to be told


class Gate:
    """A runtime that blocks in `encode` until it is opened, and notes what it was given."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        self.seen: list[int] = []
        self.fault: Exception | None = None

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(len(images))
        self.entered.release()
        assert self.opened.wait(10)
        if self.fault:
            raise self.fault
        return images.astype(np.float32)

    def adapt(self, *arrays: np.ndarray | None) -> State:
        return {"state.way": np.zeros((1, arrays[3].shape[1]))}

    def predict(self, state: State, query: np.ndarray, attention: bool = False) -> Prediction:
        way = state["state.way"].shape[1]
        return Prediction(np.zeros((1, query.shape[1], way), np.float32))


@pytest.fixture
def gate(zoo: Path) -> Gate:
    return Gate(find_card("mean", zoo))


@pytest.fixture
def engine(zoo: Path, gate: Gate) -> Engine:
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
    gate.fault = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
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
        await asyncio.sleep(0.05)
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
        async with admission.admit(6):
            with pytest.raises(Overloaded) as caught:
                async with admission.admit(5):
                    pass
            assert int(caught.value.headers["Retry-After"]) >= 1
            async with admission.admit(4):
                assert admission.held == 10
        assert admission.held == 0
        async with admission.admit(1000):  # nothing else is held: better served than never
            pass

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


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_driver_cuda_is_not_asked_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.providers.cuda_devices", lambda: 0)
    assert choose(device, [CUDA, CPU]) == [CPU]
    with pytest.raises(RuntimeError, match="no CUDA driver"):
        choose("cuda", [CUDA, CPU])
    with pytest.raises(RuntimeError, match="has no CUDA"):
        choose("cuda", [CPU])


def test_with_a_driver_cuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.providers.cuda_devices", lambda: 2)
    assert choose("auto", [CUDA, CPU]) == choose("cuda", [CUDA, CPU]) == [CUDA, CPU]
    assert choose("auto", [CPU]) == choose("cpu", [CUDA, CPU]) == [CPU]
