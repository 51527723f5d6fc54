"""The memory of a Neural Turing Machine, for a batch of tasks (Graves et al. 2014).

A memory is `[B, M, W]`: M slots of width W. Each of H heads weighs the slots, `[B, H, M]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blank(tasks: int, slots: int, width: int, like: Tensor) -> Tensor:
    """A memory that holds next to nothing: 1e-6, since the cosine with zero has no gradient."""
    return torch.full((tasks, slots, width), 1e-6, dtype=like.dtype, device=like.device)


def address(memory: Tensor, keys: Tensor, strength: Tensor) -> Tensor:
    """Content addressing: w(i) = softmax_i(beta cos(k, M(i))).

    Keys k `[B, H, W]`, key strengths beta `[B, H]` -> `[B, H, M]`.
    """
    similarity = F.normalize(keys, dim=-1) @ F.normalize(memory, dim=-1).mT
    return (strength.unsqueeze(-1) * similarity).softmax(-1)


def read(memory: Tensor, weights: Tensor) -> Tensor:
    """r = sum_i w(i) M(i): `[B, H, W]`."""
    return weights @ memory


def erase(memory: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """M(i) [1 - w(i) e], head after head; erase vectors e `[B, H, W]` within 0..1."""
    kept = 1 - weights.unsqueeze(-1) * vectors.unsqueeze(2)  # [B, H, M, W]
    return memory * kept.prod(1)


def add(memory: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """M(i) + w(i) a, summed over the heads; add vectors a `[B, H, W]`."""
    return memory + weights.mT @ vectors
