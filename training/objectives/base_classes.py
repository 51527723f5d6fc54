"""New classes and base classes at once (Gidaris and Komodakis 2018, section 3.3).

The classes of a task play new ones: those that are base classes hide their own weights, and the
queries are classified among the task's classes and all other base classes. The paper's first stage,
plain classification of all images among the base classes, is not run before but added, `weight`
times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import ABSENT
from models_zoo.learner import Learner
from models_zoo.metric.dynamic import DynamicFewShot
from training.data.sampler import IGNORE, Episode, EpisodeSampler
from training.objectives import Metrics, Objective
from training.objectives.episode import accuracy, mean_over_queries, query_losses


class BaseClassLoss(Objective):
    def __init__(self, learner: Learner, sampler: EpisodeSampler, weight: float) -> None:
        super().__init__()
        assert isinstance(learner, DynamicFewShot), "base_classes needs the learner dynamic"
        known, wanted = sampler.class_count, len(learner.base)
        if wanted > known:
            raise ValueError(f"{wanted} base classes, but the training data have {known}")
        self.weight = weight

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        assert isinstance(learner, DynamicFewShot)
        support, query = learner.encoded(episode.support, episode.query)
        bases = torch.arange(len(learner.base), device=query.device)
        hidden = (episode.support_classes.unsqueeze(-1) == bases).any(1)  # [B, K]
        images = torch.cat([support.x.flatten(0, 1), query.flatten(0, 1)])
        classes = torch.cat([episode.support_classes.flatten(), episode.query_classes.flatten()])
        with torch.autocast(query.device.type, enabled=False):
            new = learner.predict(learner.adapt_hiding(support, hidden), query).logits
            others = learner.base_logits(query).masked_fill(hidden.unsqueeze(1), ABSENT)
            among_bases = learner.base_logits(images)

        both = torch.cat([new, others], dim=-1)
        task = mean_over_queries(query_losses(both, episode.targets), episode.targets)
        known = (classes != IGNORE) & (classes < len(bases))
        losses = F.cross_entropy(
            among_bases, classes.masked_fill(~known, IGNORE), ignore_index=IGNORE, reduction="sum"
        )
        base = losses / known.sum().clamp(min=1)  # a step may hold no image of a base class
        return task + self.weight * base, {
            "accuracy": accuracy(new, episode.targets),
            "task_loss": task,
            "base_loss": base,
        }
