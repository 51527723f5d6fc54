"""API keys: made, listed, given a new text, revoked and checked. A key is shown once; only its hash
is kept.

A key reads `fewshot_<id>_<secret>`. The secret is 32 random bytes, so one SHA-256 is enough: there
is nothing to guess, and a slow hash would only slow every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from service.problems import InvalidRequest, UnknownKey
from service.store.database import Database
from service.store.tables import api_keys, support_sets
from service.text import is_plain

_TOKEN = re.compile(r"fewshot_([0-9a-f]{12})_([\w-]{43})", re.ASCII)
#: How long an answer about a key is believed; a revoked key works at most this much longer.
BELIEVED_S = 1.0
_MOST_BELIEVED = 10_000
_MAX_NAME = 200


class Scope(StrEnum):
    """What a key may do; each includes those before it."""

    read = "read"
    write = "write"
    admin = "admin"


#: read: ask, and see one's own sets. write: also make and change them. admin: all of that; kept
#: for routes that would run the service, of which there are none.
_INCLUDES = {
    Scope.read: frozenset({Scope.read}),
    Scope.write: frozenset({Scope.read, Scope.write}),
    Scope.admin: frozenset(Scope),
}


@dataclass(frozen=True)
class Key:
    """A key as it is listed. Limits are None where there is none; times are seconds since 1970."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    rate_per_minute: int | None
    daily_quota: int | None
    created_at: float
    revoked_at: float | None

    def allows(self, scope: Scope) -> bool:
        return any(scope in _INCLUDES[mine] for mine in self.scopes)


class Keys:
    """The keys of one database. Every method blocks and may raise `StoreUnavailable`."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._believed: dict[str, tuple[Key | None, float]] = {}
        self._closed_until = 0.0
        self._open_until = 0.0

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        rate_per_minute: int | None = None,
        daily_quota: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its text, which cannot be had again. Raises `InvalidRequest`."""
        name = name.strip()
        if not name or len(name) > _MAX_NAME or not is_plain(name):
            raise InvalidRequest(f"a key's name is 1 to {_MAX_NAME} printable characters")
        wanted = tuple(dict.fromkeys(scopes))
        if not wanted:
            raise InvalidRequest(f"a key needs a scope: {', '.join(Scope)}")
        if min(rate_per_minute or 1, daily_quota or 1) < 1 or 0 in (rate_per_minute, daily_quota):
            raise InvalidRequest("limits are whole numbers from 1 on")
        secret = secrets.token_urlsafe(32)
        key = Key(
            f"key_{secrets.token_hex(6)}",
            name,
            wanted,
            rate_per_minute,
            daily_quota,
            self._clock(),
            None,
        )
        with self._database.write() as connection:
            connection.execute(
                insert(api_keys).values(
                    id=key.id,
                    name=name,
                    secret_sha256=_hash(secret),
                    scopes=" ".join(wanted),
                    rate_per_minute=rate_per_minute,
                    daily_quota=daily_quota,
                    created_at=key.created_at,
                )
            )
        return key, _text(key.id, secret)

    def list(self) -> list[Key]:
        """Every key, the revoked ones too, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at))
            return [_key(row) for row in rows]

    def sets_of_nobody(self) -> int:
        """Support sets that were made without a key, and that no key reaches."""
        expires = support_sets.c.expires_at
        query = select(func.count()).where(
            support_sets.c.owner == "", expires.is_(None) | (expires > self._clock())
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def rotate(self, key_id: str) -> tuple[Key, str]:
        """The key under a new text, with its sets, scopes and limits; the text before is no longer
        taken. Raises `UnknownKey`, or `InvalidRequest` where it was revoked."""
        secret = secrets.token_urlsafe(32)
        with self._database.write() as connection:
            key = _known(connection, key_id)
            if key.revoked_at is not None:
                raise InvalidRequest(f"{key_id} was revoked, which is for good; make a new key")
            connection.execute(
                update(api_keys).where(api_keys.c.id == key_id).values(secret_sha256=_hash(secret))
            )
        return key, _text(key_id, secret)

    def revoke(self, key_id: str) -> None:
        """Once and for all; revoking again changes nothing. Raises `UnknownKey`."""
        with self._database.write() as connection:
            _known(connection, key_id)
            connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )

    def any(self) -> bool:
        """Whether a key was ever made; revoked ones count, so that revoking the last one does not
        throw the service open."""
        if (known := self.any_known()) is not None:
            return known
        with self._database.read() as connection:
            found = connection.execute(select(api_keys.c.id).limit(1)).first() is not None
        if found:
            self._closed_until = float("inf")  # keys are never deleted
        else:
            self._open_until = time.monotonic() + BELIEVED_S
        return found

    def any_known(self) -> bool | None:
        """What `any` said a moment ago, or None; it does not block."""
        now = time.monotonic()
        if now < self._closed_until:
            return True
        return False if now < self._open_until else None

    def known(self, token: str) -> tuple[bool, Key | None]:
        """(True, answer) where this token was looked up a moment ago; it does not block."""
        key, until = self._believed.get(_hash(token), (None, 0.0))
        return time.monotonic() < until, key

    def find(self, token: str) -> Key | None:
        """The key with this text, unless it is unknown or revoked."""
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            return None
        with self._database.read() as connection:
            query = select(api_keys).where(api_keys.c.id == f"key_{parts[1]}")
            row = connection.execute(query).first()
        # Compared in constant time, and also where there is no such key.
        expected = "0" * 64 if row is None else row.secret_sha256
        matches = hmac.compare_digest(_hash(parts[2]), expected)
        key = _key(row) if row is not None and matches and row.revoked_at is None else None
        if len(self._believed) >= _MOST_BELIEVED:
            self._believed.clear()
        self._believed[_hash(token)] = (key, time.monotonic() + BELIEVED_S)
        return key


def _known(connection: Connection, key_id: str) -> Key:
    """Raises `UnknownKey`. The row is locked until the transaction ends."""
    query = select(api_keys).where(api_keys.c.id == key_id).with_for_update()
    row = None if "\0" in key_id else connection.execute(query).first()
    if row is None:
        raise UnknownKey(f"no key {key_id[:64]!r}; `fewshot keys list` shows them")
    return _key(row)


def _text(key_id: str, secret: str) -> str:
    return f"fewshot_{key_id.removeprefix('key_')}_{secret}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> Key:
    return Key(
        row.id,
        row.name,
        tuple(Scope(scope) for scope in row.scopes.split()),
        row.rate_per_minute,
        row.daily_quota,
        row.created_at,
        row.revoked_at,
    )
