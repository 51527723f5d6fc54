"""Which processor cores each of several workers keeps to."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


def threads_each(workers: int) -> int:
    """Threads that each of so many workers has cores for."""
    return max(1, len(_usable()) // workers)


def share(cores: Sequence[int], workers: int, place: int) -> set[int]:
    """Neighbours for the worker at `place`, 0 and up; one that it has not for itself where
    there are more workers than cores."""
    if workers > len(cores):
        return {cores[place % len(cores)]}
    start, end = (len(cores) * at // workers for at in (place, place + 1))
    return set(cores[start:end])


@contextmanager
def keeping_to_share(workers: int, place: int) -> Iterator[None]:
    """A process that is started in the block, and so all of its threads, keeps to its share. Where
    the system does not allow that, it runs on all of them."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, share(_usable(), workers, place))
    except OSError as error:
        log.warning("a worker is not kept to its cores: %s", error.strerror or error)
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _usable() -> list[int]:
    """Those that are one core of the processor side by side."""
    return sorted(os.sched_getaffinity(0), key=lambda core: (_first_of_core(core), core))


def _first_of_core(core: int) -> int:
    """Of the threads of its processor core, which systems number in different orders."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/core_cpus_list")
    try:
        return int(re.split("[,-]", path.read_text())[0])
    except (OSError, ValueError):
        return core
