"""A real server process for the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


@dataclass(frozen=True)
class Server:
    """`base` ends without a slash; `log` is the file that standard output and error go to."""

    base: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.base.rsplit(":", 1)[1])


@contextmanager
def serving(
    zoo: Path,
    folder: Path,
    *flags: object,
    ready: bool = True,
    killed: bool = False,
    files: int | None = None,
    **environment: str,
) -> Iterator[Server]:
    """`fewshot serve` on a free port until the block ends; then SIGTERM, which must end it, unless
    the block is to have killed it. `ready`: once it is; else once it has said where it will be.
    `files`: how many it may have open."""
    log = folder / "server.log"
    command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--zoo", str(zoo), "--port", "0"]
    command += [str(flag) for flag in flags]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files} && exec "$0" "$@"', *command]
    variables = os.environ | {"FEWSHOT_THREADS": "1", "FEWSHOT_DEVICE": "cpu"} | environment
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)
        try:
            yield Server(_wait(process, log, ready), log, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code in ((-signal.SIGKILL,) if killed else (0, -signal.SIGTERM)), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


def _wait(process: subprocess.Popen[bytes], log: Path, ready: bool) -> str:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up and process.poll() is None:
        if found := re.search(r'(?:Page\s+|"address": ")(http://[^/]+:\d+)', log.read_text()):
            if not ready:
                return found[1]
            try:
                if httpx.get(found[1] + "/readyz", timeout=5).status_code == 200:
                    return found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def worker_ids(parent: int, count: int, without: int = 0) -> set[int]:
    """The ids of the server's worker processes, once there are `count` of them; they may yet be
    starting."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("the children of a process are read from /proc")
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        found = set()
        for pid in map(int, children.read_text().split()):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in command and pid != without:
                    found.add(pid)
        if len(found) == count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{count} workers did not come up")
