"""Softmax over support examples, Eq. 9 of Cai et al. 2018: each example of the class is a positive.

With one shot it equals `EpisodeLoss`. With more, it sums -log of each positive's weight, where
`EpisodeLoss` takes -log of their sum; here the sum is divided by the number of positives, so that
tasks of different shots weigh the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode
from training.objectives import Metrics, Objective
from training.objectives.episode import accuracy, mean_over_queries

#: Smallest weight whose logarithm is taken: below it float32 itself gives out (e^-87). A larger
#: one would let go of just those queries that are most surely wrong, for the clamp has no gradient.
TINY = torch.finfo(torch.float32).tiny


class MatchingLoss(Objective):
    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        prediction = learner(episode.support, episode.query)
        assert prediction.task_attention is not None, "its answers weigh no examples"
        weights = prediction.task_attention[:, -1].float()  # [B, Q, N]
        same = episode.targets.unsqueeze(-1) == episode.support.labels.unsqueeze(1)
        positive = (same & episode.support.mask.unsqueeze(1)).float()
        per_query = -(weights.clamp(min=TINY).log() * positive).sum(-1) / positive.sum(-1).clamp(
            min=1
        )
        per_query = per_query.masked_fill(episode.targets == IGNORE, 0.0)
        loss = mean_over_queries(per_query, episode.targets)
        return loss, {"accuracy": accuracy(prediction.logits.float(), episode.targets)}
