"""Prototypical Networks (Snell, Swersky and Zemel 2017).

A class is the mean of its support features; a query belongs to the nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from models_zoo.backbones import build_backbone
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_classes, class_shares


class PrototypicalNetwork(Learner):
    """Nearest class mean in feature space.

    distance: "euclidean" = squared Euclidean distance (Eq. 1 of the paper with a Bregman
    divergence); "cosine" = cosine similarity times `scale`.
    """

    takes_vectors = True

    def __init__(
        self,
        channels: int = 3,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        self.distance, self.scale = distance, scale
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`: the whole map, flattened."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """c_k = mean of the features of class k.

        State: prototypes `[B, way, D]`, membership `[B, N, way]` (1/shots of the own class),
        class_mask `[B, way]`.
        """
        membership = class_shares(support)
        prototypes = membership.transpose(1, 2) @ support.x
        return {
            "prototypes": prototypes,
            "membership": membership,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """p(y = k | x) = softmax(-d(f(x), c_k)); an example's weight is its share of its class."""
        prototypes = state["prototypes"]
        if self.distance == "cosine":
            logits = self.scale * (
                F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)
            )
        else:
            logits = -(
                query.square().sum(-1, keepdim=True)
                - 2 * query @ prototypes.transpose(1, 2)
                + prototypes.square().sum(-1).unsqueeze(1)
            )
        return by_classes(logits, state["membership"], state["class_mask"])
