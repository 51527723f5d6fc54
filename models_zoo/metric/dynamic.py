"""Dynamic few-shot learning without forgetting (Gidaris and Komodakis 2018).

Base classes, known from training, have learned weight vectors. The weights of a new class are made
of its examples and, by attention, of the base classes' weights (the paper's section 3.2):

    w' = phi_avg * mean of z_i + phi_att * mean over i of sum over b of Att(phi_q z_i, k_b) w_b

z_i and w_b of length one, Att = softmax over b of gamma times the cosine. A query is classified by
tau times the cosine between its features and the weights (section 3.1), for which the last block
of the encoder has no ReLU. The base weights and keys are part of the learner: it reads them for
every new class. They are trained by `training/objectives/base_classes.py`, where a class that plays
a new one hides its own base weight.

Choices:
- The first `base_classes` global classes are the base classes. On Omniglot these are the training
  characters as drawn; turned ones are new classes without a base weight.
- In an answer only the task's own classes compete; `base_logits` gives the base classes' scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.conv4 import ALL, Conv4
from models_zoo.episode import ABSENT, Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_classes, class_shares

#: Where the learned scales tau and gamma start (the paper's values).
SCALE = 10.0


class WeightGenerator(nn.Module):
    """Weights of new classes from features and from the base classes' weights."""

    def __init__(self, dim: int, base_classes: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(base_classes, dim) / math.sqrt(dim))
        self.query = nn.Linear(dim, dim, bias=False)  # phi_q
        self.average = nn.Parameter(torch.ones(dim))  # phi_avg
        self.attention = nn.Parameter(torch.ones(dim))  # phi_att
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))  # gamma

    def forward(
        self, z: Tensor, shares: Tensor, base: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Features z `[B, N, D]`, shares `[B, N, way]`, base weights `[K, D]` -> `[B, way, D]`.

        All of length one. `hidden` `[B, K]`: base classes that a task may not read.
        """
        cosines = F.normalize(self.query(z), dim=-1) @ F.normalize(self.keys, dim=-1).T
        scores = self.log_scale.exp() * cosines  # [B, N, K]
        if hidden is not None:
            scores = scores.masked_fill(hidden.unsqueeze(1), ABSENT)
        read = scores.softmax(-1) @ base
        per_class = shares.transpose(1, 2)
        return self.average * (per_class @ z) + self.attention * (per_class @ read)


class DynamicFewShot(Learner):
    """Any way and shot; an example weighs its share of its class.

    base_classes   K, the classes whose weights are learned and read
    image_size     height and width of the images
    """

    def __init__(
        self,
        base_classes: int,
        channels: int = 3,
        image_size: int = 84,
        hidden: int = 64,
        pools: Sequence[bool] = ALL,
    ) -> None:
        super().__init__()
        self.backbone = Conv4(channels, hidden, pools, last_relu=False)
        dim = hidden * (image_size // self.backbone.reduction) ** 2
        self.base = nn.Parameter(torch.randn(base_classes, dim) / math.sqrt(dim))
        self.generator = WeightGenerator(dim, base_classes)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))  # tau
        self.attention_layers = 1
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """z: images -> feature vectors `[M, D]`."""
        features: Tensor = self.backbone(images)
        return features.flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: the classes' weights `[B, way, D]`, the examples' shares of them, class_mask."""
        return self.adapt_hiding(support)

    def adapt_hiding(self, support: Support, hidden: Tensor | None = None) -> TaskState:
        """`adapt` of tasks that may not read the base classes in `hidden` `[B, K]`."""
        shares = class_shares(support)
        z, base = F.normalize(support.x, dim=-1), F.normalize(self.base, dim=-1)
        weights = self.generator(z, shares, base, hidden)
        return {
            "weights": F.normalize(weights, dim=-1),
            "shares": shares,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """tau cos(z, w)."""
        logits = self.log_scale.exp() * (
            F.normalize(query, dim=-1) @ state["weights"].transpose(1, 2)
        )
        return by_classes(logits, state["shares"], state["class_mask"])

    def base_logits(self, features: Tensor) -> Tensor:
        """tau cos(z, w_b): features `[..., D]` -> `[..., K]`."""
        cosines = F.normalize(features, dim=-1) @ F.normalize(self.base, dim=-1).T
        return self.log_scale.exp() * cosines
