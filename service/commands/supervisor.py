"""Several worker processes behind one port: uvicorn's supervisor, made quick, and metrics kept
right."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker

from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.commands.cores import keeping_to_share
from service.metrics import MULTIPROCESS, REPLACEMENT

log = logging.getLogger(__name__)

_TICK_S = 0.1


def heed_the_supervisor() -> None:
    """In a worker whose handlers are set: Ctrl+C counts from here on (`_putting_off_ctrl_c`), and
    it stops, as by SIGTERM, once the supervisor is gone. One that was killed could not tell its
    workers, which would hold the port and answer on without anyone to restart them."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal tells all, the supervisor as well
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


@contextmanager
def _putting_off_ctrl_c() -> Iterator[None]:
    """What is started in the block begins with SIGINT blocked: a terminal sends it to workers as
    well, and one that is still importing would end with a traceback."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # to start it, as the first worker would, unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(code: int | None) -> str:
    """What became of a process, from its exit code: minus a signal's number, or None."""
    if code is None:
        return "hung"
    if code < 0:  # such as SIGKILL where memory has run out
        return f"died ({signal.Signals(-code).name})"
    return f"died (exit code {code})"


class Supervisor(Multiprocess):
    """Starts a dead or hung worker again, and takes what it held out of the gauges.

    SIGTERM, SIGINT and SIGHUP (but under nohup) are passed on, and waited for; a worker that cannot
    start ends them all. Uvicorn's own would wait for as long as a hung worker may take to answer
    (`timeout_worker_healthcheck`) before it sees a signal, or that a worker died; and for ever for
    one that does not end.

    grace_s: how long workers may take to end before they are killed.
    pinned: whether each keeps to cores of its own.
    failed: whether a worker could not start.
    """

    failed = False

    def __init__(
        self, config: Config, sockets: list[socket.socket], grace_s: float, pinned: bool = False
    ) -> None:
        self._grace_s, self._pinned = grace_s, pinned
        if sys.platform == "win32":
            super().__init__(config, sockets)
            return
        before = signal.getsignal(signal.SIGHUP)
        super().__init__(config, sockets)
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGHUP, before)

    def init_processes(self) -> None:
        self.processes = [self._started(place) for place in range(self.processes_num)]

    def _started(self, place: int) -> Process:
        worker = Process(self.config, self.sockets)
        kept = keeping_to_share(self.processes_num, place) if self._pinned else nullcontext()
        with _putting_off_ctrl_c(), kept:
            worker.start()
        return worker

    def keep_subprocess_alive(self) -> None:
        os.environ[REPLACEMENT] = "1"  # what is started from here on is one
        for place, worker in enumerate(self.processes):
            if self._told() or self._lives(worker):
                continue
            code = worker.exitcode
            worker.kill()  # a hung one
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:  # it has said why; so would the next
                self.failed = True
                self.should_exit.set()
                return
            log.warning("worker %s %s and is started again", worker.pid, _end(code))
            mark_process_dead(worker.pid, os.environ[MULTIPROCESS])  # type: ignore[no-untyped-call]
            try:
                self.processes[place] = self._started(place)
            except OSError as error:  # no more processes or memory now; the next look tries again
                log.error("no worker can be started: %s", error)

    def _told(self) -> bool:
        """Whether a signal has come."""
        return self.should_exit.is_set() or bool(self.signal_queue)

    def _lives(self, worker: Process) -> bool:
        """Whether it answers in time; also where something else is more urgent than its silence: a
        signal, or another one's death."""
        others = [other.process for other in self.processes if other is not worker]
        silent = time.monotonic() + self.config.timeout_worker_healthcheck
        try:
            worker.parent_conn.send(b"ping")
            while not worker.parent_conn.poll(_TICK_S):
                if not worker.process.is_alive() or time.monotonic() > silent:
                    return False
                if self._told() or not all(other.is_alive() for other in others):
                    return True
            worker.parent_conn.recv()
        except (OSError, EOFError):
            return False
        return True

    def join_all(self) -> None:
        until = time.monotonic() + self._grace_s
        for worker in self.processes:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.exitcode is None:
                log.warning("worker %s did not end and is killed", worker.pid)
                worker.kill()
                worker.join()

    def handle_hup(self) -> None:
        self.handle_term()

    # To replace or end one worker would have it refuse, while it finishes, what others could take.

    def handle_ttin(self) -> None:
        """The number of workers is a setting."""

    def handle_ttou(self) -> None:
        """The number of workers is a setting."""
