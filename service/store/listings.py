"""What the examples of a set are at one revision, kept in memory for the sets asked last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from sqlalchemy import Connection, select

from service.store.tables import examples

#: Examples whose ids, labels, names and digests are kept, each about half a kilobyte.
_MOST_EXAMPLES = 20_000


class Listing(NamedTuple):
    """The examples of a set at one revision, each by position."""

    revision: int
    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class Listings:
    """Reads a set once for each revision. Safe in threads."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._sets: OrderedDict[str, Listing] = OrderedDict()

    def read(self, connection: Connection, set_id: str, revision: int) -> Listing:
        """The examples of a set whose row is at `revision` in this transaction."""
        found = self._get(set_id, revision)
        if found is None:
            columns = examples.c.id, examples.c.label, examples.c.sha256, examples.c.name
            query = select(*columns).where(examples.c.set_id == set_id)
            rows = connection.execute(query.order_by(examples.c.position)).all()
            found = Listing(revision, *zip(*rows, strict=True))
            self._put(set_id, found)
        return found

    def _get(self, set_id: str, revision: int) -> Listing | None:
        with self._lock:
            found = self._sets.get(set_id)
            if found is None or found.revision != revision:
                return None
            self._sets.move_to_end(set_id)
            return found

    def _put(self, set_id: str, listing: Listing) -> None:
        with self._lock:
            old = self._sets.pop(set_id, None)
            self._sets[set_id] = listing
            self._count += _weight(listing) - (_weight(old) if old else 0)
            while self._count > _MOST_EXAMPLES:
                self._count -= _weight(self._sets.popitem(last=False)[1])


def _weight(listing: Listing) -> int:
    return 1 + len(listing.ids)
