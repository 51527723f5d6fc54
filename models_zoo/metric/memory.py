"""A key-value memory written one example after another, for a batch of tasks.

An example joins the nearest slot if that has its label, else it opens a slot of its own: Eq. 4 of
Cai et al. 2018 (Memory Matching Networks) and, but for what happens when no slot is left, the
life-long memory of Kaiser, Nachum, Roy and Bengio (ICLR 2017).

A memory key is always a weighted sum of support keys, so the memory is carried as those weights
`[B, M, N]`, similarities come from the support keys' Gram matrix, and the keys themselves are one
matrix product at the end: M x N numbers a step instead of M x D.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

EMPTY = -1e9

#: Where an example goes that finds no slot left: into the nearest one all the same (Cai et al.), or
#: in place of the slot that was written longest ago (Kaiser et al.).
WhenFull = Literal["nearest", "oldest"]

#: weights [B, M, N], squared norms of the keys [B, M], labels [B, M], ages in examples [B, M],
#: slots in use [B].
Memory = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
#: One support example: its row of the Gram matrix [B, N], its one-hot place [N], its label [B],
#: whether it is real [B].
Example = tuple[Tensor, Tensor, Tensor, Tensor]


class Written(NamedTuple):
    """A memory of M slots, filled from the front.

    keys [B, M, D] (zero where empty), labels [B, M] (-1 where empty), used [B] = slots filled,
    weights [B, M, N] = how much of each example is in each key.
    """

    keys: Tensor
    labels: Tensor
    used: Tensor
    weights: Tensor


def write_memory(
    keys: Tensor, labels: Tensor, mask: Tensor, slots: int, when_full: WhenFull = "nearest"
) -> Written:
    """Write support keys `[B, N, D]` one after another into at most `slots` slots.

    Masked examples leave the memory as it is. The order of the examples matters, as in the papers.
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
        labels.new_zeros(batch, size),
        labels.new_zeros(batch),
    )
    places = torch.eye(examples, dtype=keys.dtype, device=keys.device)
    sequence = (gram.transpose(0, 1), places, labels.transpose(0, 1), mask.transpose(0, 1))
    if exporting:  # becomes an ONNX Scan over a dynamic number of examples
        memory, _ = scan(lambda m, x: (write_one(m, x, when_full), x[2] + 0), memory, sequence)
    else:
        for example in zip(*sequence, strict=True):
            memory = write_one(memory, example, when_full)
    weights, _, written, _, used = memory
    return Written(weights @ keys, written, used, weights)


def write_one(memory: Memory, example: Example, when_full: WhenFull = "nearest") -> Memory:
    """Time step n of Eq. 4: join the nearest slot if its label is mine, else open a new one."""
    weights, squared, values, ages, used = memory
    row, place, label, real = example
    own = (row * place).sum(1)  # |z_n|^2
    position = torch.arange(weights.shape[1], device=weights.device)
    similarity = (weights @ row.unsqueeze(-1)).squeeze(-1)  # m_i . z_n
    filled = position < used.unsqueeze(1)
    nearest = similarity.masked_fill(~filled, EMPTY).argmax(1, keepdim=True)
    join = values.gather(1, nearest).squeeze(1) == label  # never so for an empty memory
    full = used == weights.shape[1]
    fresh = used
    if when_full == "nearest":
        join = join | full
    else:
        fresh = torch.where(full, ages.argmax(1), used)

    target = torch.where(join, nearest.squeeze(1), fresh)
    here = (position == target.unsqueeze(1)) & real.unsqueeze(1)  # [B, M]
    joined_norm = (squared + 2 * similarity + own.unsqueeze(1)).clamp(min=1e-12).sqrt()
    joined = (weights + place) / joined_norm.unsqueeze(-1)  # Eq. 4
    at_join, at_new = here & join.unsqueeze(1), here & ~join.unsqueeze(1)
    weights = torch.where(at_join.unsqueeze(-1), joined, weights)
    weights = torch.where(at_new.unsqueeze(-1), place, weights)
    squared = torch.where(at_join, 1.0, squared)
    squared = torch.where(at_new, own.unsqueeze(1), squared)
    values = torch.where(at_new, label.unsqueeze(1), values)
    ages = torch.where(here, 0, ages + real.unsqueeze(1).to(ages.dtype))
    used = used + (real & ~join & ~full).to(used.dtype)
    return weights, squared, values, ages, used
