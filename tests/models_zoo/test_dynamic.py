"""Gidaris and Komodakis' weight generator against the paper's sums, example by example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models_zoo.metric.dynamic import DynamicFewShot
from tests.models_zoo.differences import check_gradient
from tests.models_zoo.making import MIXED, make, support_of

DIM = 8


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def generated(learner: DynamicFewShot, examples: list[Tensor], hidden: set[int]) -> Tensor:
    """w' of a class of these examples, from the base classes that are not hidden."""
    generator = learner.generator
    bases = [b for b in range(len(learner.base)) if b not in hidden]
    average = sum(unit(x) for x in examples) / len(examples)
    read = torch.zeros(DIM, dtype=torch.float64)
    for x in examples:
        key = unit(generator.query.weight @ unit(x))
        gamma = float(generator.log_scale.exp())
        powers = [math.exp(gamma * float(key @ unit(generator.keys[b]))) for b in bases]
        for b, power in zip(bases, powers, strict=True):
            read += power / sum(powers) * unit(learner.base[b]) / len(examples)
    return generator.average * average + generator.attention * read


@torch.no_grad()
def test_weights_are_generated_from_examples_and_base_weights() -> None:
    learner = make("dynamic")
    assert isinstance(learner, DynamicFewShot)
    support = support_of(MIXED, DIM)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    hidden = torch.rand(len(MIXED), len(learner.base)) < 0.3
    for hides in (None, hidden):
        state = learner.adapt_hiding(support, hides)
        found = learner.predict(state, query)
        for task in range(len(MIXED)):
            away = set() if hides is None else set(hides[task].nonzero().flatten().tolist())
            for k in range(support.way):
                own = support.mask[task] & (support.labels[task] == k)
                if not own.any():
                    continue
                weights = generated(learner, list(support.x[task, own]), away)
                for number, z in enumerate(query[task]):
                    expected = learner.log_scale.exp() * (unit(weights) @ unit(z))
                    assert torch.allclose(found.logits[task, number, k], expected)


@torch.no_grad()
def test_all_base_classes_are_read_outside_of_training() -> None:
    learner = make("dynamic")
    assert isinstance(learner, DynamicFewShot)
    support = support_of(MIXED, DIM)
    nothing = torch.zeros(len(MIXED), len(learner.base), dtype=torch.bool)
    a, b = learner.adapt(support), learner.adapt_hiding(support, nothing)
    assert all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def test_base_classes_are_told_by_scaled_cosines() -> None:
    learner = make("dynamic")
    assert isinstance(learner, DynamicFewShot)
    z = torch.randn(4, DIM, dtype=torch.float64)
    found = learner.base_logits(z)
    for number in range(4):
        for b, weights in enumerate(learner.base):
            expected = learner.log_scale.exp() * (unit(z[number]) @ unit(weights))
            assert torch.allclose(found[number, b], expected)


@torch.no_grad()
def test_features_have_either_sign() -> None:
    """Without the last ReLU; cosines of positive vectors could not be negative."""
    learner = make("dynamic")
    features = learner.encode(torch.rand(3, 2, 16, 16, dtype=torch.float64))
    assert (features < 0).any()
    assert (make("matching").encode(torch.rand(3, 2, 16, 16, dtype=torch.float64)) >= 0).all()


def test_the_gradient_of_keys_and_base_weights_is_the_finite_difference() -> None:
    learner = make("dynamic")
    assert isinstance(learner, DynamicFewShot)
    support = support_of([(0, 1, 1)], DIM)
    query = torch.randn(1, 2, DIM, dtype=torch.float64)

    def loss() -> Tensor:
        return learner.predict(learner.adapt(support), query).probabilities.square().sum()

    parts = [learner.base, *learner.generator.parameters()]
    check_gradient(loss, parts)
