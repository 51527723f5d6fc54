"""What training minimises: `objective(learner, episode) -> (loss, metrics)`, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from models_zoo.learner import Learner
from training.data.sampler import Episode, EpisodeSampler

if TYPE_CHECKING:
    from training.recipe import ObjectiveConfig


class Objective(nn.Module):
    """Base of the objectives; parameters of its own exist in training only."""

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and scalars to log, `accuracy` among them."""
        raise NotImplementedError


def build_objective(
    config: ObjectiveConfig, learner: Learner, sampler: EpisodeSampler
) -> Objective:
    """An objective from its recipe section."""
    from training.objectives.episode import EpisodeLoss
    from training.objectives.matching import MatchingLoss
    from training.objectives.semantic import SemanticLoss

    if config.name == "matching":
        return MatchingLoss()
    if config.name == "semantic":
        return SemanticLoss(learner, sampler, config.weight, config.labels)
    return EpisodeLoss()
