"""Memory Matching Networks (Cai et al. 2018). Equation numbers are the paper's.

The support set is written into a key-value memory (Eq. 3, 4); support images are embedded by
reading it (Eq. 5, 6); a bi-LSTM reads its slots and predicts the last convolution of the query
branch (Eq. 7, 8); queries and support images are matched by dot product (Eq. 2, 9).

Where the paper is silent:
- The factorised last convolution is Bertinetto et al.'s: 1x1, a predicted 3x3 per channel, 1x1.
- f and g share their first three blocks, so that the trunk runs once per image.
- Dot products of unnormalised features saturate a softmax: features are L2-normalised
  (`normalize`), and each softmax has a learned temperature.
- More memory slots than a task has images change nothing, so `slots` bounds the memory from above
  and a memory as long as the support set is kept where that is shorter.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.conv4 import Conv4, conv_block
from models_zoo.episode import ABSENT, Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.answers import by_examples
from models_zoo.metric.bilstm import BiLSTM
from models_zoo.metric.memory import write_memory

#: Where the learned temperatures of Eq. 5 and of Eq. 2 and 9 start, for features of length one.
READ_SCALE, MATCH_SCALE = 10.0, 10.0

#: Which features are L2-normalised: none; those written to memory (Eq. 3); or those and both sides
#: of the match (Eq. 6 and 9).
Normalize = Literal["none", "write", "match"]


class ContextualLearner(BiLSTM):
    """Eq. 7 and 8: the used memory slots, read forwards and backwards -> W = T_p h."""

    def __init__(self, key_dim: int, hidden: int, outputs: int) -> None:
        super().__init__(key_dim, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, keys: Tensor, used: Tensor) -> Tensor:
        """Keys `[B, M, D]`, the first `used` `[B]` of them filled -> weights `[B, outputs]`.

        h is the sum of what either direction knows after the last slot that it reads.
        """
        forwards, backwards = self.read(keys, used)
        final = (used - 1).reshape(-1, 1, 1).expand(-1, -1, self.output.in_features)
        weights: Tensor = self.output(forwards.gather(1, final).squeeze(1) + backwards[:, 0])
        return weights


class MMNet(Learner):
    """Any way and shot from one model.

    channels, hidden   input channels and width of the four blocks
    image_size         height and width of the images
    slots              M, memory slots
    key_dim            D_m, size of a memory key (seed: 512)
    lstm               size of each LSTM (seed: 512)
    normalize          which features are L2-normalised: "none", "write" or "match" (`Normalize`)
    """

    order_dependent = True  # the memory is written one example after another

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 84,
        hidden: int = 64,
        slots: int = 128,
        key_dim: int = 512,
        lstm: int = 512,
        normalize: Normalize = "match",
    ) -> None:
        super().__init__()
        self.trunk = Conv4(channels, hidden, (True, True, True))
        self.last_support = conv_block(hidden, hidden, pool=True)
        self.before = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.after = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        side = image_size // 16
        self.dim = hidden * side * side  # D_z
        self.to_key = nn.Linear(self.dim, key_dim, bias=False)  # T_z
        self.from_key = nn.Linear(key_dim, self.dim, bias=False)  # T_c
        self.context = ContextualLearner(key_dim, lstm, hidden * 9)
        start = MATCH_SCALE if normalize == "match" else 1 / math.sqrt(self.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))
        self.log_read_scale = nn.Parameter(torch.tensor(math.log(READ_SCALE)))
        self.slots, self.hidden, self.normalize = slots, hidden, normalize
        self.attention_layers = 1
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """The three blocks that f and g share: `[M, hidden, H/8, W/8]`."""
        features: Tensor = self.trunk(images)
        return features

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Write, read, and predict the query branch's convolution.

        State: embeddings g `[B, N, D_z]`, the predicted kernel `[B, hidden, 9]`, one-hot labels
        `[B, N, way]`, mask `[B, N]`, class_mask `[B, way]`.
        """
        z = self.last_support(support.x.flatten(0, 1)).flatten(1)
        z = z.unflatten(0, support.mask.shape)
        unit = F.normalize(z, dim=-1)
        z = unit if self.normalize == "match" else z
        keys = self.to_key(z if self.normalize == "none" else unit)  # Eq. 3
        written = write_memory(keys, support.labels, support.mask, self.slots)  # Eq. 4
        memory, used = written.keys, written.used

        filled = torch.arange(memory.shape[1], device=memory.device) < used.unsqueeze(1)
        scores = self.log_read_scale.exp() * (keys @ memory.transpose(1, 2))
        scores = scores.masked_fill(~filled.unsqueeze(1), ABSENT)
        read = scores.softmax(-1) @ memory  # Eq. 5
        embeddings = self.from_key(read) + z  # Eq. 6
        kernel = self.context(memory, used)
        return {
            "embeddings": embeddings,
            "kernel": kernel.unflatten(-1, (self.hidden, 9)),
            "labels": support.one_hot(),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """P(y | x, S) = the weights of the support examples labelled y, summed (Eq. 2, 9)."""
        embedded = self.embed_query(query, state["kernel"])
        if self.normalize == "match":
            embedded = F.normalize(embedded, dim=-1)
        scores = self.log_scale.exp() * (embedded @ state["embeddings"].transpose(1, 2))
        return by_examples(scores, state["labels"], state["mask"], state["class_mask"])

    def embed_query(self, query: Tensor, kernel: Tensor) -> Tensor:
        """f(x | W): features `[B, Q, hidden, h, w]`, kernel `[B, hidden, 9]` -> `[B, Q, D_z]`.

        The 3x3 convolution is nine shifted products, since its kernel differs from task to task
        (and ONNX fixes a convolution's groups).
        """
        batch, queries, _, height, width = query.shape
        x = self.before(query.flatten(0, 1)).unflatten(0, (batch, queries))
        padded = F.pad(x, (1, 1, 1, 1))
        weights = kernel[:, None, :, :, None, None]
        x = torch.stack(
            [
                padded[..., i : i + height, j : j + width] * weights[:, :, :, 3 * i + j]
                for i in range(3)
                for j in range(3)
            ]
        ).sum(0)
        x = F.relu(self.norm(self.after(x.flatten(0, 1))))
        return F.max_pool2d(x, 2).flatten(1).unflatten(0, (batch, queries))
