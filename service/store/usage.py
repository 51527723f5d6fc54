"""How much of its daily quota each key has used, counted for all processes together."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.store.database import Database
from service.store.tables import key_usage
from service.store.threads import unavailable

_TRIES = 5
#: A clock that runs ahead must not forget what the day's requests were.
_KEPT_DAYS = 30


class Usage:
    """Requests by key and day. A day is a number of days since 1970, in UTC."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, key_id: str, day: int, wanted: int, quota: int) -> tuple[int, int]:
        """Take up to `wanted` requests out of what is left of `quota`: (taken, left after that).

        Never more than `quota` are given out in a day, to whatever processes. Blocks; raises
        `StoreUnavailable`, also where other processes were first each time.
        """
        row = (key_usage.c.key_id == key_id, key_usage.c.day == day)
        for _ in range(_TRIES):
            try:
                with self._database.write() as connection:
                    query = select(key_usage.c.used).where(*row).with_for_update()
                    used = connection.execute(query).scalar()
                    taken = max(0, min(wanted, quota - (used or 0)))
                    if not taken:
                        return 0, 0
                    if used is None:
                        past = key_usage.c.day < day - _KEPT_DAYS
                        connection.execute(delete(key_usage).where(row[0], past))
                        connection.execute(
                            insert(key_usage).values(key_id=key_id, day=day, used=taken)
                        )
                        return taken, quota - taken
                    # Nobody else may have taken some between the two statements.
                    changed = connection.execute(
                        update(key_usage)
                        .where(*row, key_usage.c.used == used)
                        .values(used=used + taken)
                    )
                    if changed.rowcount == 1:
                        return taken, quota - used - taken
            except IntegrityError:  # another process has made the row
                continue
        raise unavailable("other processes were counting this key's requests")
