"""What training minimises: `objective(learner, episode) -> (loss, metrics)`, one file each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from models_zoo.learner import Learner
from training.data.sampler import Episode, EpisodeSampler

if TYPE_CHECKING:
    from training.recipe import ObjectiveConfig

#: By name: scalars for the curves; and vectors, a row for each task, that a run's history keeps.
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What one training step offers an objective beside its batch of tasks.

    autocast   the precision that the recipe asks for; forward passes belong inside, backward
               passes outside
    rate       the learner's learning rate in this step
    new        draws one more batch of tasks
    next       the next step's batch, which the next step will draw again
    """

    autocast: Callable[[], AbstractContextManager[object]]
    rate: float
    new: Callable[[], Episode]
    next: Callable[[], Episode]


class Objective(nn.Module):
    """Base of the objectives; parameters of its own exist in training only."""

    #: The optimiser's settings for the objective's own parameters, if not those of the learner's.
    settings: dict[str, float] | None = None
    #: The number of tasks that a batch must have; None = any.
    tasks: int | None = None

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        """The loss to minimise and what to log, `accuracy` among it."""
        raise NotImplementedError

    def backward(self, learner: Learner, episode: Episode, step: Step) -> tuple[Tensor, Metrics]:
        """Leave one step's gradients in every trained parameter's `grad`; answers as `forward`."""
        with step.autocast():
            loss, metrics = self(learner, episode)
        loss.backward()
        return loss, metrics


def build_objective(
    config: ObjectiveConfig, learner: Learner, sampler: EpisodeSampler, tasks: int = 1
) -> Objective:
    """An objective from its recipe section, for batches of `tasks`. Raises `ValueError`."""
    from training.objectives.base_classes import BaseClassLoss
    from training.objectives.episode import EpisodeLoss
    from training.objectives.inequality import InequalityLoss
    from training.objectives.margin import MarginLoss
    from training.objectives.matching import MatchingLoss
    from training.objectives.reptile import ReptileLoss
    from training.objectives.semantic import SemanticLoss
    from training.objectives.sequence import SequenceLoss
    from training.objectives.task_attention import TaskAttention
    from training.objectives.verification import VerificationLoss

    weight = config.weight
    if weight is None:
        weight = 0.05 if config.name == "inequality" else 0.5
    if config.name == "margin":
        return MarginLoss(config.margin)
    if config.name == "matching":
        return MatchingLoss()
    if config.name == "reptile":
        return ReptileLoss(config.inner_steps, config.minibatch)
    if config.name == "semantic":
        return SemanticLoss(learner, sampler, weight, config.labels, config.cutmix)
    if config.name == "sequence":
        return SequenceLoss()
    if config.name == "inequality":
        return InequalityLoss(learner, config.measure, weight, config.losses, config.order)
    if config.name == "task_attention":
        return TaskAttention(tasks, config.network, config.lr, config.fresh)
    if config.name == "base_classes":
        return BaseClassLoss(learner, sampler, weight)
    if config.name == "verification":
        return VerificationLoss("cross_entropy", config.different)
    if config.name == "relation":
        return VerificationLoss("squared", config.different)
    return EpisodeLoss()
