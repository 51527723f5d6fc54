"""The Siamese Network against the paper's formula, pair by pair."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from models_zoo.metric.siamese import SiameseNetwork
from tests.models_zoo.making import MIXED, make, support_of

DIM = 8


def score(learner: SiameseNetwork, a: Tensor, b: Tensor) -> Tensor:
    """alpha . |h_1 - h_2| + bias: the odds of "same", in logarithms."""
    h = [torch.sigmoid(learner.embed.weight @ x + learner.embed.bias) for x in (a, b)]
    pairs = zip(learner.alpha, h[0], h[1], strict=True)
    return sum(alpha * (p - q).abs() for alpha, p, q in pairs) + learner.bias


@torch.no_grad()
@pytest.mark.parametrize("decide", ["mean", "most_similar"])
def test_a_query_is_compared_with_every_example(decide: Literal["mean", "most_similar"]) -> None:
    learner = make("siamese")
    assert isinstance(learner, SiameseNetwork)
    learner.decide = decide
    support = support_of(MIXED, DIM)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        kept = support.mask[task]
        labels = support.labels[task, kept].tolist()
        for number, x in enumerate(query[task]):
            scores = [float(score(learner, x, one)) for one in support.x[task, kept]]
            for k in set(labels):
                own = [s for s, y in zip(scores, labels, strict=True) if y == k]
                expected = max(own) if decide == "most_similar" else sum(own) / len(own)
                assert float(found.logits[task, number, k]) == pytest.approx(expected)
            powers = [math.exp(s) for s in scores]
            weights = found.task_attention[task, 0, number]
            expected_weights = torch.tensor([p / sum(powers) for p in powers]).double()
            assert torch.allclose(weights[kept], expected_weights, atol=1e-6)
            assert (weights[~kept] == 0).all()


@torch.no_grad()
def test_the_comparison_has_no_side() -> None:
    learner = make("siamese")
    x = torch.randn(1, 2, DIM, dtype=torch.float64)
    a, b = (
        learner.predict(learner.adapt(support_of([(0,)], DIM).with_x(one)), other).logits
        for one, other in ((x[:, :1], x[:, 1:]), (x[:, 1:], x[:, :1]))
    )
    assert torch.allclose(a, b)


@torch.no_grad()
def test_nothing_is_more_alike_than_an_image_and_itself_at_the_start() -> None:
    torch.manual_seed(0)
    learner = SiameseNetwork(channels=1, image_size=28)
    images = torch.rand(1, 6, 1, 28, 28)
    labels = torch.arange(6)[None]
    support = support_of([range(6)], 1, 28, 28).with_x(images)
    assert (learner.eval()(support, images).logits.argmax(-1) == labels).all()
