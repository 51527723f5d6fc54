"""Episode loss plus the semantic loss of Yan et al. 2019, Eq. 11 to 13."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode, EpisodeSampler
from training.objectives import Metrics, Objective
from training.objectives.cutmix import cut_mix, whole
from training.objectives.episode import accuracy, mean_over_queries, query_losses

SemanticLabels = Literal["class", "group", "both"]


class SemanticLoss(Objective):
    """L_task + weight * L_sem; L_sem classifies every image among all training classes.

    labels: "class" = the base classes (a rotated class counts as one of its own);
            "group" = their parents (the paper's choice on Omniglot: alphabets);
            "both"  = the sum of the two.
    cutmix: share of the steps in which queries are mixed (see `cutmix`).
    """

    def __init__(
        self,
        learner: Learner,
        sampler: EpisodeSampler,
        weight: float,
        labels: SemanticLabels = "class",
        cutmix: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight, self.cutmix = weight, cutmix
        self.group_of = sampler.group_of
        counts = {"class": sampler.class_count, "group": sampler.group_count}
        self.outputs = counts if labels == "both" else {labels: counts[labels]}
        if min(self.outputs.values()) < 2:
            raise ValueError("the data have one group of classes only; set objective.labels: class")
        backbone = learner.get_submodule("backbone")
        channels = backbone.out_channels
        assert isinstance(channels, int)
        self.output = nn.Linear(channels, sum(self.outputs.values()))  # W_sem of Eq. 11

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        mixes = self.cutmix > 0 and float(torch.rand(())) < self.cutmix
        query = (cut_mix if mixes else whole)(episode.query)
        support_maps = learner.encode_batch(episode.support.x).float()
        query_maps = learner.encode_batch(query.images).float()
        logits = learner.classify(episode.support.with_x(support_maps), query_maps).logits
        task = query.loss(
            lambda targets: mean_over_queries(query_losses(logits, targets), targets),
            episode.targets,
        )

        maps = torch.cat([support_maps.flatten(0, 1), query_maps.flatten(0, 1)])
        pooled = maps.flatten(2).mean(-1) if maps.ndim > 2 else maps
        logits_of = self.output(pooled).float().split(list(self.outputs.values()), dim=-1)
        semantic = query.loss(
            lambda classes: self._semantic(
                logits_of, torch.cat([episode.support_classes.flatten(), classes.flatten()])
            ),
            episode.query_classes,
        )
        loss = task + self.weight * semantic  # Eq. 13
        return loss, {
            "accuracy": accuracy(logits, episode.targets),
            "task_loss": task,
            "semantic_loss": semantic,
        }

    def _semantic(self, logits_of: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Eq. 12 for each kind of labels, summed."""
        groups = torch.where(classes == IGNORE, classes, self.group_of[classes.clamp(min=0)])
        targets = {"class": classes, "group": groups}
        losses = [
            F.cross_entropy(part, targets[labels], ignore_index=IGNORE)
            for labels, part in zip(self.outputs, logits_of, strict=True)
        ]
        return torch.stack(losses).sum()
