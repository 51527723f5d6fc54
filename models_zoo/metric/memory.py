"""The write controller of Memory Matching Networks: Eq. 4 of seed 003, for a batch of tasks.

A memory key is always a weighted sum of support keys, so the memory is carried as those weights
`[B, M, N]`, similarities come from the support keys' Gram matrix, and the keys themselves are one
matrix product at the end: M x N numbers a step instead of M x D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

EMPTY = -1e9

#: weights [B, M, N], squared norms of the keys [B, M], labels [B, M], slots in use [B].
Memory = tuple[Tensor, Tensor, Tensor, Tensor]
#: One support example: its row of the Gram matrix [B, N], its one-hot place [N], its label [B],
#: whether it is real [B].
Example = tuple[Tensor, Tensor, Tensor, Tensor]


def write_memory(keys: Tensor, labels: Tensor, mask: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Write support keys `[B, N, D]` one after another into at most `slots` slots.

    Returns the memory keys `[B, M, D]` and how many of them are filled `[B]`, from the front; the
    others are zero. Masked examples leave the memory as it is. The order of the examples matters,
    as in the paper.
    """
    batch, examples, _ = keys.shape
    # Slots beyond the number of examples stay empty, so training leaves them out.
    exporting = torch.compiler.is_exporting()
    size = slots if exporting else min(slots, examples)
    gram = keys @ keys.transpose(1, 2)
    memory: Memory = (
        keys.new_zeros(batch, size, examples),
        keys.new_zeros(batch, size),
        labels.new_full((batch, size), -1),
        labels.new_zeros(batch),
    )
    places = torch.eye(examples, dtype=keys.dtype, device=keys.device)
    sequence = (gram.transpose(0, 1), places, labels.transpose(0, 1), mask.transpose(0, 1))
    if exporting:  # becomes an ONNX Scan over a dynamic number of examples
        memory, _ = scan(lambda m, x: (write_one(m, x), x[2] + 0), memory, sequence)
    else:
        for example in zip(*sequence, strict=True):
            memory = write_one(memory, example)
    return memory[0] @ keys, memory[3]


def write_one(memory: Memory, example: Example) -> Memory:
    """Time step n of Eq. 4: join the nearest slot if its label is mine, else open a new one."""
    weights, squared, values, used = memory
    row, place, label, real = example
    own = (row * place).sum(1)  # |z_n|^2
    position = torch.arange(weights.shape[1], device=weights.device)
    similarity = (weights @ row.unsqueeze(-1)).squeeze(-1)  # m_i . z_n
    filled = position < used.unsqueeze(1)
    nearest = similarity.masked_fill(~filled, EMPTY).argmax(1, keepdim=True)
    same = values.gather(1, nearest).squeeze(1) == label  # never so for an empty memory
    join = same | (used == weights.shape[1])  # or no slot is left

    target = torch.where(join, nearest.squeeze(1), used)
    here = (position == target.unsqueeze(1)) & real.unsqueeze(1)  # [B, M]
    joined_norm = (squared + 2 * similarity + own.unsqueeze(1)).clamp(min=1e-12).sqrt()
    joined = (weights + place) / joined_norm.unsqueeze(-1)  # Eq. 4
    at_join, at_new = here & join.unsqueeze(1), here & ~join.unsqueeze(1)
    weights = torch.where(at_join.unsqueeze(-1), joined, weights)
    weights = torch.where(at_new.unsqueeze(-1), place, weights)
    squared = torch.where(at_join, 1.0, squared)
    squared = torch.where(at_new, own.unsqueeze(1), squared)
    values = torch.where(at_new, label.unsqueeze(1), values)
    used = used + (real & ~join).to(used.dtype)
    return weights, squared, values, used
