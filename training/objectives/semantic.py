"""Episode loss plus the semantic loss of seed 000, Eq. 11 to 13."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode, EpisodeSampler
from training.objectives import Metrics, Objective
from training.objectives.episode import accuracy, mean_over_queries, query_losses

SemanticLabels = Literal["class", "group", "both"]


class SemanticLoss(Objective):
    """L_task + weight * L_sem; L_sem classifies every image among all training classes.

    labels: "class" = the base classes (a rotated class counts as one of its own);
            "group" = their parents (the seed's choice on Omniglot: alphabets);
            "both"  = the sum of the two.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: EpisodeSampler,
        weight: float,
        labels: SemanticLabels = "class",
    ) -> None:
        super().__init__()
        self.weight = weight
        self.group_of = sampler.group_of
        counts = {"class": sampler.class_count, "group": sampler.group_count}
        self.outputs = counts if labels == "both" else {labels: counts[labels]}
        backbone = learner.get_submodule("backbone")
        channels = backbone.out_channels
        assert isinstance(channels, int)
        self.output = nn.Linear(channels, sum(self.outputs.values()))  # W_sem of Eq. 11

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        support_maps = learner.encode_batch(episode.support.x).float()
        query_maps = learner.encode_batch(episode.query).float()
        logits = learner.classify(episode.support.with_x(support_maps), query_maps).logits
        task = mean_over_queries(query_losses(logits, episode.targets), episode.targets)

        maps = torch.cat([support_maps.flatten(0, 1), query_maps.flatten(0, 1)])
        classes = torch.cat([episode.support_classes.flatten(), episode.query_classes.flatten()])
        groups = torch.where(classes == IGNORE, classes, self.group_of[classes.clamp(min=0)])
        targets = {"class": classes, "group": groups}
        pooled = maps.flatten(2).mean(-1) if maps.ndim > 2 else maps
        logits_of = self.output(pooled).float().split(list(self.outputs.values()), dim=-1)
        losses = [  # Eq. 12
            F.cross_entropy(part, targets[labels], ignore_index=IGNORE)
            for labels, part in zip(self.outputs, logits_of, strict=True)
        ]
        semantic = torch.stack(losses).sum()
        loss = task + self.weight * semantic  # Eq. 13
        return loss, {
            "accuracy": accuracy(logits, episode.targets),
            "task_loss": task,
            "semantic_loss": semantic,
        }
