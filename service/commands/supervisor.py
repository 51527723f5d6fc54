"""Several worker processes behind one port: uvicorn's supervisor, and metrics kept right."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading

from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.supervisors import Multiprocess

from service.metrics import MULTIPROCESS, REPLACEMENT

log = logging.getLogger(__name__)


def end_with_the_supervisor() -> None:
    """In a worker: stop, as by SIGTERM, once the supervisor is gone. One that was killed could not
    tell its workers, which would hold the port and answer on without anyone to restart them."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal tells all, the supervisor as well

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


class Supervisor(Multiprocess):
    """Starts a dead or hung worker again, and takes what it held out of the gauges.

    SIGTERM, SIGINT and SIGHUP (but under nohup) are passed on, and waited for; a worker that cannot
    start ends them all.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        if sys.platform == "win32":
            super().__init__(config, sockets)
            return
        before = signal.getsignal(signal.SIGHUP)
        super().__init__(config, sockets)
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGHUP, before)

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        os.environ[REPLACEMENT] = "1"  # what is started from here on is one
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            log.warning("worker %s died and is started again", pid)
            mark_process_dead(pid, os.environ[MULTIPROCESS])  # type: ignore[no-untyped-call]

    def handle_hup(self) -> None:
        self.handle_term()

    # To replace or end one worker would have it refuse, while it finishes, what others could take.

    def handle_ttin(self) -> None:
        """The number of workers is a setting."""

    def handle_ttou(self) -> None:
        """The number of workers is a setting."""
