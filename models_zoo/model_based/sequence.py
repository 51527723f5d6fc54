"""A masked support set as a sequence: its real examples one after another, the padding left out."""

from __future__ import annotations

from torch import Tensor


def places(mask: Tensor) -> Tensor:
    """The place, from 0, of each real example among the real ones: `[B, N]` bool -> `[B, N]`.

    Padding has the place of the real example before it, or -1.
    """
    return mask.long().cumsum(1) - 1


def occasions(labels: Tensor, mask: Tensor) -> Tensor:
    """How many examples of its class were shown before each: `[B, N]` -> `[B, N]`; padding: -1."""
    same = (labels.unsqueeze(2) == labels.unsqueeze(1)) & mask.unsqueeze(1)
    return same.tril(-1).sum(-1).masked_fill(~mask, -1)


def pick(mask: Tensor, wanted: Tensor, like: Tensor) -> Tensor:
    """Which example is the one at a place: mask `[B, N]`, wanted `[B, K]` -> `[B, K, N]`.

    Rows of zeros and a single one, of the type of `like`, so that a product with them picks
    features `[B, N, D]` exactly; rows of zeros for places before the first or after the last.
    """
    chosen = (places(mask).unsqueeze(1) == wanted.unsqueeze(-1)) & mask.unsqueeze(1)
    return chosen.to(like.dtype)
