"""Prototypical Networks, class by class and query by query."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.metric.prototypical import PrototypicalNetwork
from tests.models_zoo.making import MIXED, support_of

SUPPORT = support_of(MIXED, 6, way=5)
QUERY = torch.rand(5, 4, 6, dtype=torch.float64)


def examples_of(support: Support, task: int, label: int) -> list[Tensor]:
    rows = zip(support.x[task], support.labels[task], support.mask[task], strict=True)
    return [x for x, y, real in rows if real and y == label]


def mean(vectors: list[Tensor]) -> Tensor:
    return sum(vectors, torch.zeros_like(vectors[0])) / len(vectors)


def test_prototypes_are_class_means() -> None:
    prototypes = PrototypicalNetwork().adapt(SUPPORT)["prototypes"]
    for task in range(5):
        for label in SUPPORT.labels[task][SUPPORT.mask[task]].unique().tolist():
            expected = mean(examples_of(SUPPORT, task, label))
            assert torch.allclose(prototypes[task, label], expected, atol=1e-12)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_probabilities_follow_the_distances_to_the_class_means(distance: str) -> None:
    learner = PrototypicalNetwork(distance=distance, scale=7.0)  # type: ignore[arg-type]
    prediction = learner.predict(learner.adapt(SUPPORT), QUERY)
    for task in range(5):
        labels = SUPPORT.labels[task][SUPPORT.mask[task]].unique().tolist()
        for number, query in enumerate(QUERY[task]):
            closeness = {}
            for label in labels:
                centre = mean(examples_of(SUPPORT, task, label))
                if distance == "euclidean":
                    closeness[label] = -((query - centre) ** 2).sum()
                else:
                    closeness[label] = 7 * (query @ centre) / (query.norm() * centre.norm())
            total = sum(torch.exp(value) for value in closeness.values())
            for label in range(5):
                expected = torch.exp(closeness[label]) / total if label in closeness else 0.0
                got = prediction.probabilities[task, number, label]
                assert float(got) == pytest.approx(float(expected), abs=1e-9)


def test_task_attention_shares_a_class_s_probability_among_its_examples() -> None:
    learner = PrototypicalNetwork()
    prediction = learner.predict(learner.adapt(SUPPORT), QUERY)
    assert prediction.task_attention is not None
    weights = prediction.task_attention[:, 0]
    assert prediction.task_attention.shape == (5, 1, 4, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(5, 4, dtype=torch.float64))
    assert (weights.transpose(1, 2)[~SUPPORT.mask] == 0).all()
    for task in range(5):
        for label in range(5):
            mine = SUPPORT.mask[task] & (SUPPORT.labels[task] == label)
            share = weights[task][:, mine]
            assert torch.allclose(share.sum(-1), prediction.probabilities[task, :, label])
            if mine.any():
                assert torch.allclose(share, share[:, :1].expand_as(share))
