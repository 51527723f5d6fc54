"""The loss of a learner that is shown a sequence: at every step, before it is told the label.

Santoro et al. 2016; the support examples in their order are the sequence, queries are not used.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from models_zoo.model_based.sequence import occasions
from training.data.sampler import IGNORE, Episode
from training.objectives import Objective
from training.objectives.episode import accuracy


class SequenceLoss(Objective):
    """Mean cross-entropy over all presentations; `accuracy` is that of the second."""

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        support = episode.support
        logits = learner.presented(support).float()
        targets = support.labels.masked_fill(~support.mask, IGNORE)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        second = occasions(support.labels, support.mask) == 1
        return loss, {"accuracy": accuracy(logits, targets.masked_fill(~second, IGNORE))}
