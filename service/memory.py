"""Memory that was freed is given to whoever asks next, whichever thread freed it."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Let all threads allocate from the same few arenas; to be called before they are started.

    With glibc's usual eight per core, images decoded now here, now there leave holes in each, and
    the process grew by a quarter in ten minutes (docs/results/serving.md). MALLOC_ARENA_MAX
    decides where it is set; without effect where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux") or "MALLOC_ARENA_MAX" in os.environ:
        return
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):
        return
