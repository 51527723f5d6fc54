"""Several worker processes behind one port: uvicorn's supervisor, and metrics kept right."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess

from service.metrics import MULTIPROCESS


def end_with_the_supervisor() -> None:
    """In a worker: stop, as by SIGTERM, once the supervisor is gone. One that was killed could not
    tell its workers, which would hold the port and answer on without anyone to restart them."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


class Supervisor(Multiprocess):
    """Starts a dead or hung worker again, and takes what it held out of the gauges; likewise of
    workers that SIGHUP replaces or SIGTTOU ends.

    SIGTERM and SIGINT are passed on, and waited for; a worker that cannot start ends them all.
    """

    def keep_subprocess_alive(self) -> None:
        with self._gauges_kept_right():
            super().keep_subprocess_alive()

    def handle_signals(self) -> None:
        with self._gauges_kept_right():
            super().handle_signals()

    @contextmanager
    def _gauges_kept_right(self) -> Iterator[None]:
        before = {process.pid for process in self.processes}
        yield
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid, os.environ[MULTIPROCESS])  # type: ignore[no-untyped-call]
