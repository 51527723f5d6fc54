"""Support sets and their examples.

Every method blocks, and may raise `StoreUnavailable`. A set is there for its owner alone: anyone
else gets `UnknownSet`. Each edit locks the set's row, checks the wanted revision, and bumps it in
the same transaction, so that concurrent edits follow one another and none is lost.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from service.images import Upload
from service.problems import (
    FileRef,
    NothingAdded,
    RevisionMismatch,
    SetChanged,
    SetExpired,
    SetFull,
    StoreUnavailable,
    TooManySets,
    UnknownExample,
    UnknownLabel,
    UnknownSet,
)
from service.store import replays
from service.store.database import Database
from service.store.records import (
    Added,
    Created,
    Duplicate,
    ExampleRecord,
    Limits,
    NewExample,
    Rejected,
    Result,
    SetRecord,
)
from service.store.replays import Answer, Once, answer_once
from service.store.tables import examples, support_sets
from service.stored import StoredSupport

log = logging.getLogger(__name__)

_SET_ID = re.compile(r"set_[0-9a-f]{24}")
_EXAMPLE_ID = re.compile(r"ex_[0-9a-f]{24}")
#: An expired set's address says so for a week; then it is unknown.
REMEMBERED_S = 7 * 24 * 3600.0
#: A use is written down only when it puts the expiry off by this part of the ttl: predicting must
#: not cost a write each time. The part comes on top, so a set lives its whole ttl after any use.
_SLACK, _MOST_SLACK_S = 0.05, 60.0
#: Examples whose ids, labels, names and digests are kept in memory, each about half a kilobyte.
_MOST_LISTED = 20_000
#: Built once: it is asked in every request about a set, and building costs more than asking.
_ONE_SET = select(support_sets).where(
    support_sets.c.id == bindparam("wanted_id"), support_sets.c.owner == bindparam("wanted_owner")
)
_LOCKED_SET = _ONE_SET.with_for_update()
_FACTS = [column for column in examples.c if column.name not in ("data", "set_id")]

Revisions = frozenset[int] | None  # None: any


class _Listing(NamedTuple):
    """What the examples of a set are at one revision, each by position."""

    revision: int
    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class _Listings:
    """The listings of the sets that were asked last, so that a set is read once for each revision.
    Safe in threads."""

    def __init__(self, most_examples: int) -> None:
        self._most, self._count = most_examples, 0
        self._lock = threading.Lock()
        self._sets: OrderedDict[str, _Listing] = OrderedDict()

    def get(self, set_id: str, revision: int) -> _Listing | None:
        with self._lock:
            found = self._sets.get(set_id)
            if found is None or found.revision != revision:
                return None
            self._sets.move_to_end(set_id)
            return found

    def put(self, set_id: str, listing: _Listing) -> None:
        with self._lock:
            old = self._sets.pop(set_id, None)
            self._sets[set_id] = listing
            self._count += _weight(listing) - (_weight(old) if old else 0)
            while self._count > self._most:
                self._count -= _weight(self._sets.popitem(last=False)[1])


def _weight(listing: _Listing) -> int:
    return 1 + len(listing.ids)


class SupportSets:
    """The support sets of one database."""

    def __init__(
        self, database: Database, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._limits, self.clock = database, limits, clock
        self._listings = _Listings(_MOST_LISTED)

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
            mine = support_sets.c.owner == owner
            count = connection.execute(select(func.count()).select_from(support_sets).where(mine))
            if count.scalar_one() >= self._limits.sets:
                raise TooManySets(
                    f"at most {self._limits.sets} support sets are kept; delete some first",
                    limit=self._limits.sets,
                )
            now, set_id = self.clock(), f"set_{secrets.token_hex(12)}"
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
                    expires_at=_expiry(now, ttl),
                )
            )
            row = self._row(connection, owner, set_id)
            results = self._insert(connection, row, images)
            return self._added(connection, owner, set_id, results)

        return answer_once(self._database, owner, once, work, render, self.clock)

    def get(self, owner: str, set_id: str) -> tuple[SetRecord, list[tuple[str, int]]]:
        """A set, and its classes with their number of examples. Raises `UnknownSet`,
        `SetExpired`."""
        with self._database.read() as connection:
            row = self._row(connection, owner, set_id)
            return _set(row), _classes(connection, set_id)

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
            return [_set(row) for row in connection.execute(query.order_by(*order).limit(limit))]

    def patch(
        self,
        owner: str,
        set_id: str,
        changes: Mapping[str, Any],
        labels: Mapping[str, str],
        revisions: Revisions = None,
    ) -> tuple[SetRecord, list[tuple[str, int]]]:
        """Change `name`, `metadata` or `ttl`, and rename `labels` (old to new). Raises
        `RevisionMismatch`, `UnknownLabel` and as `get`."""
        with self._database.write() as connection:
            row = self._row(connection, owner, set_id, revisions, lock=True)
            now, values = self.clock(), dict(changes)
            if "metadata" in values:
                values["metadata"] = json.dumps(values["metadata"])
            _rename(connection, set_id, labels)
            ttl = values.get("ttl", row.ttl)
            self._bump(connection, row, now, **values, expires_at=_expiry(now, ttl))
            return _set(self._row(connection, owner, set_id)), _classes(connection, set_id)

    def delete(self, owner: str, set_id: str, revisions: Revisions = None) -> None:
        """With all its examples. Raises as `patch`."""
        with self._database.write() as connection:
            self._row(connection, owner, set_id, revisions, lock=True)
            connection.execute(delete(examples).where(examples.c.set_id == set_id))
            connection.execute(delete(support_sets).where(support_sets.c.id == set_id))

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
            results = self._insert(connection, row, images)
            if any(isinstance(result, Created) for result in results):
                now = self.clock()
                self._bump(connection, row, now, expires_at=_expiry(now, row.ttl))
            return self._added(connection, owner, set_id, results)

        return answer_once(self._database, owner, once, work, render, self.clock)

    def examples(
        self, owner: str, set_id: str, limit: int, after: int = -1
    ) -> tuple[SetRecord, list[ExampleRecord]]:
        """The set, and its examples by position, those above `after`. Raises as `get`."""
        query = select(*_FACTS).where(examples.c.set_id == set_id, examples.c.position > after)
        with self._database.read() as connection:
            found = _set(self._row(connection, owner, set_id))
            rows = connection.execute(query.order_by(examples.c.position).limit(limit))
            return found, [_example(row) for row in rows]

    def delete_example(
        self, owner: str, set_id: str, example_id: str, revisions: Revisions = None
    ) -> SetRecord:
        """Raises `UnknownExample`, and as `patch`."""
        with self._database.write() as connection:
            row = self._row(connection, owner, set_id, revisions, lock=True)
            gone = self._example(connection, set_id, example_id, examples.c.bytes)
            connection.execute(delete(examples).where(examples.c.id == example_id))
            now = self.clock()
            self._bump(
                connection,
                row,
                now,
                examples=row.examples - 1,
                bytes=row.bytes - gone.bytes,
                expires_at=_expiry(now, row.ttl),
            )
            return _set(self._row(connection, owner, set_id))

    def image(self, owner: str, set_id: str, example_id: str) -> tuple[ExampleRecord, bytes]:
        """An example and its original bytes. Raises `UnknownExample`, and as `get`."""
        with self._database.read() as connection:
            self._row(connection, owner, set_id)
            row = self._example(connection, set_id, example_id, *_FACTS, examples.c.data)
            return _example(row), row.data

    def stored(self, owner: str, set_id: str) -> StoredSupport:
        """The set as the classifier sees it; counts as a use. Raises as `get`."""
        with self._database.read() as connection:
            row = self._row(connection, owner, set_id)
            listing = self._listing(connection, set_id, row.revision)
        with suppress(StoreUnavailable):  # no reason to refuse an answer that needs no write
            self._touch(row)

        def load(positions: Sequence[int]) -> list[Upload]:
            ids = [listing.ids[position] for position in positions]
            data = self._data(ids)
            if len(data) < len(set(ids)):
                raise SetChanged(f"{set_id} was changed while it was asked; ask again")
            return [
                Upload(FileRef("examples", position, listing.names[position]), data[one])
                for position, one in zip(positions, ids, strict=True)
            ]

        return StoredSupport(f"{set_id}@{row.revision}", listing.labels, listing.digests, load)

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
        """The set's row, locked until the transaction ends if asked for."""
        row = None
        if _SET_ID.fullmatch(set_id):
            wanted = {"wanted_id": set_id, "wanted_owner": owner}
            row = connection.execute(_LOCKED_SET if lock else _ONE_SET, wanted).first()
        if row is None:
            raise UnknownSet("there is no such support set")
        if row.expires_at is not None and row.expires_at <= self.clock():
            raise SetExpired(f"{set_id} was not used for {row.ttl} s and is gone")
        if revisions is not None and row.revision not in revisions:
            raise RevisionMismatch(
                f"{set_id} is at revision {row.revision}; read it again",
                headers={"ETag": f'"{row.revision}"'},
                revision=row.revision,
            )
        return row

    def _listing(self, connection: Connection, set_id: str, revision: int) -> _Listing:
        """The examples of a set whose row is at `revision` in this transaction."""
        found = self._listings.get(set_id, revision)
        if found is None:
            columns = examples.c.id, examples.c.label, examples.c.sha256, examples.c.name
            query = select(*columns).where(examples.c.set_id == set_id)
            rows = connection.execute(query.order_by(examples.c.position)).all()
            found = _Listing(revision, *zip(*rows, strict=True))
            self._listings.put(set_id, found)
        return found

    def _bump(self, connection: Connection, row: Row[Any], now: float, **values: object) -> None:
        changed = {"revision": row.revision + 1, "updated_at": now} | values
        connection.execute(update(support_sets).where(support_sets.c.id == row.id).values(changed))

    def _touch(self, row: Row[Any]) -> None:
        """Put the expiry off, if the last time was long enough ago."""
        now = self.clock()
        due = row.expires_at is not None and now + row.ttl > row.expires_at
        if due:
            with self._database.write() as connection:
                connection.execute(
                    update(support_sets)
                    .where(support_sets.c.id == row.id, support_sets.c.ttl == row.ttl)
                    .values(expires_at=_expiry(now, row.ttl))
                )

    def _insert(
        self, connection: Connection, row: Row[Any], images: Sequence[NewExample]
    ) -> list[Result]:
        """Store the images that are whole, new and within the limits; count them in the set."""
        wanted = {image.sha256 for image in images if image.problem is None}
        query = select(*_FACTS).where(examples.c.set_id == row.id)
        known = {
            one.sha256: _example(one)
            for part in _chunks(sorted(wanted))
            for one in connection.execute(query.where(examples.c.sha256.in_(part)))
        }
        count, size, position = row.examples, row.bytes, row.next_position
        now = self.clock()
        results: list[Result] = []
        for image in images:
            if image.problem is not None:
                results.append(Rejected(image.problem))
                continue
            if image.sha256 in known:
                results.append(Duplicate(known[image.sha256]))
                continue
            length, file = len(image.upload.data), image.upload.ref
            if count >= self._limits.examples or size + length > self._limits.bytes:
                most = f"{self._limits.examples} examples and {self._limits.bytes} bytes"
                results.append(Rejected(SetFull(f"a support set holds at most {most}", file=file)))
                continue
            example = ExampleRecord(
                id=f"ex_{secrets.token_hex(12)}",
                position=position,
                label=image.label,
                name=file.name,
                sha256=image.sha256,
                media_type=image.media_type,
                width=image.width,
                height=image.height,
                bytes=length,
                created_at=now,
            )
            connection.execute(
                insert(examples).values(**vars(example), set_id=row.id, data=image.upload.data)
            )
            known[image.sha256] = example
            count, size, position = count + 1, size + length, position + 1
            results.append(Created(example))
        if any(isinstance(result, Rejected) for result in results) and not any(
            isinstance(result, Created | Duplicate) for result in results
        ):
            raise _nothing_added(results)
        connection.execute(
            update(support_sets)
            .where(support_sets.c.id == row.id)
            .values(examples=count, bytes=size, next_position=position)
        )
        return results

    def _added(
        self, connection: Connection, owner: str, set_id: str, results: list[Result]
    ) -> Added:
        row = self._row(connection, owner, set_id)
        return Added(_set(row), _classes(connection, set_id), results)

    def _example(
        self, connection: Connection, set_id: str, example_id: str, *columns: Any
    ) -> Row[Any]:
        row = None
        if _EXAMPLE_ID.fullmatch(example_id):
            query = select(*columns).where(examples.c.id == example_id, examples.c.set_id == set_id)
            row = connection.execute(query).first()
        if row is None:
            raise UnknownExample("there is no such example in this support set")
        return row

    def _data(self, ids: Sequence[str]) -> dict[str, bytes]:
        query = select(examples.c.id, examples.c.data)
        with self._database.read() as connection:
            return {
                row.id: row.data
                for part in _chunks(list(ids))
                for row in connection.execute(query.where(examples.c.id.in_(part)))
            }


