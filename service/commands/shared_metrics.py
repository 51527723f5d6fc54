"""A folder through which the workers of one supervisor add up their metrics."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.metrics import MULTIPROCESS

#: A file system in memory, on Linux. Workers keep their metrics in mapped files, and a process that
#: writes to one for which its disk has no room is killed: uploads could fill `TMPDIR` so far.
_MEMORY = Path("/dev/shm")
_PREFIX = "fewshot-metrics-"
_LOCK = "lock"


@contextmanager
def shared_metrics() -> Iterator[None]:
    """In the block, what is started finds the folder."""
    memory = os.access(_MEMORY, os.W_OK | os.X_OK)
    place = _MEMORY if memory else Path(tempfile.gettempdir())
    _sweep(place)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as folder,
        (Path(folder) / _LOCK).open("wb") as file,
    ):
        _lock(file)
        os.environ[MULTIPROCESS] = folder
        try:
            yield
        finally:
            del os.environ[MULTIPROCESS]


def _sweep(place: Path) -> None:
    """Remove what supervisors that were killed left behind: nobody holds its lock any more."""
    if sys.platform == "win32":  # without such locks
        return
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+b") as file:
                _lock(file)
                shutil.rmtree(folder)
        except OSError:  # in use, somebody else's, or just being made
            pass


def _lock(file: BinaryIO) -> None:
    """Hold `file` until it is closed, as it is at the end of the process, however that ends. Raises
    `OSError` where another process does."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
