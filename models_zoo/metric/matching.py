"""Matching Networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016).

P(y | x, S) = sum of a(x, x_i) over the examples labelled y, a = softmax of the cosine between f(x)
and g(x_i) (the paper's Eq. 1 and section 2.1.1). With Full Conditional Embeddings, g and f depend
on the whole support set: g adds a bidirectional LSTM over it (appendix A.2), f is an LSTM that
reads it K times by attention (appendix A.1, Eq. 3 to 6).

Choices where the paper is silent:
- A softmax of cosines cannot be sure of itself: they are scaled by a learned temperature.
- f' and g' share one network, as in "Learn how to Learn", and have length one before they enter the
  LSTMs.
- The reads attend by a softmax of dot products, as in Eq. 6, with a learned temperature too.
- The bidirectional LSTM reads the set from its most typical example to its least: by falling dot
  product with the set's mean, both of full length (of two unit vectors either is as far from the
  mean). So the answer depends neither on the order in which the examples were given nor on the
  numbers of their classes; padding is not read.
- The first read is made with h_0 = f'(x); c_0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.episode import ABSENT, Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_examples
from models_zoo.metric.bilstm import BiLSTM

#: Where the learned temperatures start.
SCALE = 10.0


class SupportLSTM(BiLSTM):
    """g(x_i, S) = h_forward_i + h_backward_i + g'(x_i)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features `[B, N, D]` of any length, which are real `[B, N]` -> g `[B, N, D]`."""
        turn = reading_turn(x, mask)
        x = F.normalize(x, dim=-1)
        places = torch.arange(x.shape[1], device=x.device)
        moved = (turn.unsqueeze(1) == places.unsqueeze(-1)).to(x.dtype)  # a permutation [B, N, N]
        forwards, backwards = self.read(moved @ x, mask.sum(1))
        return x + moved.transpose(1, 2) @ (forwards + backwards)


def reading_turn(x: Tensor, mask: Tensor) -> Tensor:
    """When each example is read `[B, N]`: the most like the mean first, padding last.

    Counted instead of sorted, since a stable sort does not export to ONNX.
    """
    total = (x * mask.unsqueeze(-1)).sum(1, keepdim=True)
    similarity = (x * total).sum(-1).masked_fill(~mask, -math.inf)
    mine, other = similarity.unsqueeze(2), similarity.unsqueeze(1)
    places = torch.arange(x.shape[1], device=x.device)
    earlier = (other > mine) | ((other == mine) & (places < places.unsqueeze(1)))
    return earlier.sum(2)


class QueryLSTM(nn.Module):
    """f(x, S) = attLSTM(f'(x), g(S), K): K reads of the support set."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.gates = nn.Linear(3 * dim, 4 * dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.steps = steps

    def forward(self, x: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        """f' `[B, Q, D]`, g `[B, N, D]`, mask `[B, N]` -> f `[B, Q, D]`."""
        h, c = x, torch.zeros_like(x)
        for _ in range(self.steps):
            scores = self.log_scale.exp() * (h @ g.transpose(1, 2))
            scores = scores.masked_fill(~mask.unsqueeze(1), ABSENT)
            r = scores.softmax(-1) @ g  # Eq. 5 and 6
            write, keep, new, out = self.gates(torch.cat([x, h, r], dim=-1)).chunk(4, dim=-1)
            c = keep.sigmoid() * c + write.sigmoid() * new.tanh()  # Eq. 3
            h = out.sigmoid() * c.tanh() + x  # Eq. 4
        return h


class MatchingNetwork(Learner):
    """Attention over the support examples decides, for any way and shot.

    image_size   height and width of the images
    fce          Full Conditional Embeddings
    steps        K, the reads of the query's LSTM
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 84,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        fce: bool = False,
        steps: int = 5,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        dim = self.backbone.out_channels * (image_size // self.backbone.reduction) ** 2
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.embed_support = SupportLSTM(dim) if fce else None
        self.embed_query = QueryLSTM(dim, steps) if fce else None
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """f' and g': images -> feature vectors `[M, D]`."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: embeddings g `[B, N, D]`, one-hot labels `[B, N, way]`, mask, class_mask."""
        if self.embed_support is not None:
            embeddings = self.embed_support(support.x, support.mask)
        else:
            embeddings = F.normalize(support.x, dim=-1)
        return {
            "embeddings": embeddings,
            "labels": support.one_hot(),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Each class gets the attention on its examples."""
        f, g = F.normalize(query, dim=-1), state["embeddings"]
        if self.embed_query is not None:
            f = F.normalize(self.embed_query(f, g, state["mask"]), dim=-1)
        cosines = f @ F.normalize(g, dim=-1).transpose(1, 2)
        scores = self.log_scale.exp() * cosines
        return by_examples(scores, state["labels"], state["mask"], state["class_mask"])
