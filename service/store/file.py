"""SQLite's file: for its owner alone, and noticed where it is deleted or replaced.

What is written to a file that is no longer at its path is lost once the service ends.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL

from service.problems import StoreUnavailable


class File:
    """The file that a `sqlite:///` URL names. Overwriting it in place is not noticed."""

    def __init__(self, url: URL) -> None:
        """Raises `StoreUnavailable` where the URL names none, or has it opened in another way."""
        name = url.database or ""
        if name in ("", ":memory:") or name.startswith("file:") or "uri" in url.query:
            raise StoreUnavailable("the database's URL must name a file: sqlite:////folder/file")
        self._path = Path(name)
        self._found: tuple[int, int] | None = None

    @property
    def missing(self) -> bool:
        """Whether `make` would make it."""
        return not self._path.exists()

    def make(self) -> None:
        """Make the file where it is missing, and remember which it is. Raises `OSError`."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.missing:
            self._path.touch(mode=0o600)
        self._found = self._identity()

    def check(self) -> None:
        """Raises `OSError` where another file, or none, is in the place of the one of `make`."""
        if self._identity() != self._found:
            raise OSError(
                "another file is in the database's place: put the first one back, or start the "
                "service again"
            )

    def _identity(self) -> tuple[int, int]:
        found = os.stat(self._path)
        return found.st_dev, found.st_ino
