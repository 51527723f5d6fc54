"""ALPaCA against Bayesian linear regression as the paper has it: D x D, and one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from models_zoo.closed_form.alpaca import ALPaCA
from models_zoo.episode import Prediction, Support
from tests.models_zoo.making import MIXED, support_of

D = 6
SUPPORT = support_of(MIXED, D, way=5)
QUERY = torch.rand(5, 4, D, dtype=torch.float64)


def made(prior: str = "full") -> ALPaCA:
    """A learner whose prior is not its starting one."""
    torch.manual_seed(3)
    learner = ALPaCA(backbone="conv4-8", dim=D, prior=prior, precision=2.0, noise=0.3).double()  # type: ignore[arg-type]
    with torch.no_grad():
        learner.prior_mean += 0.5 * torch.randn(D)
        learner.log_diagonal += 0.3 * torch.randn_like(learner.log_diagonal)
        if prior == "full":
            learner.below += 0.4 * torch.randn(D, D)
    return learner.requires_grad_(False)


def prior_of(learner: ALPaCA) -> tuple[Tensor, Tensor]:
    """L_0 `[D, D]` and the common column of K_0 `[D]`."""
    inverse = learner.whiten(torch.eye(D).double()).T  # of L: column i is L^-1 e_i
    factor = torch.linalg.inv(inverse)
    assert torch.equal(inverse, inverse.tril())
    return factor @ factor.T, learner.prior_mean


def ask(learner: ALPaCA, support: Support, query: Tensor) -> Prediction:
    return learner.predict(learner.adapt(support), query)


def examples(task: int) -> tuple[Tensor, Tensor]:
    kept = SUPPORT.mask[task]
    return SUPPORT.x[task, kept], torch.eye(5).double()[SUPPORT.labels[task, kept]]


def check(learner: ALPaCA, precision: Tensor, mean: Tensor, task: int) -> None:
    """The posterior N(mean, precision) of a task gives these probabilities and this variance."""
    noise = float(learner.log_noise.exp())
    found = ask(learner, SUPPORT, QUERY)
    assert found.uncertainty is not None
    for number, f in enumerate(QUERY[task]):
        variance = (1 + f @ torch.linalg.inv(precision) @ f) * noise
        assert torch.allclose(found.uncertainty[task, number], variance)
        expected = mean.T @ f
        density = []
        for label in range(5):
            away = torch.eye(5).double()[label] - expected
            # Only over the classes present: the others' coordinates are the same for all of them.
            log = -0.5 * (away @ away) / variance - 2.5 * torch.log(2 * math.pi * variance)
            density.append(log.exp() * SUPPORT.class_mask[task, label])
        total = torch.stack(density) / sum(density)
        assert torch.allclose(found.probabilities[task, number], total, atol=1e-10)


def test_the_answer_is_that_of_the_posterior_over_weights() -> None:
    for prior in ("full", "isotropic"):
        learner = made(prior)
        start, column = prior_of(learner)
        for task in range(5):
            x, y = examples(task)
            precision = start + x.T @ x
            before = start @ column.unsqueeze(-1).expand(-1, 5)
            check(learner, precision, torch.linalg.solve(precision, x.T @ y + before), task)


def test_the_answer_is_that_of_the_paper_s_update_by_one_example_after_another() -> None:
    """Its rank-one update of the inverse precision and of Q = L K."""
    learner = made()
    start, column = prior_of(learner)
    for task in range(5):
        inverse, q = torch.linalg.inv(start), start @ column.unsqueeze(-1).expand(-1, 5)
        for x, y in zip(*examples(task), strict=True):
            step = inverse @ x
            inverse = inverse - torch.outer(step, step) / (1 + x @ step)
            q = q + torch.outer(x, y)
        check(learner, torch.linalg.inv(inverse), inverse @ q, task)


def test_what_is_like_the_examples_is_less_uncertain_and_more_examples_help() -> None:
    learner, x = made(), torch.rand(1, 3, D).double()
    labels = torch.tensor([[0, 1, 0]])
    query = torch.cat([x[:, :1], -5 * x[:, :1]], dim=1)
    few = ask(learner, Support.of(x[:, :2], labels[:, :2]), query).uncertainty
    more = ask(learner, Support.of(x, labels), query).uncertainty
    assert few is not None and more is not None
    assert few[0, 0] < few[0, 1]
    assert (more < few).all()
    assert (more > learner.log_noise.exp()).all()


def test_probabilities_and_uncertainty_have_the_right_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By finite differences, of the features and of all that is learned of the prior."""
    support = support_of([(0, 1, 2, 1), (1, 0, None, None)], 3, way=3)
    torch.manual_seed(0)
    learner = ALPaCA(backbone="conv4-8", dim=3, precision=2.0).double()
    monkeypatch.setattr(learner, "encode", lambda features: features)
    names = [name for name, _ in learner.named_parameters() if not name.startswith("backbone")]
    values = [learner.get_parameter(name).detach() + 0.1 * torch.rand(()) for name in names]

    def answer(x: Tensor, query: Tensor, *prior: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(names, prior, strict=True))
        found = functional_call(learner, parameters, (support.with_x(x), query))
        return found.probabilities, found.uncertainty

    start = [support.x.clamp(max=1), torch.rand(2, 2, 3).double(), *values]
    assert torch.autograd.gradcheck(answer, [value.requires_grad_() for value in start])
