"""Runtimes: batches equal single tasks, shapes are checked, devices are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models_zoo.cards import find_card
from service.engine.engine import run_batch
from service.engine.episode import Answer, Attention, Batch
from service.engine.onnx import OnnxRuntime
from service.engine.providers import CPU, CUDA, choose
from tests.service.gate import episode


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
