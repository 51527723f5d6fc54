"""SNAIL, a simple neural attentive meta-learner: temporal convolutions and causal attention.

Mishra, Rohaninejad, Chen and Abbeel (ICLR 2018). The support examples with their labels, and at the
end a query without, are a sequence; every layer adds channels to it:

    dense block   x -> [x; tanh(F * x) o sigmoid(G * x)], F and G causal convolutions of width 2
                  over times t and t - dilation; a TC block is a row of them, dilations 1, 2, 4 ...
    attention     x -> [x; softmax_causal(q k^T / sqrt(d_k)) v], q, k, v affine in x

Nothing looks ahead, so `adapt` runs over the support examples once and keeps what a next one may
look back at: keys and values, and each dense block's input `dilation` steps ago. `predict` gives
every query that next place, and none sees another. The order of the examples matters.

Where the paper is silent: padding holds no place in the sequence; the labels are
one-hot rows of `max_way` slots; the embedding ends in batch norm, and attention starts as a
similarity of images (see `Attention`). From weights as they come, accuracy stays at chance for
thousands of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models_zoo.backbones.conv4 import Conv4
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, columns, mask_absent
from models_zoo.learner import Learner
from models_zoo.model_based.sequence import pick, places

#: What a label adds to an attention score at first.
LABELLED = 8.0


class DenseBlock(nn.Module):
    """Adds `filters` channels from this step and the one `dilation` steps before."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.now = nn.Linear(inputs, 2 * filters)
        self.before = nn.Linear(inputs, 2 * filters, bias=False)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        """x `[B, T, C]`, the inputs `dilation` steps earlier `[B, T or 1, C]` -> `[B, T, C + D]`.

        Before the start of the sequence lie zeros.
        """
        f, g = (self.now(x) + self.before(earlier)).chunk(2, dim=-1)
        return torch.cat([x, f.tanh() * g.sigmoid()], dim=-1)


class Attention(nn.Module):
    """Adds `value_dim` channels read from the steps up to this one.

    `labels` are the columns of the input that hold them. Queries and keys start from one projection
    of the other columns, but for the first of their numbers, which starts as "has a label": what is
    asked is most like itself, and cannot answer. All of it is free to part from there.
    """

    def __init__(self, inputs: int, key_dim: int, value_dim: int, labels: slice) -> None:
        super().__init__()
        self.query = nn.Linear(inputs, key_dim)
        self.key = nn.Linear(inputs, key_dim)
        self.value = nn.Linear(inputs, value_dim)
        self.scale = 1 / math.sqrt(key_dim)
        labelled = math.sqrt(LABELLED / self.scale)
        with torch.no_grad():
            self.key.weight *= 2
            self.key.weight[:, labels] = 0
            self.key.weight[0] = 0
            self.query.weight.copy_(self.key.weight)
            self.key.weight[0, labels] = self.query.bias[0] = labelled

    def scores(self, x: Tensor, keys: Tensor) -> Tensor:
        """x `[B, T, C]`, keys `[B, N, K]` -> `[B, T, N]`."""
        scores: Tensor = self.scale * (self.query(x) @ keys.mT)
        return scores


class SNAIL(Learner):
    """Blocks in the paper's order: attention, TC, attention, TC, ..., attention, 1x1 -> classes.

    channels, image_size   of the (square) images
    hidden, embedding      width of Conv4 and of the layer after it (paper: 64, 64)
    max_way                label slots
    attention              key and value size of each attention block (paper: as the defaults)
    filters                channels that a dense block adds (paper: 128)
    length                 steps that a TC block looks back over: log2 of it dense blocks. A longer
                           sequence is taken as well; the attention looks back over all of it
    """

    order_dependent = True

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        embedding: int = 64,
        max_way: int = 20,
        attention: Sequence[tuple[int, int]] = ((64, 32), (256, 128), (512, 256)),
        filters: int = 128,
        length: int = 32,
    ) -> None:
        super().__init__()
        self.trunk = Conv4(channels, hidden)
        self.embed = nn.Linear(hidden * (image_size // self.trunk.reduction) ** 2, embedding)
        self.norm = nn.BatchNorm1d(embedding)
        labels = slice(embedding, embedding + max_way)
        width = embedding + max_way
        layers: list[nn.Module] = []
        for number, (key_dim, value_dim) in enumerate(attention):
            for step in range(math.ceil(math.log2(length)) if number else 0):
                layers.append(DenseBlock(width, filters, 2**step))
                width += filters
            layers.append(Attention(width, key_dim, value_dim, labels))
            width += value_dim
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(width, max_way)
        self.max_way, self.attention_layers = max_way, len(attention)
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """Images -> `[M, embedding]`."""
        features: Tensor = self.norm(self.embed(self.trunk(images).flatten(1)))
        return features

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Run over the support examples.

        State: of each layer l, `keys{l}` [B, N, K] and `values{l}` [B, N, V], or `past{l}` [B, C];
        mask [B, N], class_mask [B, way]. Raises `ValueError` for more classes than `max_way`.
        """
        self.check_way(support)
        place = places(support.mask)
        count = support.mask.sum(1, keepdim=True)  # the query's place
        causal = support.mask.unsqueeze(1) & (place.unsqueeze(1) <= place.unsqueeze(2))
        state = {"mask": support.mask, "class_mask": support.class_mask}
        x = torch.cat([support.x, support.one_hot(self.max_way)], dim=-1)
        for number, layer in enumerate(self.layers):
            if isinstance(layer, DenseBlock):
                state[f"past{number}"] = (
                    pick(support.mask, count - layer.dilation, x) @ x
                ).squeeze(1)
                x = layer(x, pick(support.mask, place - layer.dilation, x) @ x)
            elif isinstance(layer, Attention):
                keys, values = layer.key(x), layer.value(x)
                state |= {f"keys{number}": keys, f"values{number}": values}
                weights = layer.scores(x, keys).masked_fill(~causal, ABSENT).softmax(-1)
                x = torch.cat([x, weights @ values], dim=-1)
        return state

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Each query at the next place of the sequence, its label unknown: zeros.

        Task attention is that of the attention blocks over the support examples, without the
        weight that a query has for itself.
        """
        x = torch.cat([query, query.new_zeros(*query.shape[:2], self.max_way or 0)], dim=-1)
        hidden, seen = ~state["mask"].unsqueeze(1), []
        for number, layer in enumerate(self.layers):
            if isinstance(layer, DenseBlock):
                x = layer(x, state[f"past{number}"].unsqueeze(1))
            elif isinstance(layer, Attention):
                others = layer.scores(x, state[f"keys{number}"]).masked_fill(hidden, ABSENT)
                own = layer.scale * (layer.query(x) * layer.key(x)).sum(-1, keepdim=True)
                weights = torch.cat([others, own], dim=-1).softmax(-1)
                read = weights[..., :-1] @ state[f"values{number}"]
                x = torch.cat([x, read + weights[..., -1:] * layer.value(x)], dim=-1)
                seen.append(others.softmax(-1))
        class_mask = state["class_mask"]
        logits = mask_absent(columns(self.output(x), class_mask.shape[1]), class_mask)
        return Prediction(logits, task_attention=torch.stack(seen, 1))
