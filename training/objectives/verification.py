"""Same or different: every query and class of a task are a pair with a yes-or-no answer.

sigmoid(logit) of a pair is taken for the probability that the query belongs to the class. With one
shot a class is one example, and the pairs are pairs of images, as a Siamese Network is trained.

cross_entropy   Koch et al. 2015, section 3.2
squared         Sung et al. 2018, Eq. 2: the squared error of the relation

A task has way - 1 times as many pairs of two classes as of one. They are weighed down, so that all
of them weigh at most `different` times as much as those of one: once for Koch et al., who draw
equally many of either. Sung et al. weigh all pairs alike; but then a squared error is content with
"different" for all of them for a long time, the more so the more classes a task has.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode
from training.objectives import Metrics, Objective
from training.objectives.episode import accuracy


class VerificationLoss(Objective):
    def __init__(
        self, error: Literal["cross_entropy", "squared"] = "cross_entropy", different: float = 1.0
    ) -> None:
        super().__init__()
        self.error, self.different = error, different

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        logits = learner(episode.support, episode.query).logits.float()
        classes = torch.arange(logits.shape[-1], device=logits.device)
        same = episode.targets.unsqueeze(-1) == classes  # [B, Q, way]
        real = (episode.targets != IGNORE).unsqueeze(-1) & episode.support.class_mask.unsqueeze(1)
        if self.error == "squared":
            losses = (logits.sigmoid() - same.float()).square()
        else:
            losses = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none")
        others = (real.sum(-1, keepdim=True) - 1).clamp(min=1)
        weights = torch.where(same, 1.0, (self.different / others).clamp(max=1)) * real
        # A class that is absent has a logit of -1e9, whose loss may not be multiplied by zero.
        losses = losses.masked_fill(~real, 0.0)
        loss = (losses * weights).sum() / weights.sum()
        return loss, {"accuracy": accuracy(logits, episode.targets)}
