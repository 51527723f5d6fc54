"""Reptile against a plain restatement: Adam without momentum from PyTorch, one task at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import ABSENT, Support
from models_zoo.optimization.reptile import Reptile
from tests.models_zoo.test_maml import images, mixed_tasks, network
from training.data.sampler import Episode
from training.objectives.reptile import ReptileLoss, part, shuffled

SLOTTED = ("head", "offset")


def small(**config: object) -> Reptile:
    torch.manual_seed(0)
    options = {"channels": 2, "image_size": 13, "hidden": 6, "steps": 4, "inner_lr": 0.02} | config
    return Reptile(**options).double().eval()  # type: ignore[arg-type]


def seasoned(learner: Reptile) -> Reptile:
    """With moments as after 300 steps."""
    for name, buffer in learner.named_buffers():
        buffer.uniform_(1e-4, 1e-2) if "moment" in name else buffer.fill_(0.999**300)
    return learner


def walked(
    learner: Reptile, parts: list[tuple[Tensor, Tensor]], present: Tensor, rates: list[float]
) -> tuple[dict[str, Tensor], torch.optim.Adam]:
    """One task's weights after a step on each of the parts, by PyTorch's Adam with beta1 = 0."""
    way = len(present)
    cut = {name: way if name in SLOTTED else None for name in learner.initial}
    weights = {
        name: value[:, : cut[name]].detach().clone().requires_grad_()
        for name, value in learner.initial.items()
    }
    optimizer = torch.optim.Adam(list(weights.values()), betas=(0.0, 0.999), eps=1e-7)
    for name, value in weights.items():
        optimizer.state[value] = {
            "step": (learner.faded.log() / math.log(0.999)).round(),
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": learner.get_buffer(f"moment_{name}")[:, : cut[name]].clone(),
        }
    absent = torch.where(present, 0.0, -torch.inf).double()
    for (x, labels), rate in zip(parts, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(network(weights, x)[0] + absent, labels).backward()
        optimizer.step()
    return {name: value.detach() for name, value in weights.items()}, optimizer


@pytest.mark.parametrize("old", [False, True])
def test_adaptation_is_adam_without_momentum_for_each_task(old: bool) -> None:
    learner = seasoned(small()) if old else small()
    support, query, _ = mixed_tasks()
    rates = [0.02, 0.01, 0.03]
    state = learner.adapt(support, torch.tensor(rates, dtype=torch.float64))
    logits = learner.predict(state, query).logits
    for b in range(3):
        x, labels = support.x[b, support.mask[b]], support.labels[b, support.mask[b]]
        present = support.class_mask[b]
        weights, _ = walked(learner, [(x, labels)] * 3, present, rates)
        expected = network(weights, query[b], network(weights, x)[1])[0]
        assert torch.allclose(logits[b], expected.masked_fill(~present, ABSENT), rtol=0, atol=1e-9)


def test_steps_build_no_graph_of_the_gradient() -> None:
    learner = small()
    support, _, _ = mixed_tasks()
    rows = learner.start(*support.class_mask.shape)
    after = learner.step(learner.begin(rows), *step_arguments(support))
    # What is left of theta in phi is theta itself: d phi / d theta is the identity.
    moved = torch.autograd.grad(after["kernel1"].sum(), learner.initial["kernel1"])[0]
    assert torch.equal(moved, torch.full_like(moved, 3.0))


def step_arguments(support: Support) -> tuple[object, Tensor, Tensor]:
    from models_zoo.optimization.network import Task

    return Task.of(support), torch.tensor(0.02).double(), torch.tensor(0)


def test_an_answer_does_not_depend_on_who_was_served_before() -> None:
    learner = seasoned(small())
    support, query, _ = mixed_tasks()
    before = learner(support, query).logits
    learner(support.with_x(images(3, 7)), query)
    assert torch.equal(learner(support, query).logits, before)


def episode() -> Episode:
    support, query, targets = mixed_tasks()
    return Episode(support, query, targets, targets * 0, support.labels * 0)


def test_the_loss_s_gradient_is_theta_minus_the_mean_of_phi() -> None:
    learner = seasoned(small()).train()
    objective, given = ReptileLoss(steps=3, minibatch=4), episode()
    before = {name: value.clone() for name, value in learner.named_buffers()}
    torch.manual_seed(5)
    objective(learner, given)[0].backward()
    after = {name: value.clone() for name, value in learner.named_buffers()}
    for name, buffer in learner.named_buffers():
        buffer.copy_(before[name])

    torch.manual_seed(5)
    order = shuffled(given.support.mask, 12)
    tasks = []
    for b in range(3):
        parts = [
            (given.support.x[b, rows], given.support.labels[b, rows]) for rows in order[b].split(4)
        ]
        tasks.append(walked(learner, parts, given.support.class_mask[b], [0.02] * 3))
    for name, theta in learner.initial.items():
        phi = torch.stack([weights[name] for weights, _ in tasks]).mean(0)
        expected = theta[:, : phi.shape[1]] - phi
        assert theta.grad is not None
        assert torch.allclose(theta.grad[:, : phi.shape[1]], expected, rtol=0, atol=1e-9)
        assert not theta.grad[:, phi.shape[1] :].any()
        moments = [adam.state[weights[name]]["exp_avg_sq"] for weights, adam in with_leaves(tasks)]
        kept = after[f"moment_{name}"][:, : phi.shape[1]]
        assert torch.allclose(kept, torch.stack(moments).mean(0), atol=1e-12)
    assert after["faded"] == pytest.approx(0.999**303)


def with_leaves(
    tasks: list[tuple[dict[str, Tensor], torch.optim.Adam]],
) -> list[tuple[dict[str, Tensor], torch.optim.Adam]]:
    """The tasks' weights as the tensors that the optimiser knows them by."""
    return [
        (dict(zip(weights, adam.param_groups[0]["params"], strict=True)), adam)
        for weights, adam in tasks
    ]


def test_evaluation_leaves_the_moments_alone() -> None:
    learner = seasoned(small())
    before = {name: value.clone() for name, value in learner.named_buffers()}
    ReptileLoss(steps=2, minibatch=3)(learner, episode())
    assert all(torch.equal(before[name], value) for name, value in learner.named_buffers())


def test_minibatches_take_every_example_before_any_comes_again() -> None:
    mask = torch.tensor([[True, False, True, True, True], [False, True, True, False, False]])
    rows = shuffled(mask, 9)
    assert rows.shape == (2, 9)
    for b, count in enumerate((4, 2)):
        real = set(mask[b].nonzero().flatten().tolist())
        for start in range(0, 9 - count, count):
            assert set(rows[b, start : start + count].tolist()) == real
    torch.manual_seed(0)
    assert len({tuple(shuffled(mask, 4)[0].tolist()) for _ in range(40)}) > 10
    support, _, _ = mixed_tasks()
    some = part(support, torch.tensor([[6, 0], [1, 1], [0, 3]]))
    assert torch.equal(some.x[0, 0], support.x[0, 6])
    assert some.labels.tolist() == [[2, 0], [0, 0], [2, 1]]
    assert some.mask.all() and torch.equal(some.class_mask, support.class_mask)
