"""Algorithm 1 of Aimen et al. 2021 against a restatement that takes every task by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from tests.training.making import recipe
from tests.training.tiny_tasks import CONFIGS, mixed_episode, one_task, tiny
from training.data.sampler import Episode
from training.objectives import Step
from training.objectives.episode import EpisodeLoss
from training.objectives.task_attention import (
    BatchNetwork,
    SharedNetwork,
    TaskAttention,
    meta_information,
)
from training.optimizers import make_optimizer
from training.trainer import train

BETA = 0.3
every_learner = pytest.mark.parametrize("name", CONFIGS)


def step(fresh: Episode, rate: float = BETA) -> Step:
    return Step(nullcontext, rate, new=lambda: fresh, next=lambda: fresh)


def attention(network: str = "batch") -> TaskAttention:
    torch.manual_seed(3)
    return TaskAttention(3, network).double()  # type: ignore[arg-type]


def loss_of(learner: Learner, task: Episode, rates: Tensor | None = None) -> Tensor:
    return F.cross_entropy(learner(task.support, task.query, rates).logits[0], task.targets[0])


def single(learner: Learner, episode: Episode) -> list[Episode]:
    """The tasks by themselves. Running statistics aside, only for learners that do not mix them."""
    return [one_task(episode, i) for i in range(len(episode.targets))]


def equation_1(learner: Learner, task: Episode) -> list[float]:
    """The four inputs of one task, each from its definition."""
    rates = learner.default_inner_lr()
    state, _ = learner.solve(*learner.encoded(task.support, task.query))
    leaves = {
        name: value.detach().requires_grad_(value.is_floating_point())
        for name, value in state.items()
    }
    _, query = learner.encoded(task.support, task.query)
    logits = learner.predict(leaves, query).logits[0]
    loss = F.cross_entropy(logits, task.targets[0])
    loss.backward()
    squares = [float(v.grad.square().sum()) for v in leaves.values() if v.grad is not None]
    if rates is None:
        before = math.log(int(task.support.class_mask.sum()))
    else:
        before = float(loss_of(learner, task, 0 * rates).detach())
    right = (logits.argmax(-1) == task.targets[0]).double().mean()
    after = float(loss.detach())
    return [math.sqrt(sum(squares)), after, float(right), after / before]


@every_learner
def test_the_inputs_are_those_of_equation_1(name: str) -> None:
    learner, episode = tiny(name).eval(), mixed_episode()
    losses, inputs = meta_information(learner, episode)
    expected = [equation_1(learner, task) for task in single(learner, episode)]
    assert torch.allclose(inputs, torch.tensor(expected, dtype=torch.float64), rtol=1e-7)
    assert torch.equal(losses.detach(), inputs[:, 1])
    assert not inputs.requires_grad


@every_learner
def test_theta_s_gradient_is_equation_2_with_w_held_constant(name: str) -> None:
    learner, episode, objective = tiny(name).eval(), mixed_episode(), attention()
    theta = [p for p in learner.parameters() if p.requires_grad]
    objective.backward(learner, episode, step(mixed_episode(2)))
    weights = objective.network(meta_information(learner, episode)[1]).tolist()
    expected = [torch.zeros_like(p) for p in theta]
    for weight, task in zip(weights, single(learner, episode), strict=True):
        gradient = torch.autograd.grad(loss_of(learner, task), theta, allow_unused=True)
        for total, d in zip(expected, gradient, strict=True):
            total += 0 if d is None else weight * d
    assert sum(weights) == pytest.approx(1)
    assert len({round(w, 6) for w in weights}) == 3
    for value, total in zip(theta, expected, strict=True):
        found = torch.zeros_like(value) if value.grad is None else value.grad
        assert torch.allclose(found, total, atol=1e-10)


def plain_gradients(learner: Learner, episode: Episode) -> list[list[Tensor]]:
    """Each task's gradient by theta."""
    theta = [p for p in learner.parameters() if p.requires_grad]
    return [
        list(torch.autograd.grad(loss_of(learner, task), theta, materialize_grads=True))
        for task in single(learner, episode)
    ]


