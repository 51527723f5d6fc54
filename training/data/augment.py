"""Image augmentation on the training device, vectorised over the batch of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: How bright red, green and blue look (ITU-R BT.601, as in Pillow's grey).
LUMA = (0.299, 0.587, 0.114)


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


def photo(images: Tensor, generator: torch.Generator, strength: float = 0.4) -> Tensor:
    """`crop_and_flip`, then brightness, contrast and saturation of RGB images `[M, 3, H, W]`, each
    multiplied by a factor in 1 +- `strength`, as Lee et al. (2019, MetaOptNet) do.

    All three are linear in the pixels, so that together they are one matrix and one offset for each
    image; colours are clipped once, at the end.
    """
    pixels = crop_and_flip(images, generator).flatten(2).float()

    def factor() -> Tensor:
        drawn = torch.rand(len(images), 1, 1, generator=generator, device=images.device)
        return 1 + strength * (2 * drawn - 1)

    brightness, contrast, saturation = factor(), factor(), factor()
    luma = pixels.new_tensor(LUMA)
    colour = torch.lerp(luma.expand(3, 3), torch.eye(3, device=images.device), saturation)
    grey = (luma @ pixels.mean(2, keepdim=True)).unsqueeze(1)
    changed = torch.baddbmm(
        (1 - contrast) * brightness * grey, colour * (contrast * brightness), pixels
    )
    return changed.clamp_(0, 255).round_().to(images.dtype).view_as(images)


def affine(
    images: Tensor,
    generator: torch.Generator,
    degrees: float = 10.0,
    shear: float = 0.15,
    scale: float = 0.15,
    shift: float = 2.0,
    share: float = 0.5,
) -> Tensor:
    """Small affine distortions of images `[M, C, H, W]`, as Koch et al. (2015) draw them.

    Turn by up to `degrees`, shear and scale by up to those fractions, shift by up to `shift`
    pixels. What comes in from outside is 0, the background of inverted drawings. Only a `share` of
    the images is distorted, the others are shifted by whole pixels: resampling blurs, and the
    images of a test are sharp.
    """
    count, _, height, width = images.shape

    def draw(most: float) -> Tensor:
        return torch.rand(count, generator=generator, device=images.device).mul(2).sub(1).mul(most)

    angle, slant = draw(degrees).deg2rad(), draw(shear)
    x_scale, y_scale = 1 + draw(scale), 1 + draw(scale)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos * x_scale, (cos * slant - sin) * y_scale, draw(2 * shift / width)], 1),
            torch.stack(
                [sin * x_scale, (sin * slant + cos) * y_scale, draw(2 * shift / height)], 1
            ),
        ],
        1,
    )
    chosen = torch.rand(count, 1, 1, generator=generator, device=images.device) < share
    whole = matrix[:, :, 2:].mul(matrix.new_tensor([[width / 2], [height / 2]])).round()
    still = torch.eye(2, device=images.device).expand(count, 2, 2)
    unblurred = torch.cat([still, whole / whole.new_tensor([[width / 2], [height / 2]])], 2)
    matrix = torch.where(chosen, matrix, unblurred)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, align_corners=False)
    return turned.round_().to(images.dtype)
