"""Idempotency: an answer is kept with what it tells of, and given again for the same request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from service.problems import IdempotencyMismatch
from service.store.database import Database
from service.store.tables import replays

T = TypeVar("T")

#: How long an answer is kept.
KEPT_S = 24 * 3600.0


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

    Raises `IdempotencyMismatch` where the key came with another request, and what `work` raises.
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
            connection.execute(
                insert(replays).values(
                    owner=owner,
                    key=once.key,
                    fingerprint=once.fingerprint,
                    status=answer.status,
                    headers=json.dumps(answer.headers),
                    body=answer.body,
                    created_at=now,
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


def sweep(connection: Connection, now: float) -> None:
    """Forget what is old."""
    connection.execute(delete(replays).where(replays.c.created_at <= now - KEPT_S))
