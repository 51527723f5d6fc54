"""The shapes every learner speaks: support sets, adapted tasks and predictions.

B tasks share one batch; tasks of different way and shot are padded and masked, so that one
batch may hold any mixture of them.

    support x   [B, N, ...]   images [B, N, C, H, W] in [0, 1], or their features
    labels      [B, N]        int64, 0..way-1
    mask        [B, N]        bool, False = padding
    class_mask  [B, way]      bool, False = a class slot this task does not use
    query x     [B, Q, ...]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: What a task learned from its support set: named tensors, each `[B, ...]`.
TaskState = dict[str, Tensor]

#: Logit of a class slot that a task does not use. Finite, so that no NaN arises under autocast.
ABSENT = -1e9


@dataclass(frozen=True)
class Support:
    """The labelled examples of B tasks (shapes above).

    The width of `class_mask` is the width of the logits; a task with fewer classes leaves slots
    False.
    """

    x: Tensor
    labels: Tensor
    mask: Tensor
    class_mask: Tensor

    @classmethod
    def of(
        cls, x: Tensor, labels: Tensor, mask: Tensor | None = None, way: int | None = None
    ) -> Support:
        """Build from images or features `[B, N, ...]` and labels `[B, N]`, checking the shapes.

        Raises `ValueError` when the shapes disagree, a label is out of range or a task is empty.
        """
        if x.ndim < 3 or labels.shape != x.shape[:2]:
            raise ValueError(f"support {tuple(x.shape)} and labels {tuple(labels.shape)} disagree")
        mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
        if mask.shape != labels.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool {tuple(labels.shape)}")
        if not mask.any(dim=1).all():
            raise ValueError("a task without a single support example")
        used = labels[mask]
        way = int(used.max()) + 1 if way is None else way
        if int(used.min()) < 0 or int(used.max()) >= way:
            raise ValueError(f"labels must lie in 0..{way - 1}")
        labels = labels.masked_fill(~mask, 0)
        return cls(x, labels, mask, present_classes(labels, mask, way))

    @property
    def way(self) -> int:
        return self.class_mask.shape[1]

    def one_hot(self, way: int | None = None) -> Tensor:
        """Labels as one-hot rows `[B, N, way]` float; padding rows are zero."""
        slots = torch.arange(way or self.way, device=self.labels.device)
        hot = (self.labels.unsqueeze(-1) == slots) & self.mask.unsqueeze(-1)
        return hot.to(self.x.dtype if self.x.is_floating_point() else torch.float32)

    def with_x(self, x: Tensor) -> Support:
        """The same labels and masks around other inputs, e.g. features instead of images."""
        return replace(self, x=x)

    def to(self, device: torch.device | str) -> Support:
        """The same support set on another device."""
        parts = (self.x, self.labels, self.mask, self.class_mask)
        return Support(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class Prediction:
    """What a learner answers.

    logits            [B, Q, way]           `ABSENT` where the task has no such class
    task_attention    [B, L, Q, N]          weights over support examples, per layer; or None
    query_attention   [B, L, Q, h, w]       weights over the query's locations; or None
    support_attention [B, L, Q, N, h, w]    weights over the support images' locations; or None
    uncertainty       [B, Q]                variance with which each class's target, 1 for the
                                            right class and 0 for others, is predicted; or None
    """

    logits: Tensor
    task_attention: Tensor | None = None
    query_attention: Tensor | None = None
    support_attention: Tensor | None = None
    uncertainty: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        return self.logits.softmax(-1)


def present_classes(labels: Tensor, mask: Tensor, way: int) -> Tensor:
    """Which class slots occur among the unmasked labels: `[B, way]` bool."""
    slots = torch.arange(way, device=labels.device)
    return ((labels.unsqueeze(-1) == slots) & mask.unsqueeze(-1)).any(1)


def columns(values: Tensor, count: int) -> Tensor:
    """The first of the last axis, whose slots are as many as a learner has: `[..., slots]` ->
    `[..., count]`. A slice would fix their number at export."""
    return values.index_select(-1, torch.arange(count, device=values.device))


def mask_absent(logits: Tensor, class_mask: Tensor) -> Tensor:
    """Give `ABSENT` to the logits `[B, Q, way]` of classes outside `class_mask` `[B, way]`."""
    return logits.masked_fill(~class_mask.unsqueeze(1), ABSENT)