def _nothing_added(results: Sequence[Result]) -> NothingAdded:
    """The first fault's file, and every fault."""
    faults = [result.problem for result in results if isinstance(result, Rejected)]
    detail = faults[0].detail
    if len(faults) > 1:
        detail = f"none of {len(faults)} images could be added; the first: {detail}"
    documents = [fault.document() for fault in faults]
    return NothingAdded(detail, file=faults[0].file, rejected=documents)


def _chunks(values: list[str], size: int = 500) -> list[list[str]]:
    """Databases bound the parameters of a statement."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def _expiry(now: float, ttl: int | None) -> float | None:
    return None if ttl is None else now + ttl + min(_MOST_SLACK_S, _SLACK * ttl)


def _classes(connection: Connection, set_id: str) -> list[tuple[str, int]]:
    """Labels in the order in which they first appear, each with its number of examples."""
    query = (
        select(examples.c.label, func.count())
        .where(examples.c.set_id == set_id)
        .group_by(examples.c.label)
        .order_by(func.min(examples.c.position))
    )
    return [(label, count) for label, count in connection.execute(query)]


def _rename(connection: Connection, set_id: str, labels: Mapping[str, str]) -> None:
    """In one statement, so that labels can be exchanged. Raises `UnknownLabel`."""
    known = {label for label, _ in _classes(connection, set_id)}
    if unknown := [label for label in labels if label not in known]:
        raise UnknownLabel(f"the support set has no class {unknown[0]!r}")
    if labels:
        connection.execute(
            update(examples)
            .where(examples.c.set_id == set_id, examples.c.label.in_(labels))
            .values(label=case(labels, value=examples.c.label, else_=examples.c.label))
        )


def _set(row: Row[Any]) -> SetRecord:
    return SetRecord(
        id=row.id,
        name=row.name,
        metadata=json.loads(row.metadata),
        ttl=row.ttl,
        revision=row.revision,
        examples=row.examples,
        bytes=row.bytes,
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
    )


def _example(row: Row[Any]) -> ExampleRecord:
    return ExampleRecord(**{column.name: getattr(row, column.name) for column in _FACTS})
