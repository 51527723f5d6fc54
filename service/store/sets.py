"""Support sets and their examples.

Every method blocks, and may raise `StoreUnavailable`. A set is there for its owner alone: anyone
else gets `UnknownSet`. Each edit locks the set's row, checks the wanted revision, and bumps it in
the same transaction, so that concurrent edits follow one another and none is lost.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from service.images import Upload
from service.problems import FileRef, SetChanged, TooManySets
from service.store import replays
from service.store.adding import add_images
from service.store.database import Database
from service.store.listings import Listings
from service.store.records import (
    Added,
    Created,
    ExampleRecord,
    Limits,
    NewExample,
    Result,
    SetRecord,
)
from service.store.replays import Answer, Once, answer_once
from service.store.rows import (
    FACTS,
    Revisions,
    bump,
    chunks,
    classes,
    example_record,
    expiry,
    find_example,
    find_set,
    put_off,
    refuse_revoked,
    rename,
    set_record,
)
from service.store.tables import examples, support_sets
from service.stored import StoredSupport

#: An expired set's address says so for a week; then it is unknown.
REMEMBERED_S = 7 * 24 * 3600.0


class SupportSets:
    """The support sets of one database."""

    def __init__(
        self, database: Database, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._limits, self.clock = database, limits, clock
        self._listings = Listings()

    # Sets

    def create(
        self,
        owner: str,
        name: str,
        metadata: Mapping[str, Any],
        ttl: int | None,
        images: Sequence[NewExample],
        render: Callable[[Added], Answer],
        once: Once | None = None,
    ) -> Answer:
        """A new set, with its images if any. Raises `TooManySets`, or `NothingAdded` where images
        were sent and none could be stored."""

        def work(connection: Connection) -> Added:
            refuse_revoked(connection, owner)
            self._make_room(connection, owner)
            now, set_id = self.clock(), f"set_{secrets.token_hex(12)}"  # both may have waited
            connection.execute(
                insert(support_sets).values(
                    id=set_id,
                    owner=owner,
                    name=name,
                    metadata=json.dumps(metadata),
                    ttl=ttl,
                    revision=1,
                    next_position=0,
                    examples=0,
                    bytes=0,
                    created_at=now,
                    updated_at=now,
                    expires_at=expiry(now, ttl),
                )
            )
            row = self._row(connection, owner, set_id)
            results = add_images(connection, row, images, self._limits, self.clock())
            this = update(support_sets).where(support_sets.c.id == set_id)
            connection.execute(this.values(expires_at=expiry(self.clock(), ttl)))
            return self._added(connection, owner, set_id, results)

        return answer_once(self._database, owner, once, work, render, self.clock)

    def get(self, owner: str, set_id: str) -> tuple[SetRecord, list[tuple[str, int]]]:
        """A set, and its classes with their number of examples. Raises `UnknownSet`,
        `SetExpired`."""
        with self._database.read() as connection:
            row = self._row(connection, owner, set_id)
            return set_record(row), classes(connection, set_id)

    def page(
        self, owner: str, limit: int, after: tuple[float, str] | None = None
    ) -> list[SetRecord]:
        """The newest sets; `after` is (created_at, id) of the last one seen."""
        query = select(support_sets).where(
            support_sets.c.owner == owner,
            support_sets.c.expires_at.is_(None) | (support_sets.c.expires_at > self.clock()),
        )
        if after is not None:
            created, set_id = support_sets.c.created_at, support_sets.c.id
            query = query.where(
                (created < after[0]) | ((created == after[0]) & (set_id < after[1]))
            )
        order = support_sets.c.created_at.desc(), support_sets.c.id.desc()
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*order).limit(limit))
            return [set_record(row) for row in rows]

    def patch(
        self,
        owner: str,
        set_id: str,
        changes: Mapping[str, Any],
        labels: Mapping[str, str],
        revisions: Revisions = None,
    ) -> tuple[SetRecord, list[tuple[str, int]]]:
        """Change `name`, `metadata` or `ttl`, and rename `labels` (old to new). What makes no
        difference is a use, and no revision. Raises `RevisionMismatch`, `UnknownLabel` and as
        `get`."""
        with self._database.write() as connection:
            row = self._row(connection, owner, set_id, revisions, lock=True)
            values = dict(changes)
            if "metadata" in values:
                values["metadata"] = json.dumps(values["metadata"])
            renamed = rename(connection, set_id, labels)
            if renamed or any(getattr(row, name) != value for name, value in values.items()):
                bump(connection, row, self.clock(), values)
            else:
                put_off(connection, set_id, self.clock(), row.ttl)
            return set_record(self._row(connection, owner, set_id)), classes(connection, set_id)

    def delete(self, owner: str, set_id: str, revisions: Revisions = None) -> None:
        """With all its examples. Raises as `patch`."""
        with self._database.write() as connection:
            self._row(connection, owner, set_id, revisions, lock=True)
            connection.execute(delete(examples).where(examples.c.set_id == set_id))
            connection.execute(delete(support_sets).where(support_sets.c.id == set_id))

    def delete_all(self, owner: str) -> int:
        """Every set of an owner, and the answers kept for it. Returns how many sets."""
        with self._database.read() as connection:
            query = select(support_sets.c.id).where(support_sets.c.owner == owner)
            mine = connection.execute(query).scalars().all()
        for set_id in mine:  # one at a time: writers wait for no more than one
            with self._database.write() as connection:
                connection.execute(delete(examples).where(examples.c.set_id == set_id))
                connection.execute(delete(support_sets).where(support_sets.c.id == set_id))
        with self._database.write() as connection:
            replays.forget(connection, owner)
        return len(mine)

    # Examples

    def add(
        self,
        owner: str,
        set_id: str,
        images: Sequence[NewExample],
        render: Callable[[Added], Answer],
        revisions: Revisions = None,
        once: Once | None = None,
    ) -> Answer:
        """Store what can be stored. Raises `NothingAdded` where every image was rejected, and as
        `patch`."""

        def work(connection: Connection) -> Added:
            row = self._row(connection, owner, set_id, revisions, lock=True)
            results = add_images(connection, row, images, self._limits, self.clock())
            if any(isinstance(result, Created) for result in results):
                bump(connection, row, self.clock())
            else:  # no change, but a use
                put_off(connection, set_id, self.clock(), row.ttl)
            return self._added(connection, owner, set_id, results)

        return answer_once(self._database, owner, once, work, render, self.clock)

    def examples(
        self, owner: str, set_id: str, limit: int, after: int = -1
    ) -> tuple[SetRecord, list[ExampleRecord]]:
        """The set, and its examples by position, those above `after`. Raises as `get`."""
        query = select(*FACTS).where(examples.c.set_id == set_id, examples.c.position > after)
        with self._database.read() as connection:
            found = set_record(self._row(connection, owner, set_id))
            rows = connection.execute(query.order_by(examples.c.position).limit(limit))
            return found, [example_record(row) for row in rows]

    def delete_example(
        self, owner: str, set_id: str, example_id: str, revisions: Revisions = None
    ) -> SetRecord:
        """Raises `UnknownExample`, and as `patch`."""
        with self._database.write() as connection:
            row = self._row(connection, owner, set_id, revisions, lock=True)
            gone = find_example(connection, set_id, example_id, examples.c.bytes)
            connection.execute(delete(examples).where(examples.c.id == example_id))
            left = {"examples": row.examples - 1, "bytes": row.bytes - gone.bytes}
            bump(connection, row, self.clock(), left)
            return set_record(self._row(connection, owner, set_id))

    def image(self, owner: str, set_id: str, example_id: str) -> tuple[ExampleRecord, bytes]:
        """An example and its original bytes. Raises `UnknownExample`, and as `get`."""
        with self._database.read() as connection:
            self._row(connection, owner, set_id)
            row = find_example(connection, set_id, example_id, *FACTS, examples.c.data)
            return example_record(row), row.data

    def stored(self, owner: str, set_id: str) -> tuple[StoredSupport, bool]:
        """The set as the classifier sees it, and whether this use of it is due to be written down
        by `touch`. Raises as `get`."""
        with self._database.read() as connection:
            row = self._row(connection, owner, set_id)
            listing = self._listings.read(connection, set_id, row.revision)

        def load(positions: Sequence[int]) -> list[Upload]:
            ids = [listing.ids[position] for position in positions]
            data = self._data(ids)
            if len(data) < len(set(ids)):
                raise SetChanged(f"{set_id} was changed while it was asked; ask again")
            return [
                Upload(FileRef("examples", position, listing.names[position]), data[one])
                for position, one in zip(positions, ids, strict=True)
            ]

        key = f"{set_id}@{row.revision}"
        # Once in a while: asking must not cost a write each time.
        due = row.expires_at is not None and self.clock() + row.ttl > row.expires_at
        return StoredSupport(key, listing.labels, listing.digests, load, owner), due

    def touch(self, owner: str, set_id: str) -> None:
        """Put the expiry off, if it has not come meanwhile."""
        with self._database.write() as connection:
            this = (support_sets.c.id == set_id, support_sets.c.owner == owner)
            columns = support_sets.c.ttl, support_sets.c.expires_at
            found = connection.execute(select(*columns).where(*this).with_for_update()).first()
            now = self.clock()  # after waiting for the lock: the set may have gone meanwhile
            if found is not None and found.expires_at is not None and found.expires_at > now:
                put_off(connection, set_id, now, found.ttl)

    def sweep(self) -> int:
        """Delete what has expired: examples at once, sets after a week. Returns how many sets lost
        their examples."""
        now = self.clock()
        full = exists().where(examples.c.set_id == support_sets.c.id)
        query = select(support_sets.c.id).where(support_sets.c.expires_at <= now, full)
        with self._database.read() as connection:
            expired = connection.execute(query).scalars().all()
        for set_id in expired:  # one at a time: writers wait for no more than one
            with self._database.write() as connection:
                # It may have been renewed since: a patch of its ttl, or a use that was under way.
                row = connection.execute(
                    select(support_sets.c.expires_at)
                    .where(support_sets.c.id == set_id)
                    .with_for_update()
                ).first()
                if row is not None and row.expires_at is not None and row.expires_at <= now:
                    connection.execute(delete(examples).where(examples.c.set_id == set_id))
        with self._database.write() as connection:
            forgotten = support_sets.c.expires_at <= now - REMEMBERED_S
            connection.execute(delete(support_sets).where(forgotten))
            replays.sweep(connection, now)
        return len(expired)

    # Parts of the above

    def _row(
        self,
        connection: Connection,
        owner: str,
        set_id: str,
        revisions: Revisions = None,
        lock: bool = False,
    ) -> Row[Any]:
        return find_set(connection, owner, set_id, self.clock, revisions, lock)

    def _make_room(self, connection: Connection, owner: str) -> None:
        """Raises `TooManySets`. Expired sets count only until their room is needed: then they are
        forgotten sooner than they would be."""
        most, mine = self._limits.sets, support_sets.c.owner == owner
        if connection.dialect.name == "postgresql":  # else two at once would both find room
            lock = func.pg_advisory_xact_lock(func.hashtext(owner))
            connection.execute(select(lock))
        count = select(func.count()).select_from(support_sets).where(mine)
        if connection.execute(count).scalar_one() < most:
            return
        expired = support_sets.c.expires_at <= self.clock()
        connection.execute(delete(support_sets).where(mine, expired))
        if connection.execute(count).scalar_one() >= most:
            detail = f"at most {most} support sets are kept; delete some first"
            raise TooManySets(detail, limit=most)

    def _added(
        self, connection: Connection, owner: str, set_id: str, results: list[Result]
    ) -> Added:
        row = self._row(connection, owner, set_id)
        return Added(set_record(row), classes(connection, set_id), results)

    def _data(self, ids: Sequence[str]) -> dict[str, bytes]:
        query = select(examples.c.id, examples.c.data)
        with self._database.read() as connection:
            return {
                row.id: row.data
                for part in chunks(ids)
                for row in connection.execute(query.where(examples.c.id.in_(part)))
            }
