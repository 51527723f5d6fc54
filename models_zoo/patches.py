"""A head over vectors on a pretrained encoder, with a map of where a query is like its class."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.pretrained import Pretrained
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner


class PatchAttention(Learner):
    """`head` sees an image's vector; its locations' vectors are for the map alone.

    Query attention, `[B, 1, Q, h, w]`: the cosine similarity of each location to the mean of the
    examples of the class that the head found most probable, softmaxed over the locations at
    `TEMPERATURE`. It tells where the query looks like that class to the encoder; the answer itself
    comes from the whole image's vector.
    """

    #: Of the map's softmax. Similarities of locations differ by tenths.
    TEMPERATURE = 0.1

    def __init__(self, head: Learner, backbone: Pretrained) -> None:
        """Raises `ValueError` where `head` is not over vectors."""
        super().__init__()
        if not head.takes_vectors:
            raise ValueError(f"{type(head).__name__} cannot stand on a pretrained encoder")
        head.backbone = nn.Identity()
        self.head, self.backbone = head, backbone
        self.attention_layers = head.attention_layers

    def encode(self, images: Tensor) -> Tensor:
        """Images -> `[M, 1 + h w, D]`: the image's vector, then its locations'."""
        vectors: Tensor = self.backbone(images)
        return vectors

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """State: the head's, and the class means `[B, way, D]` under the name "class_means"."""
        vectors = support.with_x(support.x[:, :, 0])
        hot = support.one_hot()
        membership = hot / hot.sum(1, keepdim=True).clamp(min=1)
        means = membership.transpose(1, 2) @ vectors.x
        return {**self.head.adapt(vectors), "class_means": means}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """The head's prediction, and the map."""
        found = self.head.predict(state, query[:, :, 0])
        best = found.logits.argmax(-1, keepdim=True)  # [B, Q, 1]
        means = F.normalize(state["class_means"], dim=-1)
        mine = means.gather(1, best.expand(-1, -1, means.shape[-1]))
        likeness = F.normalize(query[:, :, 1:], dim=-1) @ mine.unsqueeze(-1)
        weights = (likeness.squeeze(-1) / self.TEMPERATURE).softmax(-1)
        return replace(
            found, query_attention=weights.unflatten(-1, self.backbone.grid).unsqueeze(1)
        )
