"""SQLite's file: for its owner alone, and noticed where it is deleted or replaced.

What is written to a file that is no longer at its path is lost once the service ends. The newest
writes are in a second file beside it, called as it is and `-wal`.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL

from service.problems import StoreUnavailable

Identity = tuple[int, int] | None


class File:
    """The file that a `sqlite:///` URL names. Overwriting it in place is not noticed."""

    def __init__(self, url: URL) -> None:
        """Raises `StoreUnavailable` where the URL names none, or has it opened in another way."""
        name = url.database or ""
        if name in ("", ":memory:") or name.startswith("file:") or "uri" in url.query:
            raise StoreUnavailable("the database's URL must name a file: sqlite:////folder/file")
        self.path = Path(name).absolute()
        self._newest = self.path.with_name(f"{self.path.name}-wal")
        self._made: Identity = None
        self._opened: Identity = None

    @property
    def missing(self) -> bool:
        """Whether `make` would make it."""
        return not self.path.exists()

    def make(self) -> None:
        """Make the file where it is missing, and remember which it is. Raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.missing:
            self.path.touch(mode=0o600)
        self._made, self._opened = identity(self.path), None

    def opened(self) -> None:
        """Remember the second file too, which is there as long as somebody has the first open."""
        self._opened = identity(self._newest)

    def check(self) -> None:
        """Raises `OSError` where another file, or none, is in the place of the one of `make`."""
        if identity(self.path) != self._made:
            raise OSError(
                "another file, or none, is in the database's place: put the first one back; or "
                "stop the service, delete what ends in -wal and -shm beside it, and start it again"
            )
        if self._opened is not None and identity(self._newest) != self._opened:
            raise OSError(
                "the database's -wal was deleted or replaced: stop the service, which saves what "
                "it holds, and start it again"
            )


def identity(path: Path) -> Identity:
    """Which file this is, whatever it is called; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
