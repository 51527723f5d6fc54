"""Cross-entropy of the queries: the loss of nearly every learner (Eq. 10 of seed 000)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode
from training.objectives import Objective


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of real queries whose largest logit `[B, Q, way]` is the target `[B, Q]`."""
    real = targets != IGNORE
    return ((logits.argmax(-1) == targets) & real).sum() / real.sum()


class EpisodeLoss(Objective):
    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        logits = learner(episode.support, episode.query).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), episode.targets.flatten(), ignore_index=IGNORE)
        return loss, {"accuracy": accuracy(logits, episode.targets)}
