"""A bidirectional LSTM over sequences of unequal length, in operations that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BiLSTM(nn.Module):
    """One LSTM reads the filled front of each sequence, another reads it from its end.

    `pack_padded_sequence` does not export. Instead each direction runs over the whole length, the
    second over the filled front reversed; what follows the front is read after it, by either, and
    so reaches no state that is used.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(inputs, hidden, batch_first=True)
        self.backwards = nn.LSTM(inputs, hidden, batch_first=True)

    def read(self, x: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """x `[B, M, D]`, its first `used` `[B]` places filled -> both hidden states `[B, M, H]`.

        At place i, the first has read 0..i and the second i..used-1. Beyond the filled places the
        states mean nothing.
        """
        places = torch.arange(x.shape[1], device=x.device)
        mirrored = (used.unsqueeze(1) - 1 - places).clamp(min=0).unsqueeze(-1)
        forwards = self.forwards(x)[0]
        backwards = self.backwards(x.gather(1, mirrored.expand_as(x)))[0]
        return forwards, backwards.gather(1, mirrored.expand_as(backwards))
