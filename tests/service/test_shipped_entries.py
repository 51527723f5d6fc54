"""The shipped entries as the service runs them: alone, in company, and in PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models_zoo.cards import ENTRIES, Card, list_cards
from service.engine.episode import Answer, Episode
from service.engine.onnx import OnnxRuntime
from service.engine.runtime import Runtime
from service.engine.stages import answers

ROOT = Path(__file__).parents[2]
CARDS = list_cards()


def episode(card: Card, seed: int, way: int, shot: int, queries: int) -> Episode:
    rng, spec = np.random.default_rng(seed), card.input
    shape = (spec.channels, spec.height, spec.width)
    rates = card.adaptation and (card.adaptation.inner_lr,) * min(2, card.adaptation.max_steps)
    return Episode(
        model=card.id,
        support=rng.integers(0, 256, (way * shot, *shape), dtype=np.uint8),
        labels=np.repeat(np.arange(way), shot),
        way=way,
        query=rng.integers(0, 256, (queries, *shape), dtype=np.uint8),
        inner_lr=rates,
        attention=True,
        remember=True,
    )


def mixed(card: Card) -> list[Episode]:
    sizes = ((2, 1, 1), (5, 1, 1), (3, 2, 7), (5, 1, 1), (5, 5, 5))
    return [episode(card, seed, *size) for seed, size in enumerate(sizes)]


def asked(runtime: Runtime, episodes: list[Episode]) -> list[Answer]:
    found = dict(answers(runtime, episodes))
    assert all(isinstance(answer, Answer) for answer in found.values()), found
    return [found[row] for row in range(len(episodes))]


def parts(answer: Answer) -> list[np.ndarray]:
    seen = answer.attention
    return [answer.logits, *(p for p in (seen.task, seen.query, seen.support) if p is not None)]


def check_alike(card: Card, some: list[Answer], others: list[Answer]) -> None:
    """Within rounding, in probabilities and weights. Noise is what a solver's fifty steps are least
    sure of: 5e-4 was seen. Where rounding turns a ReLU, gradient steps learn something else: that
    may happen in a few of the tasks, and 3e-2 of a place's weight was seen; so it does in double
    precision, if the initial weights are other by a millionth.
    """
    gaps = [
        max(
            float(np.abs(one - other).max())
            for one, other in zip(compared(ours), compared(theirs), strict=True)
        )
        for ours, theirs in zip(some, others, strict=True)
    ]
    if card.adaptation:
        assert sorted(gaps)[len(gaps) // 2] < 1e-4, gaps
        assert max(gaps) < 5e-2, gaps
    else:
        assert max(gaps) < (1e-3 if card.config.get("head") == "svm" else 1e-4), gaps


def compared(answer: Answer) -> list[np.ndarray]:
    return [answer.probabilities, *parts(answer)[1:]]


@pytest.mark.parametrize("name", CARDS)
def test_company_changes_no_bit_of_an_answer(name: str) -> None:
    """Also not whether the features or what was learned come from a cache."""
    runtime = OnnxRuntime(CARDS[name], ENTRIES, "cpu", threads=2, chunk=16)
    assert runtime._chunk == 16  # its encoder answers alike in batches of any size
    episodes = mixed(CARDS[name])
    for one, together in zip(episodes, asked(runtime, episodes), strict=True):
        [alone] = asked(runtime, [one])
        assert together.features is not None
        known = {i: together.features[i] for i in range(len(one.labels))}
        none = one.support[:0]
        kept = [
            Episode(**(vars(one) | {"support": none, "known": known})),
            Episode(**(vars(one) | {"support": none, "state": together.state})),
        ]
        for other in (together, *asked(runtime, [*episodes[:2], *kept])[2:]):
            for ours, theirs in zip(parts(other), parts(alone), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", CARDS)
def test_tasks_joined_in_one_pass_answer_alike(name: str) -> None:
    """As on a GPU: padded to each other's size, within rounding."""
    runtime = OnnxRuntime(CARDS[name], ENTRIES, "cpu", threads=2)
    runtime.joins_tasks = True
    episodes = mixed(CARDS[name])
    alone = [answer for one in episodes for answer in asked(runtime, [one])]
    check_alike(CARDS[name], asked(runtime, episodes), alone)


@pytest.mark.parametrize("name", CARDS)
def test_pytorch_answers_as_onnx_runtime_does(name: str) -> None:
    pytest.importorskip("torch")
    from service.engine.torch import TorchRuntime

    episodes = mixed(CARDS[name])
    ours = asked(TorchRuntime(CARDS[name], ENTRIES, "cpu"), episodes)
    theirs = asked(OnnxRuntime(CARDS[name], ENTRIES, "cpu", threads=2), episodes)
    check_alike(CARDS[name], ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.state is not None and other.state is not None
        shapes = [{k: v.shape for k, v in each.state.items()} for each in (one, other)]
        assert shapes[0] == shapes[1]


def test_a_service_on_pytorch_answers_requests(tmp_path: Path) -> None:
    """By setting, in a process of its own; ONNX Runtime then stays out."""
    pytest.importorskip("torch")
    script = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from service.app import create_app
from service.settings import Settings
from tests.service.asking import ask, encoded, noise, task
with TestClient(create_app(Settings(device="cpu"))) as client:
    model = client.get("/v1/models").json()["models"][0]["id"]
    answer = ask(client, task(), [encoded(noise(1))], model=model)
    assert answer.status_code == 200, answer.text
assert "torch" in sys.modules and "onnxruntime" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"FEWSHOT_RUNTIME": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
