"""Image augmentation on the training device, vectorised over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Shift images `[M, C, H, W]` by up to `margin` pixels (mirrored border), flip half."""
    count, _, height, width = images.shape
    device = images.device

    def draw(below: int) -> Tensor:
        return torch.randint(below, (count, 1), generator=generator, device=device)

    padded = F.pad(images.float(), (margin,) * 4, mode="reflect").to(images.dtype)
    rows = draw(2 * margin + 1) + torch.arange(height, device=device)
    across = torch.arange(width, device=device).expand(count, -1)
    across = torch.where(draw(2) == 1, across.flip(1), across)
    columns = draw(2 * margin + 1) + across
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2)
