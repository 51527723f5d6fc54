"""A run's path through the space of weights, small enough to keep: a count sketch of the weights.

Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams" (2002): every weight is
added to one of a few numbers, with a sign, both drawn once for all. The map is linear, so steps and
straight lines stay what they are; with 512 numbers lengths come out right to about 3%.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SIZE = 512
SEED = 1


class Sketch:
    """The same map for all runs whose weights are as many, so that their paths can be compared."""

    def __init__(self, parameters: Sequence[Tensor], size: int = SIZE) -> None:
        self.parameters, self.size = parameters, size
        count = sum(value.numel() for value in parameters)
        generator = torch.Generator().manual_seed(SEED)
        # Places from `size` on count with a minus.
        places = torch.randint(2 * size, (count,), generator=generator, dtype=torch.int32)
        self.places = places.to(parameters[0].device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The parameters as they are now -> `[size]`."""
        flat = torch.cat([value.flatten() for value in self.parameters]).float()
        sums = flat.new_zeros(2 * self.size).index_add_(0, self.places, flat)
        return sums[: self.size] - sums[self.size :]
