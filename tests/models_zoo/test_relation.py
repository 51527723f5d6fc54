"""Relation Networks against the paper's network, pair by pair."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.metric.relation import RelationNetwork
from tests.models_zoo.making import MIXED, images, make, support_of


def relation_module(learner: RelationNetwork, pair: Tensor) -> Tensor:
    """Sung et al., figure 2, on a pair of maps put together `[2 C, h, w]`; before the sigmoid."""
    kernel = torch.cat([learner.of_class.weight, learner.of_query.weight], dim=1)
    x = F.max_pool2d(F.relu(learner.norm(F.conv2d(pair[None], kernel, padding=1))), 2)
    convolution, norm = learner.second[0], learner.second[1]
    x = F.max_pool2d(F.relu(norm(F.conv2d(x, convolution.weight, padding=1))), 2)
    first, last = learner.score[0], learner.score[2]
    hidden = F.relu(first.weight @ x.flatten() + first.bias)
    return (last.weight @ hidden + last.bias)[0]


@torch.no_grad()
@pytest.mark.parametrize("shots", ["sum", "mean"])
def test_every_pair_goes_through_the_relation_module(shots: Literal["sum", "mean"]) -> None:
    learner = make("relation")
    assert isinstance(learner, RelationNetwork)
    learner.shots = shots
    support = support_of(MIXED, 8, 4, 4)
    query = torch.randn(len(MIXED), 3, 8, 4, 4, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        for k in range(support.way):
            own = support.x[task][support.mask[task] & (support.labels[task] == k)]
            if not len(own):
                assert (found.probabilities[task, :, k] == 0).all()
                continue
            pooled = own.sum(0) if shots == "sum" else own.mean(0)
            for number, x in enumerate(query[task]):
                expected = relation_module(learner, torch.cat([pooled, x]))
                assert torch.allclose(found.logits[task, number, k], expected, atol=1e-9)
                weights = found.task_attention[task, 0, number]
                mine = weights[support.mask[task] & (support.labels[task] == k)]
                share = found.probabilities[task, number, k] / len(own)
                assert torch.allclose(mine, share.expand(len(own)), atol=1e-9)


@torch.no_grad()
def test_probabilities_are_the_odds_of_the_relations() -> None:
    """p_k is proportional to r_k / (1 - r_k)."""
    learner = make("relation")
    support = support_of([(0, 1, 2, 2)], 8, 4, 4)
    found = learner.predict(learner.adapt(support), torch.randn(1, 2, 8, 4, 4, dtype=torch.float64))
    relation = found.logits.sigmoid()
    odds = relation / (1 - relation)
    assert torch.allclose(found.probabilities, odds / odds.sum(-1, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 5), (20, 1), (31, 2)])
def test_one_model_takes_any_way_and_shot(way: int, shot: int) -> None:
    learner = make("relation")
    support = support_of([[k for k in range(way) for _ in range(shot)]], 2, 16, 16)
    state = learner.adapt(support.with_x(learner.encode_batch(support.x)))
    assert learner.predict(state, learner.encode_batch(images(1, 3))).logits.shape == (1, 3, way)


def test_only_the_first_two_blocks_halve_the_map() -> None:
    learner = RelationNetwork(channels=1, image_size=28)
    assert learner.encode(torch.rand(2, 1, 28, 28)).shape == (2, 64, 7, 7)
    assert learner.score[0].weight.shape == (8, 64)
