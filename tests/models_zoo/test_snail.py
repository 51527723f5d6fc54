"""SNAIL against the sequence of its paper: one task, one query at the end, step by step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.model_based.snail import SNAIL, Attention, DenseBlock
from tests.models_zoo.making import MIXED, make, support_of


def naive(learner: SNAIL, features: Tensor, labels: list[int], query: Tensor) -> tuple[Tensor, ...]:
    """Logits of all slots and each attention block's weights over the support examples."""
    slots = learner.max_way or 0
    rows = [*F.one_hot(torch.tensor(labels), slots).double(), torch.zeros(slots).double()]
    steps = [torch.cat([x, y]) for x, y in zip([*features, query], rows, strict=True)]
    seen = []
    for layer in learner.layers:
        if isinstance(layer, DenseBlock):
            blank = torch.zeros_like(steps[0])
            d = layer.dilation
            before = [steps[t - d] if t >= d else blank for t in range(len(steps))]
            after = []
            for x, earlier in zip(steps, before, strict=True):
                both = layer.now.weight @ x + layer.now.bias + layer.before.weight @ earlier
                half = len(both) // 2
                after.append(torch.cat([x, torch.tanh(both[:half]) * torch.sigmoid(both[half:])]))
        else:
            assert isinstance(layer, Attention)
            after = []
            for t, x in enumerate(steps):
                q = layer.query(x)
                scores = torch.stack([q @ layer.key(steps[s]) for s in range(t + 1)])
                weights = (scores / math.sqrt(len(q))).softmax(0)
                read = sum(w * layer.value(steps[s]) for s, w in enumerate(weights))
                after.append(torch.cat([x, read]))
            seen.append(weights[:-1] / weights[:-1].sum())
        steps = after
    return learner.output(steps[-1]), *seen


@torch.no_grad()
def test_the_answer_is_that_of_the_whole_sequence_with_the_query_at_its_end() -> None:
    learner = make("snail")
    assert isinstance(learner, SNAIL)
    dilations = [layer.dilation for layer in learner.layers if isinstance(layer, DenseBlock)]
    assert dilations == [1, 2, 4]
    support = support_of(MIXED, 5, way=5)
    query = torch.randn(len(MIXED), 3, 5, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        kept = support.mask[task]
        for number in range(3):
            logits, *weights = naive(
                learner,
                support.x[task, kept],
                support.labels[task, kept].tolist(),
                query[task, number],
            )
            present = support.class_mask[task]
            assert torch.allclose(found.logits[task, number, present], logits[present], atol=1e-9)
            for layer, expected in enumerate(weights):
                got = found.task_attention[task, layer, number, kept]
                assert torch.allclose(got, expected, atol=1e-9)


def test_the_gradient_is_the_finite_difference() -> None:
    learner = make("snail")
    support = support_of([(0, 1, None, 0), (2, 0, 1, None)], 5)

    def loss(features: Tensor) -> Tensor:
        state = learner.adapt(support.with_x(features))
        return learner.predict(state, features[:, 1:3]).probabilities[..., :2].square()

    features = support.x.clamp(max=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (features,), atol=1e-6)


@torch.no_grad()
def test_one_more_example_leaves_what_was_kept_of_the_others() -> None:
    """Nothing looks ahead: the keys and values of the first examples stay as they were."""
    learner = make("snail")
    longer = support_of([(0, 1, 2, 1)], 5)
    shorter = Support.of(longer.x[:, :3], longer.labels[:, :3], way=3)
    few, more = learner.adapt(shorter), learner.adapt(longer)
    for name in (name for name in few if name.startswith(("keys", "values"))):
        assert torch.allclose(few[name], more[name][:, :3], atol=1e-12)


@pytest.mark.parametrize(("length", "blocks"), [(2, 1), (8, 3), (9, 4)])
def test_a_row_of_dense_blocks_spans_the_length(length: int, blocks: int) -> None:
    learner = SNAIL(1, 16, 4, 4, 3, [(2, 2), (2, 2), (2, 2)], 2, length)
    assert sum(isinstance(layer, DenseBlock) for layer in learner.layers) == 2 * blocks
