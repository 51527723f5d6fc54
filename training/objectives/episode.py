"""Cross-entropy of the queries: the loss of nearly every learner (Eq. 10 of Yan et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode
from training.objectives import Metrics, Objective


def query_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every query: logits `[B, Q, way]`, targets `[B, Q]` -> `[B, Q]`.

    0 where the query is padding. In float32 at least.
    """
    full = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = F.cross_entropy(
        full.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view_as(targets)


def query_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit `[B, Q, way]` is the target `[B, Q]`, else 0; 0 for padding."""
    return (logits.argmax(-1) == targets).float()


def mean_over_queries(values: Tensor, targets: Tensor) -> Tensor:
    """The mean of values `[B, Q]`, which are 0 for padding, over all real queries."""
    return values.sum() / (targets != IGNORE).sum()


def mean_over_each_task(values: Tensor, targets: Tensor) -> Tensor:
    """Each task's mean over its own real queries: `[B, Q]` -> `[B]`."""
    return values.sum(1) / (targets != IGNORE).sum(1)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of real queries whose largest logit `[B, Q, way]` is the target `[B, Q]`."""
    return mean_over_queries(query_hits(logits, targets), targets)


class EpisodeLoss(Objective):
    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        logits = learner(episode.support, episode.query).logits
        loss = mean_over_queries(query_losses(logits, episode.targets), episode.targets)
        return loss, {"accuracy": accuracy(logits, episode.targets)}
