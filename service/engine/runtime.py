"""What runs a zoo entry: the three functions encode, adapt and predict over batches of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models_zoo.cards import Card
from service.engine.episode import Floats, State

__all__ = ["Prediction", "Runtime", "State"]

#: Images encoded at once where nothing else is asked: on a CPU more of them leave its caches.
CPU_CHUNK, GPU_CHUNK = 32, 256


@dataclass(frozen=True)
class Prediction:
    """What `predict` gives: logits `[B, Q, way]`, and attention where asked for and there is some.

    task `[B, L, Q, N]`, query `[B, L, Q, h, w]`, support `[B, L, Q, N, h, w]`; uncertainty `[B, Q]`
    of the models that have it
    """

    logits: Floats
    task_attention: Floats | None = None
    query_attention: Floats | None = None
    support_attention: Floats | None = None
    uncertainty: Floats | None = None


class Runtime(Protocol):
    """One loaded entry. Arrays carry B tasks; shapes are DESIGN.md's.

    joins_tasks  whether several tasks are to be adapted and asked in one pass: so on a GPU; not on
                 a CPU, where it gains little and an answer's last bits would depend on the
                 neighbours (docs/decisions/batching.md)
    """

    card: Card
    joins_tasks: bool

    def encode(self, images: NDArray[np.uint8]) -> Floats:
        """Images `[M, C, H, W]` -> features `[M, ...]` (the images in [0, 1] where none)."""

    def adapt(
        self,
        support: Floats,
        labels: NDArray[np.int64],
        mask: NDArray[np.bool_],
        class_mask: NDArray[np.bool_],
        inner_lr: Floats | None = None,
    ) -> State:
        """Learn B tasks from support `[B, N, ...]`; `inner_lr` `[S]`, one rate per step."""

    def predict(self, state: State, query: Floats, attention: bool = False) -> Prediction:
        """Classify queries `[B, Q, ...]`."""
