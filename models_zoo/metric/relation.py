"""Relation Networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018).

A learned comparison: the feature maps of a class and of a query are put together and a small
network gives their relation r = sigmoid(g(C(f(x_i), f(x_j)))), Eq. 1 of the paper. It is trained to
r = 1 for the query's own class and 0 for the others (Eq. 2): `training/objectives/verification.py`.

- Logits are the scores before the sigmoid, so that sigmoid(logits) are the relations. Their softmax
  is Bayes' rule for a query that belongs to exactly one of the classes, where each relation is a
  probability: the odds of a class are r / (1 - r) = exp(logit).
- The first convolution of the relation module is linear in what is put together, so it is done
  once per class and once per query, and the results are added for each pair.
- Feature maps of a class's examples are summed in the paper (`shots="sum"`); their mean
  (`shots="mean"`) is the same for one shot and does not grow with the number of shots.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.conv4 import Conv4, conv_block
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_classes, class_shares


class RelationNetwork(Learner):
    """Any way and shot; an example weighs its share of its class.

    image_size   height and width of the images
    hidden       width of the four blocks of the embedding; the first two halve the map
    relation     width of the two blocks of the relation module; either halves the map
    units        of the layer before the score
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 84,
        hidden: int = 64,
        relation: int = 64,
        units: int = 8,
        shots: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.embedding = Conv4(channels, hidden, (True, True, False, False))
        self.of_class = nn.Conv2d(hidden, relation, 3, padding=1, bias=False)
        self.of_query = nn.Conv2d(hidden, relation, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(relation)
        self.second = conv_block(relation, relation, pool=True)
        side = image_size // 16
        self.score = nn.Sequential(
            nn.Linear(relation * side * side, units), nn.ReLU(), nn.Linear(units, 1)
        )
        self.shots = shots
        self.attention_layers = 1
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """f: images -> feature maps `[M, hidden, H/4, W/4]`."""
        features: Tensor = self.embedding(images)
        return features

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: each class's half of the relation module's first convolution
        `[B, way, relation, h, w]`, the examples' shares of their classes, class_mask.
        """
        shares = class_shares(support)
        weights = support.one_hot() if self.shots == "sum" else shares
        pooled = weights.transpose(1, 2) @ support.x.flatten(2)
        maps = pooled.unflatten(2, support.x.shape[2:])
        classes = self.of_class(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        return {"classes": classes, "shares": shares, "class_mask": support.class_mask}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """The relation of every query with every class, before the sigmoid."""
        queries = self.of_query(query.flatten(0, 1)).unflatten(0, query.shape[:2])
        pairs = queries.unsqueeze(2) + state["classes"].unsqueeze(1)  # [B, Q, way, C, h, w]
        x = F.relu(F.max_pool2d(self.norm(pairs.flatten(0, 2)), 2))
        logits = self.score(self.second(x).flatten(1)).unflatten(0, pairs.shape[:3]).squeeze(-1)
        return by_classes(logits, state["shares"], state["class_mask"])
