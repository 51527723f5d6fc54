"""As many connections as a process may have files open, and no more."""

from __future__ import annotations

import sys
from contextlib import suppress

#: Open files that a process asks for, the most that it may have. Each connection is one.
_WANTED = 1 << 16, 1 << 15, 10_240, 4096
#: Files that are kept for what is no connection: models, the database, large bodies.
_OTHERS = 256
_BACKLOG = 2048

if sys.platform == "win32":  # sockets are no files there

    def raise_file_limit() -> None:
        """Nothing to do."""

    def files() -> int:
        """How many this process may have open."""
        return _WANTED[0]

else:
    import resource

    def raise_file_limit() -> None:
        """Let this process, and those that it starts, open as many files as the system allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for wanted in _WANTED:
            if hard != resource.RLIM_INFINITY:
                wanted = min(hard, wanted)
            if soft == resource.RLIM_INFINITY or soft >= wanted:
                return
            with suppress(OSError, ValueError):  # macOS names no limit and has one
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return

    def files() -> int:
        """How many this process may have open."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return _WANTED[0] if soft == resource.RLIM_INFINITY else soft


def backlog() -> int:
    """How many connections may wait to be accepted, all of them at once."""
    return min(_BACKLOG, files() // 16)


def most_connections() -> int:
    """How many may be open in a process. With more it would come to the end of its files while it
    accepts them, where asyncio writes a traceback for each of the backlog, again every second. It
    accepts a few backlogs before `connection_made` is told of the first of them."""
    return files() - 4 * backlog() - min(_OTHERS, files() // 2)