def at_theta_prime(
    learner: Learner, weights: list[float], gradients: list[list[Tensor]], fresh: Episode
) -> tuple[float, list[Tensor]]:
    """Eq. 2, theta moved for good, and Eq. 3's loss there with its gradient; then put back."""
    theta = [p for p in learner.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in theta]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            for value, d in zip(theta, gradient, strict=True):
                value -= BETA * weight * d
    loss = torch.stack([loss_of(learner, task) for task in single(learner, fresh)]).mean()
    found = list(torch.autograd.grad(loss, theta, materialize_grads=True))
    with torch.no_grad():
        for value, old in zip(theta, kept, strict=True):
            value.copy_(old)
    return float(loss.detach()), found


def slopes(objective: TaskAttention, value: Callable[[], float]) -> list[tuple[float, float]]:
    """Some entries of delta's gradient, and the finite difference of `value` along each."""
    epsilon, pairs = 1e-4, []
    for parameter in objective.network.parameters():
        assert parameter.grad is not None
        flat, gradient = parameter.detach().view(-1), parameter.grad.flatten()
        for place in gradient.abs().topk(min(2, len(flat))).indices.tolist():
            at, ends = float(flat[place]), []
            for offset in (epsilon, -epsilon):
                flat[place] = at + offset
                ends.append(value())
            flat[place] = at
            pairs.append((float(gradient[place]), (ends[0] - ends[1]) / (2 * epsilon)))
    return pairs


@pytest.mark.parametrize("network", ["batch", "shared"])
@pytest.mark.parametrize("name", ["maml", "metasgd", "prototypical"])
def test_delta_s_gradient_is_the_finite_difference_through_the_step(
    name: str, network: str
) -> None:
    learner, episode, fresh = tiny(name).eval(), mixed_episode(), mixed_episode(2)
    objective = attention(network)
    objective.backward(learner, episode, step(fresh))
    inputs, gradients = meta_information(learner, episode)[1], plain_gradients(learner, episode)

    def goal() -> float:
        return at_theta_prime(learner, objective.network(inputs).tolist(), gradients, fresh)[0]

    pairs = slopes(objective, goal)
    assert sum(abs(slope) > 1e-8 for _, slope in pairs) >= 6
    for found, slope in pairs:
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-10)


@pytest.mark.parametrize("name", ["fomaml", "metalstm"])
def test_a_first_order_learner_s_own_gradient_leads_delta(name: str) -> None:
    """Its gradient g is no derivative of its loss; Eq. 3 becomes -beta g(theta') . dw g_i."""
    learner, episode, fresh = tiny(name).eval(), mixed_episode(), mixed_episode(2)
    objective = attention("shared")
    objective.backward(learner, episode, step(fresh))
    inputs, gradients = meta_information(learner, episode)[1], plain_gradients(learner, episode)
    _, ahead = at_theta_prime(learner, objective.network(inputs).tolist(), gradients, fresh)
    gains = [
        -BETA * sum(float((d * g).sum()) for d, g in zip(gradient, ahead, strict=True))
        for gradient in gradients
    ]

    def linear() -> float:
        weights = objective.network(inputs).tolist()
        return sum(w * gain for w, gain in zip(weights, gains, strict=True))

    for found, slope in slopes(objective, linear):
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-10)


@every_learner
def test_the_learner_is_left_as_it_was(name: str) -> None:
    """Weights untouched, and running statistics those of one pass over the batch, no more."""
    learner, other, episode = tiny(name), tiny(name), mixed_episode()
    before = {key: value.clone() for key, value in learner.named_parameters()}
    attention().backward(learner, episode, step(mixed_episode(2)))
    assert all(torch.equal(value, before[key]) for key, value in learner.named_parameters())
    EpisodeLoss()(other, episode)
    for (key, mine), (_, theirs) in zip(
        learner.named_buffers(), other.named_buffers(), strict=True
    ):
        assert torch.equal(mine, theirs), key


@every_learner
def test_in_bfloat16_every_weight_has_a_gradient(name: str) -> None:
    learner, objective = tiny(name).float(), attention("shared").float()

    def single_precision(episode: Episode) -> Episode:
        support = episode.support.with_x(episode.support.x.float())
        return Episode(
            support, episode.query.float(), episode.targets, support.labels, episode.targets
        )

    fresh = single_precision(mixed_episode(2))
    low = Step(lambda: torch.autocast("cpu", torch.bfloat16), BETA, lambda: fresh, lambda: fresh)
    objective.backward(learner, single_precision(mixed_episode()), low)
    for key, value in [*learner.named_parameters(), *objective.named_parameters()]:
        if value.requires_grad:
            assert value.grad is not None and value.grad.isfinite().all(), key
            # A bias that moves all scores alike changes no softmax.
            assert value.grad.any() or key == "network.score.bias", key


