"""A shifted image is a window of the mirrored one; a distorted one keeps within its bounds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.augment import LUMA, affine, crop_and_flip, photo

HEIGHT, WIDTH, MARGIN = 7, 11, 4


def picture(channels: int = 3) -> Tensor:
    """Every pixel of every channel differs."""
    values = torch.arange(channels * HEIGHT * WIDTH).remainder(256).to(torch.uint8)
    return values.reshape(channels, HEIGHT, WIDTH)


def windows(image: Tensor, margin: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every window of the image with its mirrored border -> (rows down, columns right, flipped)."""
    padded = np.pad(image.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    found = {}
    for y in range(2 * margin + 1):
        for x in range(2 * margin + 1):
            window = padded[:, y : y + HEIGHT, x : x + WIDTH]
            found[window.tobytes()] = (y, x, False)
            found[np.ascontiguousarray(window[..., ::-1]).tobytes()] = (y, x, True)
    assert len(found) == 2 * (2 * margin + 1) ** 2
    return found


def moves(count: int, margin: int = MARGIN, seed: int = 0) -> list[tuple[int, int, bool]]:
    images = picture().expand(count, -1, -1, -1)
    moved = crop_and_flip(images, torch.Generator().manual_seed(seed), margin)
    assert moved.dtype == torch.uint8
    assert moved.shape == images.shape
    known = windows(picture(), margin)
    return [known[np.ascontiguousarray(image.numpy()).tobytes()] for image in moved]


def test_every_result_is_a_window_and_every_window_occurs() -> None:
    assert len(set(moves(3000))) == 2 * 9 * 9


def test_shifts_and_flips_are_drawn_evenly_and_apart() -> None:
    found = moves(3000, seed=1)
    for axis in (0, 1):
        often = np.bincount([move[axis] for move in found], minlength=9)
        assert np.abs(often - 3000 / 9).max() < 90  # five standard deviations
    flipped = np.array([move[2] for move in found])
    assert abs(flipped.mean() - 0.5) < 0.05
    right = np.array([move[1] for move in found])
    assert abs(np.corrcoef(flipped, right)[0, 1]) < 0.1
    assert abs(np.corrcoef([move[0] for move in found], right)[0, 1]) < 0.1


def test_no_margin_leaves_only_the_flip() -> None:
    assert {move[:2] for move in moves(40, margin=0)} == {(0, 0)}


def test_the_generator_decides() -> None:
    assert moves(20, seed=3) == moves(20, seed=3)
    assert moves(20, seed=3) != moves(20, seed=4)


def bar(side: int = 33) -> Tensor:
    """A soft bright bar, longer than wide, in the middle of a dark square."""
    x = torch.arange(side) - side // 2
    blob = torch.exp(-(x[None] ** 2) / (2 * 5.0**2) - (x[:, None] ** 2) / (2 * 2.0**2))
    return (255 * blob).round().to(torch.uint8)[None]


def moments(image: Tensor) -> tuple[float, float, float, float]:
    """Centre (right, down), direction of the long axis in degrees, and length over the bar's."""
    light = image[0].double()
    light = light / light.sum()
    place = torch.arange(light.shape[0]).double() - light.shape[0] // 2
    right, down = float(light.sum(0) @ place), float(light.sum(1) @ place)
    across, along = place - right, place - down
    xx, yy = light.sum(0) @ across**2, light.sum(1) @ along**2
    xy = along @ light @ across
    angle = 0.5 * torch.atan2(2 * xy, xx - yy).rad2deg()
    return right, down, float(angle), float(xx.sqrt()) / 5.0


def distorted(count: int = 300, **bounds: float) -> np.ndarray:
    still = {"degrees": 0.0, "shear": 0.0, "scale": 0.0, "shift": 0.0, "share": 1.0}
    images = bar().expand(count, -1, -1, -1)
    turned = affine(images, torch.Generator().manual_seed(5), **still | bounds)
    assert turned.dtype == torch.uint8
    assert turned.shape == images.shape
    return np.array([moments(image) for image in turned])


def test_no_distortion_is_the_image() -> None:
    images = torch.randint(256, (4, 3, 10, 14), dtype=torch.uint8)
    still = affine(images, torch.Generator(), degrees=0, shear=0, scale=0, shift=0)
    assert (still.int() - images.int()).abs().max() <= 1


def test_only_a_share_of_the_images_is_distorted_and_the_others_are_shifted_by_whole_pixels() -> (
    None
):
    images = torch.randint(1, 256, (400, 1, 20, 28), dtype=torch.uint8)
    turned = affine(images, torch.Generator().manual_seed(0), share=0.25).int()
    shifts = []
    for before, after in zip(images[:, 0].int(), turned[:, 0], strict=True):
        padded = F.pad(before, (2, 2, 2, 2))
        near = [
            (y - 2, x - 2)
            for y in range(5)
            for x in range(5)
            if (padded[y : y + 20, x : x + 28] - after).abs().max() <= 1
        ]
        shifts.extend(near)
    assert 0.7 < len(shifts) / 400 < 0.8
    assert set(shifts) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_distortions_fill_their_bounds_and_keep_within_them() -> None:
    right, down, angle, length = distorted(shift=3.0).T
    for moved in (right, down):
        assert np.abs(moved).max() < 3.1
        assert moved.min() < -2.8
        assert moved.max() > 2.8
    assert np.abs(angle).max() < 0.5
    assert np.abs(length - 1).max() < 0.03
    assert abs(np.corrcoef(right, down)[0, 1]) < 0.2

    right, down, angle, length = distorted(degrees=20.0).T
    assert np.abs(angle).max() < 20.5
    assert angle.min() < -19
    assert angle.max() > 19
    assert max(np.abs(right).max(), np.abs(down).max()) < 0.1

    right, down, angle, length = distorted(scale=0.2).T
    assert np.abs(angle).max() < 0.5
    assert 1 / 1.25 < length.min() < 0.86
    assert 1.2 < length.max() < 1.28


def test_what_comes_in_from_outside_is_dark() -> None:
    bright = torch.full((50, 1, 12, 12), 255, dtype=torch.uint8)
    moved = affine(bright, torch.Generator().manual_seed(0), shift=5.0, share=1.0)
    assert (moved[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).any(1).float().mean() > 0.5
    assert (moved[:, 0, 6, 6] == 255).all()


def test_colours_change_by_brightness_contrast_and_saturation_one_after_another() -> None:
    images = torch.full((64, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, 0, :4] = 60
    images[:, 2, 4:] = 140
    changed = photo(images, torch.Generator().manual_seed(3)).double()
    generator = torch.Generator().manual_seed(3)
    moved = crop_and_flip(images, generator).double()
    factors = [0.6 + 0.8 * torch.rand(64, 1, 1, generator=generator) for _ in range(3)]
    for image, expected, *by in zip(changed, moved, *factors, strict=True):
        brightness, contrast, saturation = (float(factor) for factor in by)
        grey = sum(w * c for w, c in zip(LUMA, expected, strict=True))
        assert isinstance(grey, Tensor)
        expected = brightness * (contrast * expected + (1 - contrast) * grey.mean())
        grey = sum(w * c for w, c in zip(LUMA, expected, strict=True))
        expected = saturation * expected + (1 - saturation) * grey
        assert (image - expected.clamp(0, 255)).abs().max() <= 0.51  # rounding
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 60
