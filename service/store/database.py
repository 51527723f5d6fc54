"""The database: connections, transactions, and faults told as one problem.

Synchronous SQLAlchemy in a bounded pool of threads of its own. SQLite runs in WAL mode with
`synchronous=FULL`: what was acknowledged has been flushed to the disk. There a reader waits for no
writer, so writes have a thread apart, where they wait for one another.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, insert, select
from sqlalchemy import exc as sa
from sqlalchemy.engine import URL, make_url

from service.problems import StoreUnavailable
from service.store import schema
from service.store.file import File
from service.store.tables import probes
from service.store.threads import Threads, in_time, unavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: How long somebody else's lock is waited for; then 503.
_BUSY_S = 10
#: How long a request waits for what it reads, whatever holds the database up; then 503.
ANSWER_S = 5
#: And for what it writes: large uploads take a while on a slow disk, and a lock is given up first,
#: so that most writes that are told to have failed have.
_WRITE_S = 30
#: How long what has begun is waited for in the end: as long as a lock may hold it up.
CLOSE_S = _BUSY_S
_CONNECT_S = 3
#: A host that vanished is given up after some 20 s, whether it owes us an answer (keepalive, whose
#: first probe by default comes after two hours) or has not confirmed what it was sent.
_VANISHED = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
_PROBE_BYTES = 256 << 10
#: What a database that is gone, full, locked or read-only raises; other faults are ours. SQLite's
#: own errors come from where a connection is prepared.
_OUTSIDE = (
    sa.OperationalError,
    sa.InterfaceError,
    sa.InternalError,
    sa.TimeoutError,
    sqlite3.Error,
    OSError,
)


class Database:
    """One database. `open` before use, `close` after; it comes back by itself after a failure."""

    def __init__(self, where: str | Path, threads: int) -> None:
        """`where`: a URL, or the file of a SQLite database, whatever characters are in its path.

        Raises `StoreUnavailable` for a URL that cannot be used at all."""
        self.engine, self._file = _engine(where, threads)
        self.is_sqlite = self._file is not None
        self._writer = self.engine.execution_options(write=True)
        # SQLite snapshots every transaction; PostgreSQL has to be told to.
        self._reader = (
            self.engine
            if self.is_sqlite
            else self.engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self.readers = Threads(threads, "store")
        self.writers = Threads(1, "store-write") if self.is_sqlite else self.readers
        # SQLite takes one writer at a time: other threads queue here rather than poll for its lock.
        self._turn = threading.Lock() if self.is_sqlite else nullcontext()
        self._opening = threading.Lock()
        self._opened = False
        #: The last write failed; `ready` finds out whether the next one would.
        self.faulted = False

    @property
    def name(self) -> str:
        """The file, or PostgreSQL's database and host: without user, password or anything else."""
        url = self.engine.url
        if self._file is not None:
            return str(self._file.path)
        hosts = url.host or url.query.get("host", "localhost")
        host = hosts if isinstance(hosts, str) else ",".join(hosts)
        port = "" if url.port is None else f":{url.port}"
        return f"{url.database or 'the default database'} on {host}{port}"

    @property
    def missing(self) -> bool:
        """Whether `open` would make it: no file is there. PostgreSQL's are made by others."""
        return self._file is not None and self._file.missing

    def open(self) -> None:
        """Bring the tables up to date. Raises `StoreUnavailable`; what comes next tries again."""
        with self._opening:
            if not self._opened:
                with _told():
                    self.engine.dispose()  # what failed before may have opened another file
                    if self._file is not None:
                        self._file.make()
                    try:
                        schema.upgrade(self.engine)
                    except sa.ProgrammingError as error:  # such as no right to make tables
                        raise _unavailable(error) from error
                    if self._file is not None:
                        self._file.opened()
                self._opened = True

    def _check_file(self) -> None:
        if self._file is not None:
            self._file.check()

    def close(self) -> None:
        """Wait for what has begun, up to `CLOSE_S`: a database that hangs must not put off the end
        of the process, which then has to leave the threads that wait for it."""
        closing = threading.Thread(target=self._close, name="store-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("the database did not answer within %g s: closed all the same", CLOSE_S)

    def _close(self) -> None:
        self.readers.close()
        self.writers.close()
        self.engine.dispose()

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function`, which reads, in the database's threads. Raises `StoreUnavailable`, also
        where it takes too long."""
        async with in_time(ANSWER_S):
            return await self.readers.run(partial(function, *args, **kwargs))

    async def run_write(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function`, which writes, where it holds up no reader. Raises `StoreUnavailable`,
        also where it takes too long: it may be done later all the same."""
        async with in_time(_WRITE_S):
            return await self.writers.run(partial(function, *args, **kwargs))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database. Raises `StoreUnavailable`."""
        self.open()
        with _told(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is on the disk once the block is left. Raises `StoreUnavailable`."""
        self.open()
        try:
            with _told(), self._turn:
                self._check_file()
                with self._writer.begin() as connection:
                    yield connection
                self._check_file()
        except StoreUnavailable:
            self.faulted = True
            raise
        self.faulted = False

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the database answers and, after a failed write, takes
        one again: a service that is not ready is sent no writes that could tell."""
        if self.faulted:
            with self.write() as connection:
                probe = {"id": secrets.token_hex(16), "data": bytes(_PROBE_BYTES)}
                connection.execute(insert(probes).values(probe))
            with self.write() as connection:
                connection.execute(probes.delete())
        else:
            with self.read() as connection:
                self._check_file()
                connection.execute(select(1))


@contextmanager
def _told() -> Iterator[None]:
    """Faults of the database as a problem; the reason goes to the log, not to the client."""
    try:
        yield
    except _OUTSIDE as error:
        raise _unavailable(error) from error
    except sa.DatabaseError as error:
        # A damaged file, or a connection that broke under a statement.
        if type(error) is not sa.DatabaseError and not error.connection_invalidated:
            raise
        raise _unavailable(error) from error


def reason_of(error: BaseException) -> str:
    """What the database said, in one line, without the statement and SQLAlchemy's advice."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _unavailable(error: BaseException) -> StoreUnavailable:
    log.warning("the database failed: %s", reason_of(error))
    return unavailable("the database does not answer or takes no writes")


def _engine(where: str | Path, threads: int) -> tuple[Engine, File | None]:
    if isinstance(where, Path):
        return _sqlite(URL.create("sqlite", database=str(where)), threads)
    try:
        url = make_url(where)
        if url.get_backend_name() == "sqlite":
            return _sqlite(url, threads)
        if url.get_backend_name() in ("postgresql", "postgres"):
            if _holds_password(url, where):
                raise StoreUnavailable(
                    "the database's URL: write @, / and ? of a password as %40, %2F and %3F"
                )
            return _postgresql(url, threads), None
    except (sa.ArgumentError, ValueError):  # of a port that is no number
        raise StoreUnavailable("the database's URL cannot be read") from None
    except ModuleNotFoundError as error:
        raise StoreUnavailable(
            f"{error.name} is missing; install with: pip install -c constraints.txt '.[postgres]'"
        ) from None
    raise StoreUnavailable("the database must be sqlite:/// or postgresql://")


def _holds_password(url: URL, text: str) -> bool:
    """Whether a part that is shown, the host or the name, is the end of a password."""
    options = text.partition("?")[2]
    cut = "@" in options and not url.query and "?" not in str(url.password)
    return cut or "@" in f"{url.host}{url.database}"


def _postgresql(url: URL, threads: int) -> Engine:
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo

    try:
        make_conninfo(**dict.fromkeys(url.query, "0"))
    except ProgrammingError as error:  # an option that there is not
        raise StoreUnavailable(f"the database's URL: {error}") from None
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=threads,
        max_overflow=0,
        pool_timeout=_BUSY_S,
        # A connection that died with the server is found before it is used.
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": _CONNECT_S} | _VANISHED,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # As SQLite's `timeout`. Not by an option of the connection: the URL may have some.
        connection.execute(f"SET lock_timeout = '{_BUSY_S}s'")
        connection.commit()

    return engine


def _sqlite(url: URL, threads: int) -> tuple[Engine, File]:
    file = File(url)
    engine = create_engine(
        url.set(drivername="sqlite"),
        pool_size=threads + 1,  # the writer's
        max_overflow=0,
        pool_timeout=_BUSY_S,
        hide_parameters=True,
        connect_args={"timeout": _BUSY_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "do_connect")
    def check(*_: object) -> None:
        file.check()  # SQLite would make a file that is missing, for everybody to read

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        try:
            file.check()  # a connection to another file would still be there when ours is back
        except OSError:
            connection.close()
            raise
        # The driver's own idea of transactions would begin them too late; see `begin`.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: one that read first could not wait for it any more.
        writes = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine, file
