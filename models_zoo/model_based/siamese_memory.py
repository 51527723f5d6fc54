"""Siamese with Memory: a life-long memory of keys, values and ages (Cai et al.'s SM).

Kaiser, Nachum, Roy and Bengio, "Learning to Remember Rare Events" (ICLR 2017). The memory holds
keys K of length one, their values V (labels) and ages A. An example q of label v, of length one,
is written at its nearest neighbour n_1 or apart from it:

    V[n_1] = v:   K[n_1] <- (q + K[n_1]) / |q + K[n_1]|
    V[n_1] /= v:  the oldest slot n' (an empty one, while there are any) gets K = q, V = v

The slot written to gets age 0, all others grow older. The answer to a query is the value of its
nearest key, and its confidence a softmax of the cosine similarities times t.

Where this differs from the paper, as the task asks: a memory is a task's own and begins empty; it
is written from the support set and only read by queries; the loss reaches the encoder through the
keys as well as through the query, both branches of a siamese network. Ages never tie, since one
slot is written at a time, so the paper's random number on top is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.backbones import build_backbone
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner
from models_zoo.metric.memory import write_memory


class SiameseMemory(Learner):
    """Nearest neighbour among the keys of a memory.

    channels   of the images
    backbone   the encoder
    slots      M; the paper's memory outlives its tasks and has 8192
    scale      t, inverse temperature of the softmax (the paper's 40)
    """

    order_dependent = True

    def __init__(
        self,
        channels: int = 1,
        backbone: str = "conv4-64",
        slots: int = 256,
        scale: float = 40.0,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels)
        self.slots, self.scale = slots, scale
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`: the whole map, flattened."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Write the support set.

        State: keys `[B, M, D]`, values `[B, M]` (-1 = empty), shares `[B, M, N]` = of which
        examples a key is the sum (rows sum to 1, or 0 where empty), class_mask `[B, way]`.
        """
        keys = F.normalize(support.x, dim=-1)
        written = write_memory(keys, support.labels, support.mask, self.slots, "oldest")
        weights = written.weights
        # Slots that few examples cannot fill are left out, but of a state that is kept: an ONNX
        # graph's has all of them.
        left = 0 if self.training else self.slots - weights.shape[1]
        return {
            "keys": F.pad(written.keys, (0, 0, 0, left)),
            "values": F.pad(written.labels, (0, left), value=-1),
            "shares": F.pad(
                weights / weights.sum(-1, keepdim=True).clamp(min=1e-12), (0, 0, 0, left)
            ),
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """A class's logit is its nearest key's, so that the largest is that of V[n_1].

        A class all of whose keys were overwritten is as far away as can be. Task attention is the
        softmax over the keys, each key's weight shared among the examples in it.
        """
        values, class_mask = state["values"].unsqueeze(1), state["class_mask"]
        similarity = F.normalize(query, dim=-1) @ state["keys"].mT  # [B, Q, M]
        slots = torch.arange(class_mask.shape[1], device=query.device)
        other = values.unsqueeze(2) != slots.unsqueeze(-1)  # [B, 1, way, M]
        nearest = similarity.unsqueeze(2).masked_fill(other, -1.0).amax(-1)
        logits = mask_absent(self.scale * nearest, class_mask)
        scores = (self.scale * similarity).masked_fill(values < 0, ABSENT)
        weights = scores.softmax(-1) @ state["shares"]
        return Prediction(logits, task_attention=weights.unsqueeze(1))
