"""MetaNet against its algorithm: one task at a time, gradients by autograd, weight by weight."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.model_based.metanet import MetaNet, preprocess
from tests.models_zoo.making import MIXED, make, support_of


def metanet() -> MetaNet:
    learner = make("metanet")
    assert isinstance(learner, MetaNet)
    return learner


def scaled(g: float) -> list[float]:
    """Ravi and Larochelle's preprocessing, with k = 7."""
    if abs(g) >= math.exp(-7):
        return [math.log(abs(g)) / 7, math.copysign(1, g)]
    return [-1, math.exp(7) * g]


def naive(learner: MetaNet, support: Support, task: int, query: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[Q, way]` and attention `[Q, n]` of one task without its padding."""
    kept, present = support.mask[task], support.class_mask[task]
    features, labels = support.x[task, kept], support.labels[task, kept]
    absent = torch.where(present, 0.0, -torch.inf).double()
    way = support.way

    def loss(x: Tensor, y: Tensor, first: Tensor, last: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy((x @ first + bias).relu() @ last[:, :way] + absent, y)

    slow_q = learner.embed.detach().requires_grad_()
    slow_w = learner.last.detach().requires_grad_()
    hidden, bias = learner.hidden.weight.detach().T, learner.hidden.bias.detach()
    by_q, by_w = [], []
    for x, y in zip(features, labels, strict=True):
        by_q.append(torch.autograd.grad(loss(x, y, slow_q, slow_w, 0 * bias), slow_q)[0])
        by_w.append(torch.autograd.grad(loss(x, y, hidden, slow_w, bias), slow_w)[0][:, :way])
    with torch.no_grad():
        fast_q = torch.zeros_like(slow_q)
        for i in range(fast_q.shape[0]):
            for j in range(fast_q.shape[1]):
                steps = [scaled(float(g[i, j])) for g in by_q[: learner.samples]]
                run = learner.fast_embedding.lstm(torch.tensor(steps).double())[0]
                fast_q[i, j] = learner.fast_embedding.output(run[-1])
        fast_w = []
        for g in by_w:
            first, _, second = learner.fast_classifier.layers
            values = torch.tensor([scaled(float(v)) for v in g.flatten()]).double()
            fast_w.append(second(first(values).relu()).view_as(g))

        def represent(x: Tensor) -> Tensor:
            return (x @ slow_q).relu() + (x @ fast_q).relu()

        logits, attention = [], []
        for x in query:
            near = [F.cosine_similarity(represent(x), represent(r), dim=0) for r in features]
            a = (learner.log_scale.exp() * torch.stack(near)).softmax(0)
            w = sum(weight * fast for weight, fast in zip(a, fast_w, strict=True))
            h = (x @ hidden + bias).relu()
            logits.append(h @ slow_w[:, :way] + h @ w)
            attention.append(a)
    return torch.stack(logits), torch.stack(attention)


@pytest.mark.parametrize("labels", [MIXED, ((0, 1), (0, 1, 2, 0, 1, 2, 0, 1))])
def test_the_answer_is_that_of_the_algorithm(labels: tuple[tuple[int | None, ...], ...]) -> None:
    learner = metanet()
    assert learner.samples == 3
    support = support_of(labels, 6, way=5)
    query = torch.rand(len(labels), 3, 6, dtype=torch.float64)
    with torch.no_grad():
        found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(labels)):
        logits, attention = naive(learner, support, task, query[task])
        present, kept = support.class_mask[task], support.mask[task]
        assert torch.allclose(found.logits[task][:, present], logits[:, present], atol=1e-8)
        assert torch.allclose(found.task_attention[task, 0][:, kept], attention, atol=1e-8)


def test_a_gradient_is_told_by_size_and_sign() -> None:
    values = [0.5, -0.5, 1e-9, -1e-5, math.exp(-7), 0.0, -40.0]
    expected = torch.tensor([scaled(v) for v in values])
    assert torch.allclose(preprocess(torch.tensor(values)), expected, atol=1e-6)


def test_the_meta_gradient_is_the_finite_difference_with_the_gradients_held() -> None:
    """d, m, the slow weights and the features learn; the inner gradients are constants."""
    learner = metanet()
    support = support_of([(0, 1, None, 0), (2, 0, 1, None)], 6)
    support = support.with_x(support.x.clamp(max=1))
    held = learner._gradients(support)
    learner._gradients = lambda _: held  # type: ignore[method-assign]
    query = torch.rand(2, 3, 6, dtype=torch.float64)
    names = [name for name, _ in learner.named_parameters() if not name.startswith("trunk")]
    assert any("fast_embedding" in name for name in names)

    def answer(x: Tensor, *values: Tensor) -> Tensor:
        def run(learner: MetaNet) -> Tensor:
            return learner.predict(learner.adapt(support.with_x(x)), query).probabilities

        return torch.func.functional_call(
            Whole(learner, run), {f"learner.{n}": v for n, v in zip(names, values, strict=True)}, ()
        )

    values = [learner.get_parameter(name).detach().requires_grad_() for name in names]
    x = support.x.requires_grad_()
    assert torch.autograd.gradcheck(answer, (x, *values), atol=1e-6)


class Whole(torch.nn.Module):
    """A function of a learner as a module, so that its weights may be given."""

    def __init__(self, learner: MetaNet, run: object) -> None:
        super().__init__()
        self.learner, self.run = learner, run

    def forward(self) -> Tensor:
        return self.run(self.learner)  # type: ignore[operator, no-any-return]


def test_no_gradient_flows_through_the_gradients() -> None:
    learner = metanet()
    support = support_of([(0, 1, 2)], 6)
    for gradients in (learner.adapt(support)["fast_embedding"],):
        by_slow = torch.autograd.grad(
            gradients.sum(), [learner.embed, learner.last], allow_unused=True
        )
        assert by_slow == (None, None)
