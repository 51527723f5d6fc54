"""What a run keeps of every step beyond TensorBoard's curves: rows of numbers, in one file.

out/history.npz holds two arrays for each name: `NAME` `[T, ...]` and, beside it, `NAME.step` `[T]`.
It is written whole, and before the checkpoint it belongs to; a run that is taken up again drops the
rows of steps that its checkpoint does not know, and so ends with the rows of an undisturbed one.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.checkpoint import CheckpointError, write_atomically

HISTORY = "history.npz"

#: The steps `[T]` and the values `[T, ...]` of one name.
Series = tuple[np.ndarray, np.ndarray]


class History:
    """Rows by name. A row whose length differs from the others' is filled up with NaN."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)

    def add(self, step: int, name: str, row: Tensor) -> None:
        """Keep one row; it stays on its device until the file is written."""
        self.rows[name].append((step, row.detach()))

    def save(self, folder: Path) -> None:
        arrays: dict[str, Any] = {}
        for name, rows in sorted(self.rows.items()):
            kept = [row.float().cpu() for _, row in rows]
            rows[:] = [(step, row) for (step, _), row in zip(rows, kept, strict=True)]
            arrays[name] = stack(kept).numpy()
            arrays[f"{name}.step"] = np.array([step for step, _ in rows], dtype=np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(folder / HISTORY, buffer.getvalue())

    def load(self, folder: Path, until: int) -> None:
        """Take the rows up to step `until` from the folder's file, if there is one."""
        self.rows.clear()
        if (folder / HISTORY).exists():
            for name, (steps, values) in read_history(folder).items():
                rows = [
                    (int(step), torch.as_tensor(row))
                    for step, row in zip(steps, values, strict=True)
                    if step <= until
                ]
                if rows:  # else the name is not known yet
                    self.rows[name] = rows


def stack(rows: list[Tensor]) -> Tensor:
    """Rows `[B_t, ...]` -> `[T, largest B_t, ...]`, NaN where a row is shorter."""
    if rows[0].ndim == 0:
        return torch.stack(rows)
    longest = max(len(row) for row in rows)
    full = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), torch.nan)
    for place, row in zip(full, rows, strict=True):
        place[: len(row)] = row
    return full


def read_history(folder: Path) -> dict[str, Series]:
    """Steps and values by name. Raises `CheckpointError`."""
    path = folder / HISTORY
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {
            name: (arrays[f"{name}.step"], values)
            for name, values in arrays.items()
            if not name.endswith(".step")
        }
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing; is {folder} the folder of a run of `fewshot train`?"
        ) from None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: unreadable ({type(error).__name__})") from None
