"""Parameters from activations (Qiao, Liu, Shen and Yuille 2018).

The weights of a class in the last layer are predicted from the activations before it: w_y =
phi(mean activation of the class), and P(y | x) = softmax of w_y . a(x). phi knows no classes, so
that it serves new ones without a step of training.

Choices of our own:
- Activations have length one on both sides of phi and so have its outputs; the products have a
  learned temperature.
- phi has two layers, and what they make is added to the mean itself, so that training starts near
  the mean activation as a class's weights.
- The paper trains a network on all base classes, then phi with the network at rest. Here both are
  trained at once: the base classes' own loss is `training/objectives/semantic.py`, and phi sees
  classes drawn anew for each task. A task's examples are the paper's statistic set: single
  activations in 1-shot tasks, means in others.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_classes, class_shares

SCALE = 10.0


class ParametersFromActivations(Learner):
    """Any way and shot; an example weighs its share of its class.

    hidden   width of phi's first layer
    """

    def __init__(self, channels: int = 3, backbone: str = "conv4-64", hidden: int = 128) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels)
        dim = self.backbone.out_channels
        self.phi = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """a: images -> the activations before a last layer `[M, D]`, the map's mean."""
        return self.backbone(images).flatten(2).mean(-1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: the classes' weights `[B, way, D]`, the examples' shares of them, class_mask."""
        shares = class_shares(support)
        mean = F.normalize(shares.transpose(1, 2) @ F.normalize(support.x, dim=-1), dim=-1)
        weights = F.normalize(mean + self.phi(mean), dim=-1)
        return {"weights": weights, "shares": shares, "class_mask": support.class_mask}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """P(y | x) = softmax of w_y . a(x)."""
        products = F.normalize(query, dim=-1) @ state["weights"].transpose(1, 2)
        logits = self.log_scale.exp() * products
        return by_classes(logits, state["shares"], state["class_mask"])
