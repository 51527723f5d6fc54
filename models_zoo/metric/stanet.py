"""STANet: a dual attention network with semantic embedding (Yan, Zhang and He 2019).

Spatial attention finds, in the query and in every support image, the places that look like the
query; task attention finds the support examples that look like it. Equation numbers are theirs.
The semantic branch (Eq. 11 to 13) exists in training only: `training/objectives/semantic.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner

Spatial = Literal["learned", "uniform", "gaussian"]


class SpatialAttention(nn.Module):
    """Eq. 3 to 5: a query vector against the places of a feature map."""

    def __init__(self, query_dim: int, channels: int, key_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, key_dim, bias=False)
        self.key = nn.Linear(channels, key_dim, bias=False)  # a 1x1 convolution
        self.scale = 1 / math.sqrt(key_dim)

    def forward(self, h: Tensor, query_map: Tensor, support_map: Tensor) -> tuple[Tensor, Tensor]:
        """h `[B, Q, D]`, maps `[B, Q, p, C]` and `[B, N, p, C]` -> `[B, Q, p]`, `[B, Q, N, p]`."""
        # Eq. 3. q . (W_k x) = (W_k^T q) . x: the few queries are projected, not the many places.
        q = (self.query(h) * self.scale) @ self.key.weight
        on_query = (query_map @ q.unsqueeze(-1)).squeeze(-1)
        on_support = q @ support_map.flatten(1, 2).transpose(1, 2)
        on_support = on_support.unflatten(-1, support_map.shape[1:3])
        return on_query.softmax(-1), on_support.softmax(-1)  # Eq. 4


class FixedAttention(nn.Module):
    """The ablations of Yan et al. 2019, Table 2: uniform weights, or a Gaussian at the centre."""

    weights: Tensor

    def __init__(self, kind: Spatial, height: int, width: int, sigma: float = 0.25) -> None:
        super().__init__()
        if kind == "gaussian":
            y = torch.linspace(-0.5, 0.5, height) if height > 1 else torch.zeros(1)
            x = torch.linspace(-0.5, 0.5, width) if width > 1 else torch.zeros(1)
            weights = torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2)).flatten()
        else:
            weights = torch.ones(height * width)
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def forward(self, h: Tensor, query_map: Tensor, support_map: Tensor) -> tuple[Tensor, Tensor]:
        batch, queries, places, _ = query_map.shape
        examples = support_map.shape[1]
        weights = self.weights.to(h.dtype)
        return (
            weights.expand(batch, queries, places),
            weights.expand(batch, queries, examples, places),
        )


class STALayer(nn.Module):
    """One spatial-task attention layer (section 4.2)."""

    def __init__(
        self, spatial: nn.Module, channels: int, slots: int, key_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.query = nn.Linear(channels, key_dim, bias=False)
        self.key = nn.Linear(channels, key_dim, bias=False)
        self.value = nn.Linear(channels + slots, value_dim, bias=False)
        # Starting from one projection for both makes the first attention a similarity (the paper
        # does not say how the weights start); they are free to part from there.
        self.key.load_state_dict(self.query.state_dict())
        self.scale = 1 / math.sqrt(key_dim)

    def forward(
        self, h: Tensor, query_map: Tensor, support_map: Tensor, hot: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """-> o_g `[B, Q, V]`, the next h `[B, Q, 2C]`, (task, query, support) attention."""
        a_query, a_support = self.spatial(h, query_map, support_map)
        z_query = (a_query.unsqueeze(-2) @ query_map).squeeze(-2)  # Eq. 5: [B, Q, C]
        # [B, N, Q, p] @ [B, N, p, C] -> [B, N, Q, C] -> [B, Q, N, C]
        z_support = (a_support.transpose(1, 2) @ support_map).transpose(1, 2)

        q, keys = self.query(z_query) * self.scale, self.key(z_support)
        scores = (keys @ q.unsqueeze(-1)).squeeze(-1)  # [B, Q, N]
        a_task = scores.masked_fill(~mask.unsqueeze(1), ABSENT).softmax(-1)

        o_s = (a_task.unsqueeze(-2) @ z_support).squeeze(-2)  # Eq. 9
        # Eq. 6 and 7. a_t (W_v [z; y]) = W_v [a_t z; a_t y]: the weighted mean is taken first.
        o_g = self.value(torch.cat([o_s, a_task @ hot], dim=-1))
        return o_g, torch.cat([z_query, o_s], dim=-1), (a_task, a_query, a_support)


class STANet(Learner):
    """M layers of dual attention over Conv4 or ResNet-12 feature maps.

    max_way      number of label slots |L|; a task may use fewer
    layers       M, the number of STA layers
    image_size   height and width of the images
    last_relu    whether feature maps end in a ReLU, or have numbers of either sign
    spatial      "learned", or the ablations "uniform" and "gaussian"
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = (True, True, False, False),
        max_way: int = 5,
        layers: int = 3,
        key_dim: int = 64,
        value_dim: int = 128,
        spatial: Spatial = "learned",
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools, last_relu)
        self.max_way, self.attention_layers = max_way, layers
        width = self.backbone.out_channels
        side = image_size // self.backbone.reduction
        self.map_size = (side, side)
        self.layers = nn.ModuleList()
        for index in range(layers):
            attention: nn.Module
            if spatial == "learned":
                attention = SpatialAttention(width if index == 0 else 2 * width, width, key_dim)
            else:
                attention = FixedAttention(spatial, side, side)
            self.layers.append(STALayer(attention, width, max_way, key_dim, value_dim))
        self.output = nn.Linear(layers * value_dim, max_way)  # W_o of Eq. 8

    def encode(self, images: Tensor) -> Tensor:
        """Eq. 1 and 2: images -> feature maps `[M, C, h, w]`."""
        return self.backbone(images)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: the support maps `[B, N, C, h, w]`, one-hot labels `[B, N, max_way]`, masks.

        Raises `ValueError` for more classes than `max_way`.
        """
        self.check_way(support)
        return {
            "maps": support.x,
            "labels": support.one_hot(self.max_way),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Queries `[B, Q, C, h, w]` -> logits over the slots and three attentions per layer."""
        query_map = query.flatten(3).transpose(2, 3)  # [B, Q, p, C]
        support_map = state["maps"].flatten(3).transpose(2, 3)  # [B, N, p, C]
        h = query_map.mean(2)
        outputs, maps = [], []
        for layer in self.layers:
            o_g, h, attention = layer(h, query_map, support_map, state["labels"], state["mask"])
            outputs.append(o_g)
            maps.append(attention)
        logits = self.output(torch.cat(outputs, dim=-1))  # Eq. 8 over all layers
        way = state["class_mask"].shape[1]
        task, on_query, on_support = (torch.stack(a, dim=1) for a in zip(*maps, strict=True))
        return Prediction(
            mask_absent(logits[..., :way], state["class_mask"]),
            task,
            on_query.unflatten(-1, self.map_size),
            on_support.unflatten(-1, self.map_size),
        )
