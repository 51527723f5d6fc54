"""CutMix (Yun et al. 2019) of queries.

Of the augmentations that Ni et al. 2021 ("Data Augmentation for Meta-Learning") tried on support
images, queries and tasks, it helped most. Here the pieces come from queries of the same task, whose
labels mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """Images `[B, Q, C, H, W]` with a rectangle each of those at `order` `[Q]` of their task.

    share   of the area that is the image's own
    """

    images: Tensor
    order: Tensor
    share: float

    def loss(self, of: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """`of` with the labels `[B, Q]` of the images and of the pieces, by their areas."""
        return self.share * of(labels) + (1 - self.share) * of(labels[:, self.order])


def whole(images: Tensor) -> Mixed:
    """Nothing mixed."""
    return Mixed(images, torch.arange(images.shape[1], device=images.device), 1.0)


def cut_mix(images: Tensor) -> Mixed:
    """One rectangle for the batch, of uniform area before its edges are cut; torch's own dice."""
    height, width = images.shape[-2:]
    area, y, x = torch.rand(3).tolist()
    half = (1 - area) ** 0.5 / 2
    top, bottom = (round(min(max(y + d, 0.0), 1.0) * height) for d in (-half, half))
    left, right = (round(min(max(x + d, 0.0), 1.0) * width) for d in (-half, half))
    order = torch.randperm(images.shape[1]).to(images.device)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[:, order, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(mixed, order, share)
