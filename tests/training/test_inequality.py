"""TAML's measures against their definitions, written as loops, and its loss task by task."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models_zoo import registry
from models_zoo.learner import Learner
from tests.training.making import LEARNERS
from tests.training.tiny_tasks import mixed_episode, one_task, tiny
from training.data.sampler import Episode
from training.objectives import build_objective
from training.objectives.episode import EpisodeLoss
from training.objectives.inequality import InequalityLoss, Measure, inequality
from training.recipe import ObjectiveConfig

LOSSES = [0.9, 0.1, 2.5, 0.4]


def naive(losses: list[float], measure: str, order: float | None) -> float:
    mu, n = sum(losses) / len(losses), len(losses)
    if measure == "gini":
        return sum(abs(a - b) for a in losses for b in losses) / (2 * n * n * mu)
    if measure == "atkinson":
        e = 0.5 if order is None else order
        if e == 1:
            return 1 - math.prod(losses) ** (1 / n) / mu
        return 1 - (sum(x ** (1 - e) for x in losses) / n) ** (1 / (1 - e)) / mu
    a = 2.0 if order is None else order
    if a == 0:
        return -sum(math.log(x / mu) for x in losses) / n
    if measure == "theil" or a == 1:
        return sum(x / mu * math.log(x / mu) for x in losses) / n
    return sum((x / mu) ** a - 1 for x in losses) / (n * a * (a - 1))


MEASURES: list[tuple[Measure, float | None]] = [
    ("theil", None),
    ("gini", None),
    ("atkinson", None),
    ("atkinson", 1.0),
    ("atkinson", 2.0),
    ("entropy", None),
    ("entropy", 1.0),
    ("entropy", 0.5),
    ("entropy", 0.0),
]
each_measure = pytest.mark.parametrize(("measure", "order"), MEASURES)


@each_measure
def test_a_measure_is_its_definition(measure: Measure, order: float | None) -> None:
    losses = torch.tensor(LOSSES, dtype=torch.float64)
    found = float(inequality(losses, measure, order))
    assert found == pytest.approx(naive(LOSSES, measure, order), rel=1e-9)
    assert found > 0.01
    assert float(inequality(7 * losses, measure, order)) == pytest.approx(found)  # no unit


@each_measure
def test_equal_losses_have_no_inequality(measure: Measure, order: float | None) -> None:
    for losses in ([0.7] * 5, [3.0]):
        assert abs(float(inequality(torch.tensor(losses), measure, order))) < 1e-6


def test_values_known_from_textbooks() -> None:
    """One of four has all: Theil ln 4, Gini 1 - 1/4. Halves 1:3: Gini 1/4, GE(2) 1/8."""
    all_in_one = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert float(inequality(all_in_one, "theil")) == pytest.approx(math.log(4))
    assert float(inequality(all_in_one, "gini")) == pytest.approx(0.75)
    pair = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert float(inequality(pair, "gini")) == pytest.approx(0.25)
    assert float(inequality(pair, "entropy")) == pytest.approx(0.125)
    assert float(inequality(pair, "atkinson", 1.0)) == pytest.approx(1 - math.sqrt(3) / 2)


@each_measure
def test_the_gradient_is_the_finite_difference(measure: Measure, order: float | None) -> None:
    losses = torch.tensor(LOSSES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: inequality(x, measure, order), losses)


@each_measure
def test_a_task_that_is_learned_wholly_leaves_the_gradient_finite(
    measure: Measure, order: float | None
) -> None:
    losses = torch.tensor([0.0, 1e-12, 0.3], requires_grad=True)
    inequality(losses, measure, order).backward()
    assert losses.grad is not None
    assert losses.grad.isfinite().all()


def losses_of(learner: Learner, episode: Episode) -> dict[str, list[Tensor]]:
    """Each task's query loss by itself: after adaptation, and of the weights before it."""
    rates = learner.default_inner_lr()
    assert rates is not None
    found: dict[str, list[Tensor]] = {"adapted": [], "initial": []}
    for task in (one_task(episode, i) for i in range(3)):
        found["adapted"].append(EpisodeLoss()(learner, task)[0])
        logits = learner(task.support, task.query, 0 * rates).logits[0]
        found["initial"].append(torch.nn.functional.cross_entropy(logits, task.targets[0]))
    return found


@pytest.mark.parametrize("which", ["initial", "adapted"])
@pytest.mark.parametrize("name", ["maml", "metasgd"])
def test_the_loss_and_its_gradient_are_taml_s(name: str, which: Any) -> None:
    """mean L_i(phi_i) + lambda Theil(L_i(theta)), or Theil(L_i(phi_i)), each task by itself."""
    learner, episode = tiny(name), mixed_episode()
    losses = losses_of(learner, episode)
    spread = naive([float(loss.detach()) for loss in losses[which]], "theil", None)
    plain = torch.stack(losses["adapted"]).mean()
    found, metrics = InequalityLoss(learner, "theil", 0.3, which)(learner, episode)
    assert float(found.detach()) == pytest.approx(float(plain.detach()) + 0.3 * spread, rel=1e-9)
    assert float(metrics["inequality"].detach()) == pytest.approx(spread, rel=1e-6)

    theta = [value for value in learner.parameters() if value.requires_grad]
    expected = plain + 0.3 * inequality(torch.stack(losses[which]), "theil")
    gradients = [
        torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True)
        for loss in (found, expected, plain)
    ]
    for mine, theirs in zip(gradients[0], gradients[1], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-7, atol=1e-9)
    assert any(
        not torch.allclose(mine, without, rtol=1e-2, atol=1e-6)
        for mine, without in zip(gradients[0], gradients[2], strict=True)
    ), "the penalty has a gradient of its own"


def test_without_weight_it_is_the_plain_loss() -> None:
    learner, episode = tiny("maml"), mixed_episode()
    plain = torch.stack(losses_of(learner, episode)["adapted"]).mean()
    found = [InequalityLoss(learner, "gini", weight)(learner, episode)[0] for weight in (0, 1)]
    assert torch.allclose(found[0], plain)
    assert not torch.allclose(found[1], plain)


@pytest.mark.parametrize("measure", ["theil", "atkinson", "entropy", "gini"])
def test_losses_that_are_all_0_are_equal(measure: Measure) -> None:
    losses = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found = inequality(losses, measure)
    assert float(found.detach()) == 0
    found.backward()
    assert losses.grad is not None and losses.grad.isfinite().all()


def test_a_learner_without_steps_has_no_initial_losses() -> None:
    learner = registry.build("prototypical", LEARNERS["prototypical"])
    config = ObjectiveConfig(name="inequality", losses="initial")
    with pytest.raises(ValueError, match="losses: adapted"):
        build_objective(config, learner, None)  # type: ignore[arg-type]
    config = ObjectiveConfig(name="inequality", losses="adapted", weight=0.1)
    build_objective(config, learner, None)  # type: ignore[arg-type]
