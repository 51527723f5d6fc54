"""Where a gradient-adapting learner's answer comes from: gradient times activation, and exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import TaskState
from tests.models_zoo.test_maml import mixed_tasks, small


def follow(state: TaskState, task: int, layers: range, x: Tensor) -> Tensor:
    """Some layers of one task's frozen network, on images or maps `[n, D, h, w]`, by conv2d."""
    for layer in layers:
        kernel = state[f"kernel{layer}"][task].unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, state[f"bias{layer}"][task, 0], stride=2, padding=1).relu()
    return x


def test_the_weights_are_gradient_times_activation_of_the_answers_lead() -> None:
    learner, (support, query, _) = small().eval(), mixed_tasks()
    state = {name: value.detach() for name, value in learner.adapt(support).items()}
    found = learner.predict(state, query)
    assert found.query_attention is not None and found.query_attention.shape == (3, 1, 4, 4, 4)
    for task in range(3):
        present = support.class_mask[task]
        for number in range(4):
            maps = follow(state, task, range(2), query[task, number : number + 1]).requires_grad_()
            features = follow(state, task, range(2, 4), maps).mean((2, 3))
            logits = (features @ state["head"][task] + state["offset"][task])[0, present]
            (slope,) = torch.autograd.grad(logits.max() - logits.mean(), maps)
            adds = (slope * maps).sum(1)[0].relu()
            weights = found.query_attention[task, 0, number]
            assert torch.allclose(weights, adds / adds.sum(), atol=1e-12), (task, number)


def test_what_the_places_add_and_the_biases_make_up_the_lead_exactly() -> None:
    """Without biases from there on, the whole lead is what the places of the shown maps add."""
    learner, (support, query, _) = small().eval(), mixed_tasks()
    state = learner.adapt(support)
    for name in ("bias2", "bias3", "offset"):
        state[name] = torch.zeros_like(state[name])
    trail = learner.network.follow(state, query)
    logits = learner.predict(state, query).logits
    present = support.class_mask.unsqueeze(1).double()
    best = F.one_hot(logits.argmax(-1), 3).double()
    away = best - present / present.sum(-1, keepdim=True)
    adds = learner.network.relevance(state, trail, away @ state["head"].mT)
    lead = (logits.masked_fill(present == 0, 0.0) * away).sum(-1)
    assert (lead > 0).all()
    assert torch.allclose(adds.sum((2, 3)), lead, atol=1e-12)


@pytest.mark.parametrize("class_count", [1, 3])
def test_where_no_place_speaks_for_the_answer_all_count_the_same(class_count: int) -> None:
    learner, (support, query, _) = small().eval(), mixed_tasks()
    state = learner.adapt(support)
    if class_count == 1:  # the only class leads nobody
        state["class_mask"] = torch.tensor([[True, False, False]]).expand(3, -1)
    else:
        state["head"] = torch.zeros_like(state["head"])
    found = learner.predict(state, query).query_attention
    assert found is not None
    assert torch.allclose(found, torch.full_like(found, 1 / 16))


def test_the_weights_are_no_part_of_training() -> None:
    learner, (support, query, _) = small(), mixed_tasks()
    assert learner.predict(learner.adapt(support), query).query_attention is None
    found = learner.eval().predict(learner.adapt(support), query)
    assert found.logits.requires_grad and found.query_attention is not None
    assert not found.query_attention.requires_grad
