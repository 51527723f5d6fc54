"""Idempotency: an answer is kept with what it tells of, and given again for the same request."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from service.problems import IdempotencyMismatch, RateExceeded
from service.store.database import Database
from service.store.tables import replays

T = TypeVar("T")

#: How long an answer is kept.
KEPT_S = 24 * 3600.0
#: What the answers of one owner may take. The oldest go first, before their day is over: a client
#: that loads images all day goes on, and does not repeat what it asked in the morning.
MOST_BYTES = 128 << 20
#: But none goes as long as its request may be sent again: then the new request is refused.
RETRIED_S = 600.0
#: A row's key, headers and places in the indexes.
_ROW_BYTES = 1 << 10
#: Old answers that go at a time, so that room is seldom made.
_PART = 100


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, as far as it is repeated."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Once:
    """A request's Idempotency-Key, and a hash of all that was asked under it."""

    key: str
    fingerprint: str


def answer_once(
    database: Database,
    owner: str,
    once: Once | None,
    work: Callable[[Connection], T],
    render: Callable[[T], Answer],
    clock: Callable[[], float] = time.time,
) -> Answer:
    """Do `work` and keep its answer in one transaction; or repeat the answer of a former request.

    Raises `IdempotencyMismatch` where the key came with another request, `RateExceeded` where no
    more answers can be kept, and what `work` raises.
    """
    try:
        return _attempt(database, owner, once, work, render, clock)
    except IntegrityError:
        if once is None:
            raise
        # The same key came twice at once, and the other one was first: its answer is there now.
        return _attempt(database, owner, once, work, render, clock)


def _attempt(
    database: Database,
    owner: str,
    once: Once | None,
    work: Callable[[Connection], T],
    render: Callable[[T], Answer],
    clock: Callable[[], float],
) -> Answer:
    with database.write() as connection:
        now = clock()
        if once is not None and (kept := _kept(connection, owner, once, now)):
            return kept
        answer = render(work(connection))
        if once is not None:
            size = len(answer.body) + _ROW_BYTES
            _make_room(connection, owner, size, now)
            connection.execute(
                insert(replays).values(
                    owner=owner,
                    key=once.key,
                    fingerprint=once.fingerprint,
                    status=answer.status,
                    headers=json.dumps(answer.headers),
                    body=answer.body,
                    created_at=now,
                    bytes=size,
                )
            )
        return answer


def _kept(connection: Connection, owner: str, once: Once, now: float) -> Answer | None:
    mine = (replays.c.owner == owner) & (replays.c.key == once.key)
    connection.execute(delete(replays).where(mine, replays.c.created_at <= now - KEPT_S))
    row = connection.execute(select(replays).where(mine)).first()
    if row is None:
        return None
    if row.fingerprint != once.fingerprint:
        raise IdempotencyMismatch(
            "this Idempotency-Key came with another request before; use a new key for a new one"
        )
    headers = json.loads(row.headers) | {"Idempotency-Replayed": "true"}
    return Answer(row.status, row.body, headers)


def _make_room(connection: Connection, owner: str, size: int, now: float) -> None:
    """Forget the owner's oldest answers until `size` more bytes fit. Raises `RateExceeded`."""
    mine, old = replays.c.owner == owner, now - RETRIED_S
    taken = connection.execute(select(func.sum(replays.c.bytes)).where(mine)).scalar_one()
    over = (taken or 0) + size - MOST_BYTES
    columns = replays.c.key, replays.c.created_at, replays.c.bytes
    query = select(*columns).where(mine).order_by(replays.c.created_at).limit(_PART)
    while over > 0 and (oldest := connection.execute(query).all()):
        if oldest[0].created_at > old:
            seconds = max(1, math.ceil(oldest[0].created_at - old))
            raise RateExceeded(
                f"the answers kept for Idempotency-Keys take {MOST_BYTES >> 20} MiB; try again in "
                f"{seconds} s, or without such a key",
                headers={"Retry-After": str(seconds)},
            )
        gone = [row for row in oldest if row.created_at <= old]
        keys = [row.key for row in gone]
        connection.execute(delete(replays).where(mine, replays.c.key.in_(keys)))
        over -= sum(row.bytes for row in gone)


def forget(connection: Connection, owner: str) -> None:
    """All answers of an owner."""
    connection.execute(delete(replays).where(replays.c.owner == owner))


def sweep(connection: Connection, now: float) -> None:
    """Forget what is old."""
    connection.execute(delete(replays).where(replays.c.created_at <= now - KEPT_S))