def inputs_of(tasks: int) -> Tensor:
    return torch.rand(tasks, 4, generator=torch.Generator().manual_seed(5))


def test_weights_are_positive_and_sum_to_one() -> None:
    for network in (BatchNetwork(6), SharedNetwork()):
        weights = network(inputs_of(6))
        assert weights.shape == (6,)
        assert (weights > 0).all()
        assert float(weights.sum().detach()) == pytest.approx(1)


def test_the_paper_s_network_is_not_equivariant_and_the_shared_one_is() -> None:
    """docs/decisions/task-attention.md: with the paper's, a task's place decides its weight."""
    torch.manual_seed(0)
    order, inputs = torch.tensor([2, 0, 3, 1]), inputs_of(4)
    shared, batch = SharedNetwork(), BatchNetwork(4)
    assert torch.allclose(shared(inputs[order]), shared(inputs)[order], atol=1e-7)
    assert not torch.allclose(batch(inputs[order]), batch(inputs)[order], atol=1e-3)
    same = inputs[:1].expand(4, -1)
    assert torch.allclose(shared(same), torch.full((4,), 0.25))
    assert float((batch(same) - 0.25).abs().max().detach()) > 1e-3


def test_the_paper_s_network_listens_from_the_start() -> None:
    """Its one ReLU is on for some task, whatever the seed: else no input would ever count."""
    for seed in range(50):
        torch.manual_seed(seed)
        network = BatchNetwork(4)
        network(inputs_of(4)).square().sum().backward()
        assert network.mix.weight.grad is not None
        assert network.mix.weight.grad.any()


def test_the_network_moves_though_its_gradient_is_tiny() -> None:
    """Eq. 3's gradient is of the order of beta; Adam must not swallow it."""
    learner, objective = tiny("maml"), attention()
    assert objective.settings is not None
    optimizer = torch.optim.Adam(objective.parameters(), **objective.settings)  # type: ignore[arg-type]
    before = objective.network.mix.weight.detach().clone()  # type: ignore[union-attr]
    objective.backward(learner, mixed_episode(), step(mixed_episode(2), rate=1e-7))
    optimizer.step()
    moved = (objective.network.mix.weight.detach() - before).abs()  # type: ignore[union-attr]
    assert torch.allclose(moved, torch.full_like(moved, objective.settings["lr"]), rtol=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["maml", "metalstm"])
def test_with_equal_weights_it_trains_as_without_it_to_the_bit(
    name: str, precision: str, made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def equal(network: BatchNetwork, inputs: Tensor) -> Tensor:
        # Of two tasks, or any power of two, 1/n rounds nothing.
        nothing = 1e-30 * torch.stack([p.square().sum() for p in network.parameters()]).sum()
        return torch.full((len(inputs),), 1 / len(inputs)) + nothing

    monkeypatch.setattr(BatchNetwork, "forward", equal)
    weights = []
    for options in ({"name": "episode"}, {"name": "task_attention", "fresh": "next"}):
        out = tmp_path / options["name"]
        wanted = recipe(name, objective=options, precision=precision)
        weights.append(train(wanted, out, root=made_data, quiet=True).learner.state_dict())
    plain, weighed = weights
    assert [key for key in plain if not torch.equal(weighed[key], plain[key])] == []


def test_one_task_has_nothing_to_weigh() -> None:
    with pytest.raises(ValueError, match="weighs the tasks"):
        TaskAttention(1)


def test_the_network_is_a_group_of_its_own_without_decay() -> None:
    made = recipe("maml", objective={"name": "task_attention"}, optimizer={"weight_decay": 0.1})
    learner, objective = tiny("maml"), TaskAttention(4)
    first, second = make_optimizer(made, learner, objective).param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in second["params"]} == {id(p) for p in objective.parameters()}
    assert {id(p) for p in first["params"]} == {id(p) for p in learner.parameters()}
