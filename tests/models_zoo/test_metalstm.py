"""MetaLSTM against a plain restatement: one task and one weight at a time, PyTorch's LSTM cell."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.episode import ABSENT, Support
from models_zoo.optimization.metalstm import MetaLSTM, preprocess
from tests.models_zoo.test_maml import graph_nodes, mixed_tasks, network

SLOTTED = ("head", "offset")


def small(**config: object) -> MetaLSTM:
    """A little MetaLSTM in float64 whose LSTM says something and whose rates are not small."""
    torch.manual_seed(0)
    options = {"channels": 2, "image_size": 13, "hidden": 4, "steps": 3, "lstm": 3} | config
    learner = MetaLSTM(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in learner.named_parameters():
            if "initial" not in name:
                value += 0.5 * torch.randn_like(value)
        learner.input_bias.fill_(-0.5)
    return learner


def plain(learner: MetaLSTM, support: Support, query: Tensor, factors: list[float]) -> Tensor:
    """Ravi and Larochelle 2017, eq. 2 and 3, for each task by itself; logits `[B, Q, way]`."""
    cell = nn.LSTMCell(4, learner.lstm).double()
    del cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
    cell.weight_ih, cell.weight_hh = learner.first[:4].T, learner.first[4:].T
    cell.bias_ih, cell.bias_hh = learner.first_bias, torch.zeros_like(learner.first_bias)
    rows = []
    for x, labels, mask, present, asked in zip(
        support.x, support.labels, support.mask, support.class_mask, query, strict=True
    ):
        x, labels, way = x[mask], labels[mask], support.way
        cut = {name: way if name in SLOTTED else None for name in learner.initial}
        weights = {name: value[:, : cut[name]] for name, value in learner.initial.items()}
        absent = torch.where(present, 0.0, -torch.inf).double()
        count = sum(value.numel() for value in weights.values())
        h = c = torch.zeros(count, learner.lstm).double()
        i = f = torch.zeros(count).double()
        for factor in factors:
            loss = F.cross_entropy(network(weights, x)[0] + absent, labels)
            slopes = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
            gradient = torch.cat([slope.flatten() for slope in slopes])
            theta = torch.cat([value.flatten() for value in weights.values()])
            told = preprocess(loss.detach()).unsqueeze(1).expand(2, count)
            h, c = cell(torch.cat([preprocess(gradient), told]).T, (h, c))
            i = torch.cat([h, theta[:, None], i[:, None]], 1) @ learner.to_input
            f = torch.cat([h, theta[:, None], f[:, None]], 1) @ learner.to_forget
            i, f = i + learner.input_bias, f + learner.forget_bias
            theta = f.sigmoid() * theta - factor * i.sigmoid() * gradient
            parts = theta.split([value.numel() for value in weights.values()])
            weights = {
                name: part.view_as(value)
                for (name, value), part in zip(weights.items(), parts, strict=True)
            }
        logits = network(weights, asked, network(weights, x)[1])[0]
        rows.append(logits.masked_fill(~present, ABSENT))
    return torch.stack(rows)


def meta_gradient(learner: MetaLSTM, logits: Tensor, targets: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return list(torch.autograd.grad(loss, list(learner.parameters())))


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.5, 2.0]])
def test_outputs_and_meta_gradients_are_those_of_the_plain_loop(factors: list[float]) -> None:
    learner = small()
    support, query, targets = mixed_tasks()
    state = learner.adapt(support, torch.tensor(factors, dtype=torch.float64))
    found, expected = learner.predict(state, query).logits, plain(learner, support, query, factors)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    for mine, theirs in zip(
        meta_gradient(learner, found, targets),
        meta_gradient(learner, expected, targets),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def test_a_step_at_rate_0_changes_nothing() -> None:
    """It is what the service runs where a user asks for no steps."""
    learner = small()
    support, query, _ = mixed_tasks()
    before = learner.predict(learner.adapt(support, torch.zeros(0).double()), query).logits
    after = learner.predict(learner.adapt(support, torch.zeros(1).double()), query).logits
    assert torch.allclose(before, after, atol=1e-12)
    moved = learner.predict(learner.adapt(support, torch.full((1,), 0.01).double()), query).logits
    assert not torch.allclose(before, moved, atol=1e-3)


def test_no_graph_of_the_gradients_is_built() -> None:
    support, query, _ = mixed_tasks()
    names = list(graph_nodes(small()(support, query).logits))
    assert "_FoldBackward" not in names  # fold: part of the gradient alone
    assert any("SigmoidBackward" in name for name in names)


def test_inputs_are_preprocessed_as_in_the_paper() -> None:
    p = 10.0
    for value in (0.3, -2.0, math.exp(-p), -math.exp(-p) / 3, 1e-6, 0.0):
        large = abs(value) >= math.exp(-p)
        expected = (
            [math.log(abs(value)) / p, math.copysign(1, value)]
            if large
            else [-1.0, math.exp(p) * value]
        )
        found = preprocess(torch.tensor(value, dtype=torch.float64))
        assert found.tolist() == pytest.approx(expected)


def test_the_gates_start_where_the_paper_has_them() -> None:
    learner = MetaLSTM()
    assert -5 <= learner.input_bias <= -4
    assert 4 <= learner.forget_bias <= 5
    for weight in (learner.first, learner.to_input, learner.to_forget):
        assert weight.abs().max() <= 0.01
    assert learner.first.shape == (24, 80)
