"""Rows of support sets and examples within a transaction: found, checked, changed, read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, select, update

from service.problems import (
    RevisionMismatch,
    SetExpired,
    Unauthenticated,
    UnknownExample,
    UnknownLabel,
    UnknownSet,
)
from service.store.records import ExampleRecord, SetRecord
from service.store.tables import api_keys, examples, support_sets

Revisions = frozenset[int] | None  # None: any

#: What is known of an example beside its bytes.
FACTS = [column for column in examples.c if column.name not in ("data", "set_id")]
_SET_ID = re.compile(r"set_[0-9a-f]{24}")
_EXAMPLE_ID = re.compile(r"ex_[0-9a-f]{24}")
#: A use is written down only when it puts the expiry off by this part of the ttl: predicting must
#: not cost a write each time. The part comes on top, so a set lives its whole ttl after any use.
_SLACK, _MOST_SLACK_S = 0.05, 60.0
#: Built once: it is asked in every request about a set, and building costs more than asking.
_ONE_SET = select(support_sets).where(
    support_sets.c.id == bindparam("wanted_id"), support_sets.c.owner == bindparam("wanted_owner")
)
_LOCKED_SET = _ONE_SET.with_for_update()
#: Locked against being revoked before the edit is done, not against other edits.
_OWNER = (
    select(api_keys.c.revoked_at)
    .where(api_keys.c.id == bindparam("wanted_owner"))
    .with_for_update(read=True)
)


def refuse_revoked(connection: Connection, owner: str) -> None:
    """A key is looked up before a request's body comes, which may take minutes: it may have been
    revoked, and its sets deleted, since. Raises `Unauthenticated`."""
    key = connection.execute(_OWNER, {"wanted_owner": owner}).first()
    if key is not None and key.revoked_at is not None:
        raise Unauthenticated("the API key was revoked while the request was on its way")


def find_set(
    connection: Connection,
    owner: str,
    set_id: str,
    clock: Callable[[], float],
    revisions: Revisions = None,
    lock: bool = False,
) -> Row[Any]:
    """The set's row, locked until the transaction ends if asked for, which an edit does; whether it
    has expired is asked once the lock is had, for which it may have waited. Raises `UnknownSet`,
    `SetExpired`, `RevisionMismatch`, and `Unauthenticated` to an edit."""
    if lock:
        refuse_revoked(connection, owner)
    row = None
    if _SET_ID.fullmatch(set_id):
        wanted = {"wanted_id": set_id, "wanted_owner": owner}
        row = connection.execute(_LOCKED_SET if lock else _ONE_SET, wanted).first()
    if row is None:
        raise UnknownSet("there is no such support set")
    if row.expires_at is not None and row.expires_at <= clock():
        raise SetExpired(f"{set_id} was not used for {row.ttl} s and is gone")
    if revisions is not None and row.revision not in revisions:
        raise RevisionMismatch(
            f"{set_id} is at revision {row.revision}; read it again",
            headers={"ETag": f'"{row.revision}"'},
            revision=row.revision,
        )
    return row


def find_example(connection: Connection, set_id: str, example_id: str, *columns: Any) -> Row[Any]:
    """These columns of an example. Raises `UnknownExample`."""
    row = None
    if _EXAMPLE_ID.fullmatch(example_id):
        query = select(*columns).where(examples.c.id == example_id, examples.c.set_id == set_id)
        row = connection.execute(query).first()
    if row is None:
        raise UnknownExample("there is no such example in this support set")
    return row


def bump(
    connection: Connection, row: Row[Any], now: float, values: Mapping[str, Any] | None = None
) -> None:
    """The set's next revision, with these columns changed; it counts as a use."""
    changed = dict(values or {}, revision=row.revision + 1, updated_at=now)
    changed["expires_at"] = expiry(now, changed.get("ttl", row.ttl))
    connection.execute(update(support_sets).where(support_sets.c.id == row.id).values(changed))


def put_off(connection: Connection, set_id: str, now: float, ttl: int | None) -> None:
    """The set is used now, and not changed."""
    values = {"expires_at": expiry(now, ttl)}
    connection.execute(update(support_sets).where(support_sets.c.id == set_id).values(values))


def expiry(now: float, ttl: int | None) -> float | None:
    """When a set goes that is used now."""
    return None if ttl is None else now + ttl + min(_MOST_SLACK_S, _SLACK * ttl)


def classes(connection: Connection, set_id: str) -> list[tuple[str, int]]:
    """Labels, each with its number of examples; sorted here, since databases differ in it."""
    query = (
        select(examples.c.label, func.count())
        .where(examples.c.set_id == set_id)
        .group_by(examples.c.label)
    )
    return sorted((label, count) for label, count in connection.execute(query))


def rename(connection: Connection, set_id: str, labels: Mapping[str, str]) -> bool:
    """In one statement, so that labels can be exchanged; whether any is another now. Raises
    `UnknownLabel`."""
    known = {label for label, _ in classes(connection, set_id)}
    if unknown := [label for label in labels if label not in known]:
        raise UnknownLabel(f"the support set has no class {unknown[0]!r}")
    labels = {old: new for old, new in labels.items() if old != new}
    if labels:
        connection.execute(
            update(examples)
            .where(examples.c.set_id == set_id, examples.c.label.in_(labels))
            .values(label=case(labels, value=examples.c.label, else_=examples.c.label))
        )
    return bool(labels)


def chunks(values: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    """Databases bound the parameters of a statement."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def set_record(row: Row[Any]) -> SetRecord:
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


def example_record(row: Row[Any]) -> ExampleRecord:
    return ExampleRecord(**{column.name: getattr(row, column.name) for column in FACTS})
