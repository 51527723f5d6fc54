"""Matching Networks against the paper's equations, example by example, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models_zoo.episode import Support
from models_zoo.metric.bilstm import BiLSTM
from models_zoo.metric.matching import MatchingNetwork, QueryLSTM, SupportLSTM, reading_turn
from tests.models_zoo.differences import check_gradient
from tests.models_zoo.making import MIXED, alone, make, support_of

DIM = 8


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def two_way_lstm(both: BiLSTM) -> nn.LSTM:
    """PyTorch's own bidirectional LSTM with the same weights."""
    first, second = both.forwards, both.backwards
    own = nn.LSTM(first.input_size, first.hidden_size, batch_first=True, bidirectional=True)
    for name, value in own.double().named_parameters():
        source = second if name.endswith("_reverse") else first
        value.data.copy_(source.get_parameter(name.removesuffix("_reverse")))
    return own


def naive_g(lstm: SupportLSTM, examples: list[Tensor]) -> list[Tensor]:
    """g = h_forward + h_backward + g', read from the most typical example to the least."""
    mean = sum(examples) / len(examples)
    order = sorted(range(len(examples)), key=lambda i: -float(examples[i] @ mean))
    states = two_way_lstm(lstm)(torch.stack([unit(examples[i]) for i in order])[None])[0][0]
    found = list(examples)
    for place, i in enumerate(order):
        found[i] = unit(examples[i]) + states[place, :DIM] + states[place, DIM:]
    return found


def naive_f(lstm: QueryLSTM, x: Tensor, g: list[Tensor]) -> Tensor:
    """Eq. 3 to 6, K times, for one query."""
    h, c = x, torch.zeros(DIM, dtype=torch.float64)
    for _ in range(lstm.steps):
        powers = [math.exp(lstm.log_scale.exp() * (h @ one)) for one in g]
        r = sum(p / sum(powers) * one for p, one in zip(powers, g, strict=True))
        gates = lstm.gates.weight @ torch.cat([x, h, r]) + lstm.gates.bias
        i, f, new, o = gates.reshape(4, DIM)
        c = f.sigmoid() * c + i.sigmoid() * new.tanh()
        h = o.sigmoid() * c.tanh() + x
    return h


def naive(learner: MatchingNetwork, support: Support, query: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and class probabilities of one task without padding, for queries `[Q, D]`."""
    g = [unit(x) for x in support.x[0]]
    if learner.embed_support is not None:
        g = naive_g(learner.embed_support, list(support.x[0]))
    attention, probabilities = [], []
    for x in query:
        f = unit(x)
        if learner.embed_query is not None:
            f = naive_f(learner.embed_query, f, g)
        powers = [math.exp(learner.log_scale.exp() * (unit(f) @ unit(one))) for one in g]
        weights = [p / sum(powers) for p in powers]
        pairs = list(zip(weights, support.labels[0].tolist(), strict=True))
        attention.append(weights)
        probabilities.append([sum(w for w, y in pairs if y == k) for k in range(support.way)])
    return torch.tensor(attention).double(), torch.tensor(probabilities).double()


@torch.no_grad()
@pytest.mark.parametrize("name", ["matching", "matching-fce"])
def test_the_answer_is_that_of_the_equations(name: str) -> None:
    learner = make(name)
    assert isinstance(learner, MatchingNetwork)
    assert (learner.embed_support is not None) == (name == "matching-fce")
    support = support_of(MIXED, DIM)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        attention, probabilities = naive(learner, alone(support, task), query[task])
        weights = found.task_attention[task, 0]
        assert torch.allclose(weights[:, support.mask[task]], attention, atol=1e-6)
        assert (weights[:, ~support.mask[task]] == 0).all()
        assert torch.allclose(found.probabilities[task], probabilities, atol=1e-6)


@torch.no_grad()
def test_context_changes_the_embeddings() -> None:
    """With FCE an example looks otherwise in other company; without, it does not."""
    first = support_of([(0, 1, 2)], DIM)
    other = Support.of(torch.cat([first.x[:, :2], first.x[:, 2:] + 1], 1), first.labels)
    for name in ("matching", "matching-fce"):
        a, b = (make(name).adapt(s)["embeddings"][0, 0] for s in (first, other))
        assert torch.equal(a, b) == (name == "matching")


@torch.no_grad()
def test_the_set_is_read_from_its_most_typical_example_and_padding_last() -> None:
    x = torch.tensor([[[0.0, 1.0], [9.0, 9.0], [1.0, 0.0], [0.8, 0.6]]])
    mask = torch.tensor([[True, False, True, True]])
    # The mean points to (0.6, 0.53): similar to (0.8, 0.6), then to (1, 0), then to (0, 1).
    assert reading_turn(x, mask).tolist() == [[2, 3, 1, 0]]


def test_alike_examples_are_read_in_the_order_given() -> None:
    x, mask = torch.ones(1, 30, 2), torch.ones(1, 30, dtype=torch.bool)
    assert reading_turn(x, mask).tolist() == [list(range(30))]


@torch.no_grad()
def test_both_directions_end_where_the_sequence_ends() -> None:
    torch.manual_seed(0)
    both = BiLSTM(5, 6).double()
    x, used = torch.randn(4, 7, 5, dtype=torch.float64), torch.tensor([1, 3, 6, 7])
    forwards, backwards = both.read(x, used)
    for task, length in enumerate(used.tolist()):
        expected = two_way_lstm(both)(x[task : task + 1, :length])[0][0]
        assert torch.allclose(forwards[task, :length], expected[:, :6], atol=1e-12)
        assert torch.allclose(backwards[task, :length], expected[:, 6:], atol=1e-12)


def test_no_example_beyond_the_support_set_has_a_gradient() -> None:
    learner = make("matching-fce")
    support = support_of(MIXED, DIM)
    x = support.x.clone().requires_grad_()
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    found = learner.predict(learner.adapt(support.with_x(x)), query)
    found.probabilities.square().sum().backward()
    assert x.grad is not None
    assert (x.grad[~support.mask] == 0).all()
    assert (x.grad[support.mask].abs().sum(-1) > 0).all()


def test_the_gradient_is_the_finite_difference() -> None:
    learner = make("matching-fce")
    assert isinstance(learner, MatchingNetwork)
    support = support_of([(0, 1, 1)], DIM)
    query = torch.randn(1, 2, DIM, dtype=torch.float64)

    def loss() -> Tensor:
        return -learner.predict(learner.adapt(support), query).logits.log_softmax(-1)[..., 0].sum()

    weights = [value for name, value in learner.named_parameters() if "backbone" not in name]
    check_gradient(loss, weights)


@torch.no_grad()
def test_a_softmax_of_bare_cosines_could_not_be_sure() -> None:
    """Why there is a temperature: at best e / (e + 19 / e) of the weight in a 20-way task."""
    learner = MatchingNetwork(channels=1, image_size=28)
    support = support_of([range(20)], 64)
    query = support.x[:, :1].float()
    found = learner.predict(learner.adapt(support.with_x(support.x.float() - 0.5)), query - 0.5)
    assert float(found.probabilities.max()) > math.e / (math.e + 19 / math.e)
