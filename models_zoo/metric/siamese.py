"""Siamese Network (Koch, Zemel and Salakhutdinov 2015; Cai et al. 2018).

Two images go through one network; a weighted L1 distance of what it makes of them decides whether
they are of one class: p = sigmoid(sum_j alpha_j |h_1j - h_2j|), section 3.1. It is trained on pairs
(`training/objectives/verification.py`) and classifies by comparing a query with every example.

- h is a fully connected layer with sigmoid units, as in the paper, over Conv4 features.
- A bias joins the sum: without it, two equal images would get p = 1/2.
- alpha starts below zero, so that a distance speaks against one class from the first step.
- The paper has one example of each class. With more, a class has the mean of its examples' scores
  before the sigmoid (the odds multiplied), or the score of the most similar one.
- An example's weight is the softmax of its pair's score over the support set: how similar it is
  beside the others. For one shot these are the class probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner
from models_zoo.metric.answers import class_shares


class SiameseNetwork(Learner):
    """Any way and shot.

    image_size   height and width of the images
    dim          size of h
    decide       "mean" of the scores of a class's examples, or the "most_similar" one's
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 84,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        dim: int = 128,
        decide: Literal["mean", "most_similar"] = "mean",
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        features = self.backbone.out_channels * (image_size // self.backbone.reduction) ** 2
        self.embed = nn.Linear(features, dim)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.alpha = nn.Parameter(torch.full((dim,), -0.2))
        self.bias = nn.Parameter(torch.tensor(2.0))
        self.decide = decide
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`, before the fully connected layer."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: h `[B, N, dim]`, the examples' shares of their classes `[B, N, way]`, masks."""
        return {
            "h": self.embed(support.x).sigmoid(),
            "shares": class_shares(support),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Every query against every example; the logits are scores before the sigmoid."""
        h = self.embed(query).sigmoid()
        distance = (h.unsqueeze(2) - state["h"].unsqueeze(1)).abs()  # [B, Q, N, dim]
        scores = distance @ self.alpha + self.bias
        shares = state["shares"]
        if self.decide == "mean":
            logits = scores @ shares
        else:
            own = shares.transpose(1, 2).unsqueeze(1) > 0  # [B, 1, way, N]
            logits = scores.unsqueeze(2).masked_fill(~own, ABSENT).amax(-1)
        weights = scores.masked_fill(~state["mask"].unsqueeze(1), ABSENT).softmax(-1)
        return Prediction(
            mask_absent(logits, state["class_mask"]), task_attention=weights.unsqueeze(1)
        )
