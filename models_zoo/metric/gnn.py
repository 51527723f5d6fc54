"""Few-shot learning with graph neural networks (Garcia and Bruna 2018).

The support examples and one query are the nodes of a graph, x = [features; label], the query's
label uniform over the classes. A layer learns the edges from the nodes, A_ij = softmax over j of
MLP(|x_i - x_j|) (the paper's Eq. 4 and 5), and from these new nodes: Gc(x) = LeakyReLU of a linear
map of [A x; x] (Eq. 2 with the operators A and 1), appended to the old ones. The last layer's
linear map of the query's node gives the class scores. Every query has a graph of its own, so that
no answer depends on the other queries.

Choices:
- Nodes and hidden layers of the MLP have layer norm in place of batch norm: statistics of edges
  would depend on which other tasks, ways and shots are in the batch.
- A node has no edge to itself, since the operator 1 is there for that.
- |x_i - x_j| is symmetric, so edges from and to the query are computed once; in the first layer
  the support examples are the same in all graphs, and their edges are shared; in the last layer
  only the query's are needed. With two layers, no query costs more than N edges in each.
- The classes have fixed slots (`max_way`) in the nodes and in the output; training draws the slots
  at random (`episodes.slots`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner


def perceptron(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Differences `[..., inputs]` -> scores `[..., 1]`."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.LeakyReLU(0.1)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


class GraphLayer(nn.Module):
    """Edges and new nodes, appended to the old; the last layer gives the query's class scores."""

    def __init__(self, inputs: int, outputs: int, edges: Sequence[int], last: bool) -> None:
        super().__init__()
        self.edge = perceptron(inputs, edges)
        self.node = nn.Linear(2 * inputs, outputs)
        self.norm = None if last else nn.LayerNorm(outputs)

    def forward(self, s: Tensor, q: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Support nodes s `[B, 1 or Q, N, F]`, query nodes q `[B, Q, 1, F]`, mask `[B, 1, 1, N]`.

        -> the next s, the next q and the query's weights over the examples `[B, Q, N]`. The last
        layer leaves s as it is, and its q is the class scores.
        """
        to_query = self.edge((s - q).abs()).squeeze(-1).unsqueeze(2)  # [B, Q, 1, N]
        a_query = to_query.masked_fill(~mask, ABSENT).softmax(-1)
        from_support = self.node(torch.cat([a_query @ s, q], dim=-1))
        if self.norm is None:
            return s, from_support, a_query.squeeze(2)

        among = self.edge((s.unsqueeze(3) - s.unsqueeze(2)).abs()).squeeze(-1)  # [B, ., N, N]
        places = torch.arange(s.shape[2], device=s.device)
        itself = places == places.unsqueeze(1)
        among = among.masked_fill(~mask | itself, ABSENT)
        among = among.expand(-1, q.shape[1], -1, -1)
        a = torch.cat([among, to_query.transpose(2, 3)], dim=-1).softmax(-1)  # [B, Q, N, N + 1]
        read = a[..., :-1] @ s + a[..., -1:] * q
        s = s.expand(-1, q.shape[1], -1, -1)
        new = self.node(torch.cat([read, s], dim=-1))
        next_s = torch.cat([s, F.leaky_relu(self.norm(new), 0.1)], dim=-1)
        next_q = torch.cat([q, F.leaky_relu(self.norm(from_support), 0.1)], dim=-1)
        return next_s, next_q, a_query.squeeze(2)


class GraphNetwork(Learner):
    """max_way   number of label slots; a task may use fewer
    image_size   height and width of the images
    layers       graph layers, the last one included (the paper: 3)
    width        size of what a layer appends to the nodes (the paper: 48)
    edges        widths of the MLP's hidden layers (the paper: 192, 192, 96, 96)
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 84,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        max_way: int = 5,
        layers: int = 2,
        width: int = 48,
        edges: Sequence[int] = (64, 64, 32, 32),
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        size = self.backbone.out_channels * (image_size // self.backbone.reduction) ** 2 + max_way
        self.max_way, self.attention_layers = max_way, layers
        self.layers = nn.ModuleList()
        for index in range(layers):
            last = index == layers - 1
            self.layers.append(GraphLayer(size, max_way if last else width, edges, last))
            size += width

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: the support nodes `[B, N, D + max_way]`, the queries' label `[B, max_way]`, masks.

        Raises `ValueError` for more classes than `max_way`.
        """
        self.check_way(support)
        labels = support.one_hot(self.max_way)
        present = labels.amax(1)
        return {
            "nodes": torch.cat([support.x, labels], dim=-1),
            "uniform": present / present.sum(1, keepdim=True),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Scores over the slots; the attention of a layer is its edges to the query."""
        uniform = state["uniform"].unsqueeze(1).expand(-1, query.shape[1], -1)
        q = torch.cat([query, uniform], dim=-1).unsqueeze(2)
        s, mask = state["nodes"].unsqueeze(1), state["mask"][:, None, None]
        attention = []
        for layer in self.layers:
            s, q, weights = layer(s, q, mask)
            attention.append(weights)
        logits = q.squeeze(2)[..., : state["class_mask"].shape[1]]
        return Prediction(mask_absent(logits, state["class_mask"]), torch.stack(attention, dim=1))
