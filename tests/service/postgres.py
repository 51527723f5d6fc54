"""A real PostgreSQL server, started by the tests and gone with them.

It listens on a Unix socket in its own folder, so no port is taken. PostgreSQL refuses to run as
root: then it runs as the system's user for it, or as nobody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Set by `.ci/run`: there a missing PostgreSQL is a failure, not a reason to skip.
REQUIRED = "FEWSHOT_TEST_POSTGRES"


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


class Postgres:
    """One server. `stop` and `start` are those of an administrator."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = _unprivileged()
        self._root = Path(tempfile.mkdtemp(prefix="fewshot-pg-", dir="/tmp"))  # sockets: short path
        if self._user is not None:
            shutil.chown(self._root, self._user)
        self._data = self._root / "data"
        self._count = 0
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--no-sync", "--locale=C")  # fmt: skip

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._root}'"
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "120", "-o", options,
                  "-l", self._root / "log", "start")  # fmt: skip

    def stop(self) -> None:
        """At once: connections are cut, as when the machine goes down."""
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "120", "-m", "immediate", "stop")

    def start_if_stopped(self) -> None:
        if not (self._data / "postmaster.pid").exists():
            self.start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Every process of it stands still: connections stay, and nothing is answered."""
        parent = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(parent, signal.SIGSTOP)  # first, so that no child is missed
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        processes = [parent, *map(int, children.split())]
        for process in processes[1:]:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def new_database(self) -> str:
        """URL of an empty database."""
        self._count += 1
        name = f"test{self._count}"
        self._run("createdb", "-h", self._root, "-U", "postgres", name)
        return f"postgresql://postgres@/{name}?host={self._root}"

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        with tempfile.TemporaryFile("w+") as output:  # a pipe would be kept open by the server
            done = subprocess.run(
                command, user=self._user, cwd="/", stdout=output, stderr=output, timeout=180
            )
            output.seek(0)
            assert done.returncode == 0, output.read()


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def start_or_skip() -> Postgres:
    programs = find_programs()
    if programs is None:
        reason = "no PostgreSQL server here (Debian: apt-get install postgresql)"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    server = Postgres(programs)
    server.start()
    return server
