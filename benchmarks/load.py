"""A real server process, and a client that costs next to nothing: ready bytes over open sockets."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PATIENCE_S = 120


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    content_type: str


@contextmanager
def kept_to(cores: set[int] | None) -> Iterator[None]:
    """This thread, and what it starts, on these cores alone; None: wherever they may run."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Run:
    """What some requests took: seconds by the clock, and seconds of the server's CPU time, each."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    def ask(self, request: Request, connection: http.client.HTTPConnection | None = None) -> bytes:
        """One answer's body. Raises `RuntimeError` unless it is a success."""
        connection = connection or self.connect()
        headers = {"Content-Type": request.content_type}
        connection.request("POST", request.path, request.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status}: {body[:500]!r}")
        return body

    def run(self, request: Request, count: int, concurrency: int) -> Run:
        """Send `count` requests over `concurrency` connections, each waiting for its answer."""
        left = iter(range(count))
        lock, faults = threading.Lock(), []
        ready = threading.Barrier(concurrency + 1)

        def work() -> None:
            connection = self.connect()
            connection.connect()
            ready.wait()
            try:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    self.ask(request, connection)
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=work) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        ready.wait()
        start, cpu = time.perf_counter(), self._cpu()
        for thread in threads:
            thread.join()
        seconds, cpu = time.perf_counter() - start, self._cpu() - cpu
        if faults:
            raise faults[0]
        return Run(seconds / count, cpu / count)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)

    def _cpu(self) -> float:
        """Seconds of user and system time so far, of its workers too; nan where there is no
        /proc."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            workers = children.read_text().split() if children.exists() else []
            ticks = sum(map(_ticks, [self.pid, *workers]))
        except OSError:
            return float("nan")
        return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int | str) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def serving(**settings: object) -> Iterator[Server]:
    """`fewshot serve` on a free port with these settings."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--port", "0"]
        chosen = {"data_dir": folder, "log_level": "warning"} | settings
        environment = {f"FEWSHOT_{name.upper()}": str(value) for name, value in chosen.items()}
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=os.environ | environment, stdout=output, stderr=output
            )
        try:
            yield Server(_port(process, log), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_PATIENCE_S)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up and process.poll() is None:
        if found := re.search(r"Page\s+http://[^:]+:(\d+)/", log.read_text()):
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=5)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return int(found[1])
            except OSError:
                pass
            finally:
                connection.close()
        time.sleep(0.05)
    raise RuntimeError(log.read_text())
