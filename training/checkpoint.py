"""Checkpoints of a run: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message is for users."""


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also after a crash."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def save(path: Path, content: dict[str, Any]) -> None:
    """Tensors and plain values to a file, atomically."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Raises `CheckpointError`; never executes what the file holds (`weights_only`)."""
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: unreadable checkpoint ({type(error).__name__}); put it back, or begin anew "
            "with --fresh or another --out"
        ) from None
    return content
