"""3x3 convolutions of stride 2 whose kernels differ from task to task, written as matrix products.

A grouped convolution cannot have a dynamic number of groups in ONNX, and autograd inside an
exported graph does not exist. So the three linear maps that a convolution and its two gradients
consist of are spelled out over images in channels-last order, `[B, N, H, W, C]`:

    convolve            patches(x) @ kernel
    kernel gradient     patches(x)^T @ d
    input gradient      fold(d @ kernel^T)

`patches` and `fold` are adjoint, each other's derivative, hence right to any order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def half(size: int) -> int:
    """Side of the map that a side of `size` becomes: kernel 3, stride 2, padding 1."""
    return (size + 1) // 2


def patches(x: Tensor) -> Tensor:
    """`[B, N, H, W, C]` -> the 3x3 windows as rows `[B, N*h*w, 9*C]`."""
    recorded = torch.is_grad_enabled() and x.requires_grad
    windows: Tensor = _Patches.apply(x) if recorded else _gather(x)
    return windows


def fold(rows: Tensor, count: int, size: int) -> Tensor:
    """Adjoint of `patches`: `[B, N*h*w, 9*C]` -> sums `[B, count, size, size, C]`."""
    recorded = torch.is_grad_enabled() and rows.requires_grad
    images: Tensor = _Fold.apply(rows, count, size) if recorded else _scatter(rows, count, size)
    return images


def _gather(x: Tensor) -> Tensor:
    h = half(x.shape[2])
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    last = 2 * h - 1
    shifts = [padded[:, :, i : i + last : 2, j : j + last : 2] for i in range(3) for j in range(3)]
    return torch.cat(shifts, dim=-1).flatten(1, 3)


def _scatter(rows: Tensor, count: int, size: int) -> Tensor:
    h = half(size)
    windows = rows.reshape(rows.shape[0], count, h, h, 3, rows.shape[-1] // 3)
    lines = _overlap(windows, 2)[:, :, 1 : size + 1]
    lines = lines.unflatten(-1, (3, rows.shape[-1] // 9))
    return _overlap(lines, 3)[:, :, :, 1 : size + 1]


def _overlap(windows: Tensor, axis: int) -> Tensor:
    """Windows of 3 at stride 2 -> the padded line they came from; the window axis is the last but
    one. Even places are shared by two windows, odd ones belong to one."""
    behind = (0, 0) * (windows.ndim - 2 - axis)
    after, before = (*behind, 0, 1), (*behind, 1, 0)
    first, middle, last = windows.unbind(-2)
    even = F.pad(first, after) + F.pad(last, before)
    return torch.stack([even, F.pad(middle, after)], axis + 1).flatten(axis, axis + 1)


class _Patches(torch.autograd.Function):
    """`patches`, with `fold` for a derivative: far cheaper than autograd through nine slices."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.count, ctx.size = x.shape[1], x.shape[2]
        return _gather(x)

    @staticmethod
    def backward(ctx, d: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return fold(d, ctx.count, ctx.size)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, count: int, size: int) -> Tensor:  # type: ignore[no-untyped-def]
        return _scatter(rows, count, size)

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return patches(d), None, None
