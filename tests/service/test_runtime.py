"""Runtimes: batches equal single tasks, shapes are checked, devices are what they say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from models_zoo.cards import find_card
from service.engine.episode import Answer, Attention, Batch, Encoded, Episode
from service.engine.onnx import OnnxRuntime
from service.engine.providers import CPU, CUDA, TENSORRT, choose
from service.engine.runtime import Runtime
from service.engine.stages import answers
from tests.service.gate import episode


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_batch_answers_like_each_task_alone(zoo: Path, model: str, joined: bool) -> None:
    """To the bit where tasks are run one by one, as on a CPU; padded together, nearly."""
    runtime = OnnxRuntime(find_card(model, zoo), zoo, "cpu", threads=1, chunk=5)
    assert not runtime.joins_tasks
    runtime.joins_tasks = joined
    mixed = [episode(1, 2, 1, 3, model), episode(2, 5, 3, 1, model), episode(3, 3, 2, 4, model)]
    mixed += [episode(4, 5, 3, 1, model), episode(5, 3, 2, 4, model)]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if joined else {"rtol": 0, "atol": 0}
    for together, alone in zip(_answers(runtime, mixed), mixed, strict=True):
        (single,) = _answers(runtime, [alone])
        assert together.logits.shape == (len(alone.query), alone.way)
        np.testing.assert_allclose(together.logits, single.logits, **tolerance)
        np.testing.assert_allclose(together.probabilities.sum(1), 1, atol=1e-12)
        for name in ("task", "query", "support"):
            ours, theirs = getattr(together.attention, name), getattr(single.attention, name)
            assert (ours is None) == (model != "attentive")
            if ours is not None:
                assert ours.shape == theirs.shape
                np.testing.assert_allclose(ours, theirs, **tolerance)


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
@pytest.mark.parametrize("joined", [False, True])
def test_what_was_learned_before_answers_the_same(zoo: Path, model: str, joined: bool) -> None:
    """Known features and states of mixed sizes, beside a task that brings neither."""
    runtime = OnnxRuntime(find_card(model, zoo), zoo, "cpu", threads=1)
    runtime.joins_tasks = joined
    fresh = [
        replace(episode(seed, way, shot, queries, model), remember=True)
        for seed, way, shot, queries in ((1, 2, 1, 3), (2, 5, 3, 1), (3, 5, 3, 2))
    ]
    learned = [_answers(runtime, [one])[0] for one in fresh]
    again = []
    for one, answer in zip(fresh, learned, strict=True):
        assert answer.features is not None and len(answer.features) == len(one.labels)
        none, odd = one.support[:0], range(1, len(one.labels), 2)
        known = {i: answer.features[i] for i in odd}
        again += [
            replace(one, support=none, state=answer.state),
            replace(one, support=one.support[::2], known=known),
        ]
    expected = [answer for answer in learned for _ in range(2)]
    found = _answers(runtime, [*again, *fresh])
    for ours, theirs in zip(found, [*expected, *learned], strict=True):
        if joined:
            np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours.logits, theirs.logits)
    assert all(answer.state is None for answer in found[: len(again) : 2])  # nothing new


def test_queries_of_a_transductive_entry_are_neither_padded_nor_joined(zoo: Path) -> None:
    runtime = OnnxRuntime(find_card("mean", zoo), zoo, "cpu", threads=1)
    runtime.joins_tasks = True
    predict, seen = runtime.predict, []

    def noted(state: Any, query: np.ndarray, attention: bool) -> Any:
        seen.append(query.shape[:2])
        return predict(state, query, attention)

    runtime.predict = noted
    tasks = [episode(i, 2, 1, queries) for i, queries in enumerate((4, 5, 4))]
    _answers(runtime, tasks)
    assert [size for size, _ in seen] != [1, 1, 1]
    seen.clear()
    runtime.card = runtime.card.model_copy(update={"transductive": True})
    _answers(runtime, tasks)
    assert seen == [(1, 4), (1, 5), (1, 4)]


def test_padding_of_joined_tasks_is_bounded(zoo: Path) -> None:
    """One large task must not blow up the small ones: they go in passes of their own."""
    runtime = OnnxRuntime(find_card("mean", zoo), zoo, "cpu", threads=1)
    runtime.joins_tasks = True
    adapt, seen = runtime.adapt, []

    def noted(support: np.ndarray, labels: np.ndarray, mask: np.ndarray, *rest: Any) -> Any:
        seen.append((len(mask), mask.mean()))
        return adapt(support, labels, mask, *rest)

    runtime.adapt = noted
    shots = [1, 1, 1, 7, 7, 8, 40]
    _answers(runtime, [episode(i, 2, shot, 1) for i, shot in enumerate(shots)])
    assert sorted(size for size, _ in seen) == [1, 1, 2, 3]
    assert min(share for _, share in seen) >= 0.8


def test_an_encoder_whose_answer_depends_on_company_runs_image_by_image(zoo: Path) -> None:
    class Sociable(OnnxRuntime):
        runs: ClassVar[list[int]] = []

        def encode(self, images: np.ndarray) -> np.ndarray:
            self.runs.append(min(len(images), self._chunk))
            found = super().encode(images)
            return found + np.float32(1e-6) * (self.runs[-1] > 1)

    runtime = Sociable(find_card("mean", zoo), zoo, "cpu", threads=1)
    images = episode(1, 2, 2, 1).support
    alone = np.concatenate([runtime.encode(image[None]) for image in images])
    np.testing.assert_array_equal(runtime.encode(images), alone)
    assert OnnxRuntime(find_card("mean", zoo), zoo, "cpu", threads=1)._chunk > 1


def test_an_episode_whose_parts_disagree_is_refused(zoo: Path) -> None:
    runtime = OnnxRuntime(find_card("mean", zoo), zoo, "cpu", threads=1)
    right = episode(1, 2, 1, 1)
    for wrong, fault in (
        (replace(right, labels=np.array([0, 7])), r"0\.\.1"),
        (replace(right, support=right.support[:1]), "2 labels but 1 examples"),
        (replace(right, query=right.query[:0]), "without"),
        (replace(right, state={}), "2 labels but 2 examples"),
    ):
        with pytest.raises(ValueError, match=fault):
            list(answers(runtime, [right, wrong]))
    with pytest.raises(ValueError, match="one model"):
        features = np.zeros((2, 16), np.float32)
        Batch.of([Encoded(episode(1, 2, 1, 1, m), features, features) for m in ("mean", "descent")])


def _answers(runtime: Runtime, episodes: list[Episode]) -> list[Answer]:
    found = dict(answers(runtime, episodes))
    assert all(isinstance(answer, Answer) for answer in found.values())
    return [found[row] for row in range(len(episodes))]


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
        with pytest.raises(ValueError, match=r"disagree|declares"):
            runtime.adapt(*bad)
    with pytest.raises(ValueError, match="number of tasks"):
        runtime.predict(state, np.zeros((1, 2, 16), np.float32))
    with pytest.raises(ValueError, match="declares"):
        runtime.predict(state, np.zeros((3, 2, 15), np.float32))


def test_probabilities_survive_extreme_logits() -> None:
    answer = Answer(np.array([[1e30, 0, -1e9], [-1e9, -1e9, -1e9]], np.float32), Attention(), {})
    np.testing.assert_allclose(answer.probabilities, [[1, 0, 0], [1 / 3] * 3])


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


def test_tensorrt_is_asked_for_only_where_its_library_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.providers.cuda_devices", lambda: 1)
    monkeypatch.setattr("service.engine.providers.has_tensorrt", lambda: False)
    with pytest.raises(RuntimeError, match="libnvinfer"):
        choose("tensorrt", [TENSORRT, CUDA, CPU])
    with pytest.raises(RuntimeError, match="no TensorRT here"):
        choose("tensorrt", [CUDA, CPU])
    monkeypatch.setattr("service.engine.providers.has_tensorrt", lambda: True)
    assert choose("tensorrt", [TENSORRT, CUDA, CPU]) == [TENSORRT, CUDA, CPU]
    assert choose("auto", [TENSORRT, CUDA, CPU]) == [CUDA, CPU]
    monkeypatch.setattr("service.engine.providers.cuda_devices", lambda: 0)
    with pytest.raises(RuntimeError, match="no CUDA driver"):
        choose("tensorrt", [TENSORRT, CUDA, CPU])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_lean_session_keeps_little_of_a_large_run_and_answers_alike() -> None:
    """In processes of their own: what one frees, the other would find."""
    program = """
import sys
import numpy as np
from models_zoo.cards import ENTRIES, find_card
from service.engine.onnx import OnnxRuntime

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

lean = sys.argv[1] == "lean"
card = find_card("reptile-omniglot")
runtime = OnnxRuntime(card, ENTRIES, "cpu", threads=1, lean=lean)
before = resident()
x = np.random.default_rng(0).random((1, 100, 1, 28, 28), np.float32)
labels = np.arange(100)[None] % 5
found = runtime.adapt(
    x, labels, np.ones((1, 100), bool), np.ones((1, 5), bool), np.full(1, 0.01, np.float32)
)
print(resident() - before, sum(float(np.abs(value).sum()) for value in found.values()))
"""
    kept, totals = {}, {}
    for kind in ("lean", "usual"):
        done = subprocess.run(
            [sys.executable, "-c", program, kind], capture_output=True, text=True, check=True
        )
        size, totals[kind] = done.stdout.split()
        kept[kind] = int(size)
    assert totals["lean"] == totals["usual"]
    assert kept["lean"] < kept["usual"] / 2
