"""Which processor cores each of several workers keeps to."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

log = logging.getLogger(__name__)


def threads_each(workers: int) -> int:
    """Threads that each of so many workers has cores for."""
    return max(1, len(_usable()) // workers)


def share(cores: Sequence[int], workers: int, place: int) -> set[int]:
    """Neighbouring cores for the worker at `place`, 0 and up; one that it has not for itself where
    there are more workers than cores."""
    if workers > len(cores):
        return {cores[place % len(cores)]}
    start, end = (len(cores) * at // workers for at in (place, place + 1))
    return set(cores[start:end])


def pin(process: int, workers: int, place: int) -> None:
    """Keep a process that has just begun, and so the threads that it will start, to its share.
    Where the system does not allow that, it runs on all of them."""
    try:
        os.sched_setaffinity(process, share(_usable(), workers, place))
    except OSError as error:
        log.warning("worker %s is not kept to its cores: %s", process, error.strerror or error)


def _usable() -> list[int]:
    return sorted(os.sched_getaffinity(0))
