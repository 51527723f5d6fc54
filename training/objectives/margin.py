"""The margin loss of a nearest-neighbour memory (Kaiser et al. 2017).

For a query q of label v, n_p the nearest key with label v and n_b the nearest with another:

    loss = [q . K[n_b] - q . K[n_p] + alpha]_+

A learner whose logit for a class is its nearest key's similarity, times t, needs the logits alone;
`margin` is alpha in their unit, alpha t (the paper: 0.1 x 40).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode
from training.objectives import Objective
from training.objectives.episode import accuracy


class MarginLoss(Objective):
    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        logits = learner(episode.support, episode.query).logits.float()
        real = episode.targets != IGNORE
        target = episode.targets.clamp(min=0).unsqueeze(-1)
        own = logits.gather(-1, target).squeeze(-1)
        slots = torch.arange(logits.shape[-1], device=logits.device)
        others = logits.masked_fill(slots == target, -torch.inf).amax(-1)
        per_query = F.relu(others - own + self.margin)
        loss = per_query[real].mean()
        return loss, {"accuracy": accuracy(logits, episode.targets)}
