"""`fewshot keys create|list|rotate|revoke`: API keys, straight in the service's database."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.commands.errors import fail, quiet_log, user_errors
from service.commands.paths import check_data_dir
from service.problems import StoreUnavailable, UnknownKey
from service.settings import Settings
from service.store.database import Database, reason_of
from service.store.keys import BELIEVED_S, Key, Keys, Scope


def create_key(
    name: str,
    scopes: str,
    rate_per_minute: int | None,
    daily_quota: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print a new key, this once."""
    with _database(data_dir, make=True) as database:
        keys = Keys(database)
        first = not keys.any()
        key, text = keys.create(name, _scopes(scopes), rate_per_minute, daily_quota)
        lost = keys.sets_of_nobody() if first else 0
    _show(key, text, as_json)
    if lost:
        sys.stderr.write(
            f"{lost} support {'set' if lost == 1 else 'sets'} made before this first key: out of "
            "reach from now on, unless the service runs with --auth off\n"
        )


def list_keys(data_dir: Path | None, as_json: bool) -> None:
    """Every key, without its secret."""
    with _database(data_dir) as database:
        found = Keys(database).list()
    if as_json:
        sys.stdout.write(json.dumps([asdict(key) for key in found], indent=2) + "\n")
        return
    table = Table(title=f"{len(found)} {'key' if len(found) == 1 else 'keys'}")
    table.add_column("Id", no_wrap=True)
    for column in ("Name", "Scopes", "A minute", "A day"):
        table.add_column(column, overflow="fold")
    for column in ("Made", "Revoked"):
        table.add_column(column, no_wrap=True)
    for key in found:
        table.add_row(
            key.id,
            key.name,
            ", ".join(key.scopes),
            *("" if most is None else str(most) for most in (key.rate_per_minute, key.daily_quota)),
            _day(key.created_at),
            "" if key.revoked_at is None else _day(key.revoked_at),
        )
    Console(markup=False, emoji=False).print(table)


def rotate_key(key_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Print the key's new text, this once. Running services refuse the old one within a second."""
    with _database(data_dir) as database:
        key, text = Keys(database).rotate(key_id)
    _show(key, text, as_json)
    sys.stderr.write(f"Running services refuse the old one within {BELIEVED_S:g} s\n")


def revoke_key(key_id: str, delete_sets: bool, data_dir: Path | None) -> None:
    """Running services refuse it within a second; only then are its sets deleted, if asked for."""
    with _database(data_dir) as database:
        Keys(database).revoke(key_id)
        sys.stdout.write(
            f"{key_id} is revoked; running services refuse it within {BELIEVED_S:g} s\n"
        )
        if delete_sets:
            time.sleep(BELIEVED_S)
            sys.stdout.write(f"{_delete_sets(database, key_id)} of its support sets are deleted\n")


def _delete_sets(database: Database, key_id: str) -> int:
    from service.store.records import Limits  # with images and arrays, which no other command needs
    from service.store.sets import SupportSets

    return SupportSets(database, Limits(0, 0, 0)).delete_all(key_id)


def _show(key: Key, text: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(key) | {"key": text}, indent=2) + "\n")
        return
    sys.stdout.write(f"{text}\n")
    sys.stderr.write(
        f"{key.id} ({key.name}) may {', '.join(key.scopes)}. The key above is shown only now; "
        "send it as: Authorization: Bearer KEY\n"
    )


@contextmanager
def _database(data_dir: Path | None, make: bool = False) -> Iterator[Database]:
    """The service's database, named on stderr: keys in another one would change nothing. One that
    is not there is an error unless `make`."""
    with user_errors(), quiet_log():
        settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
        check_data_dir(settings, data_dir is not None, make)
        database = Database(settings.database, threads=1)
        new = database.missing
        if new and not make:
            fail(
                f"there is no database {database.name}; give --data-dir or DATABASE_URL as for "
                "`fewshot serve`"
            )
        try:
            yield database
        except UnknownKey as error:
            fail(f"{error.detail} (database: {database.name})")
        except StoreUnavailable as error:
            reason = reason_of(error.__cause__) if error.__cause__ else error.detail
            fail(f"{reason} (database: {database.name})")
        finally:
            database.close()
    sys.stderr.write(f"database: {database.name}{', new' if new else ''}\n")


def _scopes(text: str) -> list[Scope]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Scope)]
    if unknown:
        fail(f"no scope {unknown[0]!r}; there are {', '.join(Scope)}")
    return [Scope(name) for name in names]


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
