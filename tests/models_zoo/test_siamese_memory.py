"""Siamese with Memory against Kaiser et al.'s update rule, with lists for a memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo.episode import ABSENT
from models_zoo.model_based.siamese_memory import SiameseMemory
from tests.models_zoo.making import MIXED, make, support_of

LONG = ((0, 1, 2, 0, None, 1, 2, 2, 0), (1, 1, 1, 0, 0, 0, None, 0, 1), (0, 1))


def write(features: Tensor, labels: list[int], slots: int) -> tuple[list[Tensor], list[int]]:
    """Keys and values after the examples `[N, D]`, one after another, as the paper says."""
    keys: list[Tensor] = []
    values: list[int] = []
    ages: list[int] = []
    for x, v in zip(features, labels, strict=True):
        q = x / x.norm()
        n1 = max(range(len(keys)), key=lambda i: float(q @ keys[i]), default=None)
        ages = [age + 1 for age in ages]
        if n1 is not None and values[n1] == v:
            joined = q + keys[n1]
            keys[n1], ages[n1] = joined / joined.norm(), 0
        elif len(keys) < slots:
            keys.append(q)
            values.append(v)
            ages.append(0)
        else:
            oldest = ages.index(max(ages))
            keys[oldest], values[oldest], ages[oldest] = q, v, 0
    return keys, values


@torch.no_grad()
@pytest.mark.parametrize("slots", [1, 2, 3, 20])
@pytest.mark.parametrize("labels", [MIXED, LONG])
def test_the_answer_is_the_value_of_the_nearest_key(
    labels: tuple[tuple[int | None, ...], ...], slots: int
) -> None:
    learner = make("siamese_memory")
    assert isinstance(learner, SiameseMemory)
    learner.slots = slots
    support = support_of(labels, 6)
    query = torch.randn(len(labels), 4, 6, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    for task in range(len(labels)):
        kept = support.mask[task]
        keys, values = write(support.x[task, kept], support.labels[task, kept].tolist(), slots)
        for number, x in enumerate(query[task]):
            near = [float(x / x.norm() @ key) for key in keys]
            for c in range(support.way):
                mine = [s for s, v in zip(near, values, strict=True) if v == c]
                present = bool(support.class_mask[task, c])
                expected = learner.scale * max(mine, default=-1.0) if present else ABSENT
                assert float(found.logits[task, number, c]) == pytest.approx(expected, abs=1e-9)
            assert found.logits[task, number].argmax() == values[near.index(max(near))]


def test_the_cases_above_overwrite_the_oldest() -> None:
    """The reference forgets, so that agreeing with it means something."""
    support = support_of(LONG, 6)
    kept = support.x[0, support.mask[0]]
    labels = [0, 1, 2, 0, 1, 2, 2, 0]
    roomy, crowded = (write(kept, labels, slots)[0] for slots in (20, 2))
    assert len(roomy) > len(crowded) == 2
    assert not torch.allclose(torch.stack(roomy[:2]), torch.stack(crowded))


@torch.no_grad()
def test_a_key_s_weight_is_shared_among_the_examples_in_it() -> None:
    """Two of class 0 close by one another join; one of class 1 stands alone."""
    learner = make("siamese_memory")
    assert isinstance(learner, SiameseMemory)
    support = support_of([(0, 1, 0)], 2)
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]]).double()
    found = learner.predict(learner.adapt(support.with_x(x)), x[:, :1])
    assert found.task_attention is not None
    e = torch.e**learner.scale
    expected = torch.tensor([e / 2, 1, e / 2]) / (e + 1)
    assert torch.allclose(found.task_attention[0, 0, 0].float(), expected.float())


def test_the_gradient_is_the_finite_difference() -> None:
    learner = make("siamese_memory")
    support = support_of([(0, 1, 0, 2, 1)], 4)

    def answer(features: Tensor) -> Tensor:
        return learner.predict(learner.adapt(support.with_x(features)), features[:, :2]).logits

    assert torch.autograd.gradcheck(answer, (support.x.requires_grad_(),), atol=1e-6)
