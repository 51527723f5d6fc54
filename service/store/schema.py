"""The database's tables brought up to date at start, whichever of several processes is first."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy import exc as sa

from service.problems import StoreUnavailable

log = logging.getLogger(__name__)

#: The newest migration. A database that is there already needs no Alembic, which is slow to load.
HEAD = "0003"
MIGRATIONS = Path(__file__).parent / "migrations"
#: Any number that no one else uses for an advisory lock in the same database.
_LOCK = 7_205_514_301
_WAL_TRIES, _WAL_PAUSE_S = 100, 0.1


def upgrade(engine: Engine) -> None:
    """Run the missing migrations in one transaction, one process at a time.

    Raises SQLAlchemy's errors, and `StoreUnavailable` where the database is too new.
    """
    if engine.dialect.name == "sqlite":
        _use_wal(engine)
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if _version(connection) != HEAD:
            _migrate(connection)


def _use_wal(engine: Engine) -> None:
    """The mode is kept in the file. The switch does not wait for other processes by itself."""
    for left in reversed(range(_WAL_TRIES)):
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except engine.dialect.loaded_dbapi.OperationalError as error:
            if not left or "locked" not in str(error):
                raise sa.OperationalError("PRAGMA journal_mode = WAL", None, error) from None
            time.sleep(_WAL_PAUSE_S)
        finally:
            connection.close()


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # it names a migration that is not here
        log.error("the database cannot be brought up to date: %s", error)
        raise StoreUnavailable("the database is that of a newer version of the service") from error
