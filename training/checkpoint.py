"""Checkpoints of a run: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message is for users."""


def write_atomically(path: Path, data: bytes) -> None:
    """Raises `CheckpointError`."""
    with _in_place_of(path) as file:
        file.write(data)


def save(path: Path, content: dict[str, Any]) -> None:
    """Tensors and plain values to a file, atomically. Raises `CheckpointError`."""
    with _in_place_of(path) as file:
        torch.save(content, file)


@contextmanager
def _in_place_of(path: Path) -> Iterator[BinaryIO]:
    """Readers see the old file or the new one, also after a crash, and where the disk is full."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises either
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be written: {reason}. What was saved before is kept: make room, then "
            "the same command goes on"
        ) from error


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
