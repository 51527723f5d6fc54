"""MetaOptNet's base learners, task by task, against the problems that they are said to solve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo.closed_form.metaoptnet import MetaOptNet
from models_zoo.episode import Support
from tests.models_zoo.making import MIXED, support_of

SUPPORT = support_of(MIXED, 6, way=5)
QUERY = torch.rand(5, 4, 6, dtype=torch.float64)
LAMBDA = 0.7


def task_of(support: Support, task: int) -> tuple[Tensor, Tensor]:
    """Its real examples and their one-hot labels."""
    kept = support.mask[task]
    return support.x[task, kept], torch.eye(5).double()[support.labels[task, kept]]


def ridge() -> MetaOptNet:
    return MetaOptNet(backbone="conv4-8", regularization=LAMBDA, scale=3.0).double()


def test_ridge_scores_are_those_of_the_least_squares_problem() -> None:
    """Solved in the primal, as least squares with sqrt(lambda) I as further rows."""
    learner = ridge()
    with torch.no_grad():
        logits = learner.predict(learner.adapt(SUPPORT), QUERY).logits
    for task in range(5):
        x, y = task_of(SUPPORT, task)
        rows = torch.cat([x, LAMBDA**0.5 * torch.eye(6).double()])
        targets = torch.cat([y, torch.zeros(6, 5).double()])
        weights = torch.linalg.lstsq(rows, targets).solution  # [D, way]
        expected = 3.0 * QUERY[task] @ weights
        present = SUPPORT.class_mask[task]
        assert torch.allclose(logits[task][:, present], expected[:, present], atol=1e-9)


def test_ridge_alpha_is_stationary() -> None:
    """The gradient of the ridge's own loss is zero at W = X^T alpha, by autograd."""
    with torch.no_grad():
        state = ridge().adapt(SUPPORT)
    for task in range(5):
        x, y = task_of(SUPPORT, task)
        alpha = state["alpha"][task, SUPPORT.mask[task]]
        weights = (x.T @ alpha).requires_grad_()
        loss = (x @ weights - y).square().sum() + LAMBDA * weights.square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        assert gradient.abs().max() < 1e-9


def test_the_svm_s_scores_are_those_of_the_problem_it_is_said_to_solve() -> None:
    """The primal, minimised by subgradients from the solution: nothing nearby is better."""
    learner = MetaOptNet(backbone="conv4-8", head="svm", cost=0.4, steps=2000, scale=3.0).double()
    with torch.no_grad():
        state = learner.adapt(SUPPORT)
        logits = learner.predict(state, QUERY).logits
    generator = torch.Generator().manual_seed(0)
    for task in range(5):
        x, y = task_of(SUPPORT, task)
        present = SUPPORT.class_mask[task]
        y = y[:, present]
        own = torch.cat([x, torch.eye(len(x)).double()], dim=1)  # the identity that is added

        def primal(weights: Tensor, own: Tensor = own, y: Tensor = y) -> Tensor:
            scores = own @ weights
            hinge = (1 - y + scores - (scores * y).sum(-1, keepdim=True)).max(-1).values
            return 0.5 * weights.square().sum() + 0.4 * hinge.sum()

        weights = own.T @ state["alpha"][task, SUPPORT.mask[task]][:, present]
        for size in (1e-4, 1e-2, 1.0):
            for _ in range(20):
                step = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
                assert primal(weights + size * step) > primal(weights) - 1e-9
        expected = 3.0 * QUERY[task] @ weights[:6]
        assert torch.allclose(logits[task][:, present], expected, atol=1e-9)


@pytest.mark.parametrize("head", ["ridge", "svm"])
def test_scores_have_the_right_derivatives_through_the_optimum(head: str) -> None:
    """By finite differences, of the support's and the queries' features."""
    support = support_of([(0, 1, 2, 1), (1, 0, None, None)], 3, way=3)
    learner = MetaOptNet(backbone="conv4-8", head=head, steps=200).double()  # type: ignore[arg-type]
    learner.requires_grad_(False)

    def scores(x: Tensor, query: Tensor) -> Tensor:
        return learner.predict(learner.adapt(support.with_x(x)), query).logits

    start = support.x.clamp(max=1).requires_grad_(), torch.rand(2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(scores, start)
