"""A folder through which the workers of one supervisor add up their metrics."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.metrics import MULTIPROCESS

#: A file system in memory, on Linux. Workers keep their metrics in mapped files, and a process that
#: writes to one for which its disk has no room is killed: uploads could fill `TMPDIR` so far.
_MEMORY = Path("/dev/shm")
#: The metrics of many workers, those of dead ones as well.
_ROOM = 32 << 20
_PREFIX = "fewshot-metrics-"
#: Held by all who use the folder; empty until the first does.
_LOCK = "lock"


@contextmanager
def shared_metrics() -> Iterator[None]:
    """In the block, what is started finds the folder."""
    _sweep(_MEMORY)
    place = _MEMORY if _has_room(_MEMORY) else Path(tempfile.gettempdir())
    if place != _MEMORY:
        _sweep(place)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as folder:
        os.environ[MULTIPROCESS] = folder
        held = hold_shared_metrics()
        try:
            yield
        finally:
            del os.environ[MULTIPROCESS]
            os.close(held)


def hold_shared_metrics() -> int:
    """Keep others from removing the folder for as long as the file that is answered is open: until
    this process ends, however that happens, if nobody closes it. Workers outlive a supervisor that
    is killed."""
    held = os.open(Path(os.environ[MULTIPROCESS]) / _LOCK, os.O_RDWR | os.O_CREAT)
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):  # a file system without locks: then nobody removes it, either
            fcntl.flock(held, fcntl.LOCK_SH)
            os.write(held, b"1")
    return held


def _has_room(place: Path) -> bool:
    return os.access(place, os.W_OK | os.X_OK) and shutil.disk_usage(place).free >= _ROOM


def _sweep(place: Path) -> None:
    """Remove what supervisors that were killed left behind: nobody holds it any more."""
    if sys.platform == "win32":  # without such locks
        return
    import fcntl

    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("r+b") as file:  # in use, or not ours
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:  # else it is just being made
                shutil.rmtree(folder)
