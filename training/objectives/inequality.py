"""TAML: be equally good at all tasks, by a penalty on the inequality of their losses.

Jamal and Qi, "Task Agnostic Meta-Learning for Few-Shot Learning" (CVPR 2019); Aimen et al., 3.2:

    L = mean_i L_i(phi_i) + lambda * I({L_i})

I is one of economics' measures of inequality. Its losses are those of the initial weights (both
papers) or those after adaptation (the public code of Aimen et al.). Aimen et al. sum the losses of
the batch where this takes their mean, and leave open whether its I is a sum or a mean, so its
lambda may not be ours. 0.05, here the default, is that of its authors' public code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import Episode
from training.objectives import Metrics, Objective
from training.objectives.episode import accuracy, mean_over_each_task, query_losses
from training.objectives.initial import initial_losses

Measure = Literal["theil", "atkinson", "entropy", "gini"]
#: Least share of the mean whose logarithm or negative power is taken: these have no bound at 0,
#: where a task has been learned wholly. (Aimen et al.'s code adds 1e-4 inside the logarithm, by
#: which equal losses would not be quite equal.)
LEAST = 1e-4


def shares(losses: Tensor) -> Tensor:
    """Loss over mean loss `[B]`; 1 where all are 0, whose inequality is none."""
    mean = losses.mean()
    return torch.where(mean > 0, losses / mean.clamp(min=torch.finfo(losses.dtype).tiny), 1.0)


def theil(losses: Tensor) -> Tensor:
    """Mean of x ln x, x = loss over mean loss: `[B]` -> scalar, 0 to ln B."""
    x = shares(losses)
    return (x * x.clamp(min=LEAST).log()).mean()


def generalised_entropy(losses: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean of (x^alpha - 1) / (alpha (alpha - 1)); 1 is Theil's, 0 the mean log deviation."""
    x = shares(losses).clamp(min=LEAST)
    if alpha == 1:
        return theil(losses)
    if alpha == 0:
        return -x.log().mean()
    return (x.pow(alpha) - 1).mean() / (alpha * (alpha - 1))


def atkinson(losses: Tensor, aversion: float = 0.5) -> Tensor:
    """1 - the equally distributed equivalent over the mean; aversion epsilon > 0."""
    x = shares(losses).clamp(min=LEAST)
    if aversion == 1:
        return 1 - x.log().mean().exp()
    return 1 - x.pow(1 - aversion).mean().pow(1 / (1 - aversion))


def gini(losses: Tensor) -> Tensor:
    """Half the mean absolute difference of two tasks' losses, over the mean loss; 0 to 1 - 1/B."""
    x = shares(losses)
    return (x[:, None] - x[None]).abs().mean() / 2


def inequality(losses: Tensor, measure: Measure, order: float | None = None) -> Tensor:
    """Inequality of positive losses `[B]`; `order` is the alpha or epsilon of those that have one.

    0 where all are equal, and the same whatever the losses' common scale.
    """
    if measure == "theil":
        return theil(losses)
    if measure == "gini":
        return gini(losses)
    ordered = atkinson if measure == "atkinson" else generalised_entropy
    return ordered(losses) if order is None else ordered(losses, order)


class InequalityLoss(Objective):
    """Raises `ValueError` for initial losses of a learner that has none, or an order of no use."""

    def __init__(
        self,
        learner: Learner,
        measure: Measure = "theil",
        weight: float = 0.05,
        losses: Literal["initial", "adapted"] = "initial",
        order: float | None = None,
    ) -> None:
        super().__init__()
        if measure == "atkinson" and order == 0:
            raise ValueError("Atkinson's order, the aversion to inequality, is above 0")
        if losses == "initial" and learner.default_inner_lr() is None:
            raise ValueError("no gradient steps, so no initial losses; set losses: adapted")
        self.measure, self.weight, self.losses, self.order = measure, weight, losses, order

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        logits = learner(episode.support, episode.query).logits
        adapted = mean_over_each_task(query_losses(logits, episode.targets), episode.targets)
        compared = initial_losses(learner, episode) if self.losses == "initial" else adapted
        spread = inequality(compared, self.measure, self.order)
        loss = adapted.mean() + self.weight * spread
        return loss, {"accuracy": accuracy(logits, episode.targets), "inequality": spread}
