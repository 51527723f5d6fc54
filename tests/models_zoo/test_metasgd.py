"""Meta-SGD against a plain restatement: one task at a time, autograd, one rate per weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import ABSENT, Support
from models_zoo.optimization.metasgd import MetaSGD
from tests.models_zoo.test_maml import Graphs, graph_nodes, mixed_tasks, network


def small(**config: object) -> MetaSGD:
    torch.manual_seed(0)
    options = {"channels": 2, "image_size": 13, "hidden": 6, "inner_lr": 2.0} | config
    learner = MetaSGD(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in learner.named_parameters():
            if "rates" in name:
                value += 0.2 * torch.randn_like(value)  # some of them negative
    return learner


@pytest.mark.parametrize("first_order", [False, True])
def test_first_order_builds_no_second_order_graph(first_order: bool) -> None:
    support, query, _ = mixed_tasks()
    names = list(graph_nodes(small(first_order=first_order)(support, query).logits))
    assert ("_FoldBackward" in names) is not first_order  # fold: part of the gradient alone


def plain(learner: MetaSGD, support: Support, query: Tensor, factors: list[float]) -> Tensor:
    """Li et al. 2017, algorithm 1, for each task by itself; logits `[B, Q, way]`."""
    rows = []
    for x, labels, mask, present, asked in zip(
        support.x, support.labels, support.mask, support.class_mask, query, strict=True
    ):
        x, labels, way = x[mask], labels[mask], support.way
        cut = {name: way if name in ("head", "offset") else None for name in learner.initial}
        weights = {name: value[:, : cut[name]] for name, value in learner.initial.items()}
        alpha = {name: value[:, : cut[name]] for name, value in learner.rates.items()}
        absent = torch.where(present, 0.0, -torch.inf).double()
        for factor in factors:
            loss = F.cross_entropy(network(weights, x)[0] + absent, labels)
            gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: value - factor * alpha[name] * d
                for (name, value), d in zip(weights.items(), gradient, strict=True)
            }
        logits = network(weights, asked, network(weights, x)[1])[0]
        rows.append(logits.masked_fill(~present, ABSENT))
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 2])
def test_outputs_and_meta_gradients_are_those_of_the_plain_loop(steps: int) -> None:
    learner = small(steps=steps)
    support, query, targets = mixed_tasks()
    found, expected = learner(support, query).logits, plain(learner, support, query, [2.0] * steps)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    gradients = [
        torch.autograd.grad(
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()), list(learner.parameters())
        )
        for logits in (found, expected)
    ]
    assert len(gradients[0]) == 2 * len(learner.initial)
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def test_every_weight_has_a_rate_of_its_own_from_the_paper_s_range() -> None:
    learner = MetaSGD()
    for name, value in learner.initial.items():
        rate = learner.rates[name]
        assert rate.shape == value.shape
        assert rate.requires_grad
        assert rate.min() >= 0.005
        assert rate.max() <= 0.1
    assert learner.rates["kernel1"].unique().numel() > 1000


def test_onnx_runtime_answers_as_torch_at_other_rates_and_steps() -> None:
    learner = small(max_way=5).float().eval()
    graphs = Graphs(learner)
    support, query, _ = mixed_tasks()
    support, query = support.with_x(support.x.float()), query.float()
    for rates in (torch.tensor([2.0]), torch.tensor([0.5, 0.3, 1.0])):
        with torch.no_grad():
            expected = learner.predict(learner.adapt(support, rates), query).probabilities
        difference = (graphs(support, query, rates).softmax(-1) - expected).abs().numpy()
        assert np.median(difference) < 1e-6
        assert np.quantile(difference, 0.9) < 1e-4
