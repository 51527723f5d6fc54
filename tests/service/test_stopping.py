"""Signals to a real server: it says so, finishes what it began, takes nothing new, and ends."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
import yaml
from uvicorn.config import STARTUP_FAILURE

from service.commands import serve
from service.lifecycle import TAIL_S
from service.metrics import MULTIPROCESS
from service.settings import Settings
from service.store.database import CLOSE_S
from tests.service.asking import SETS, assert_problem, encoded, noise
from tests.service.postgres import Postgres
from tests.service.process import PATIENCE, ROOT, Server, serving, worker_ids
from tests.service.zoo import build_endless


class HalfSent:
    """A prediction whose body has arrived in part."""

    def __init__(self, server: Server) -> None:
        request = httpx.Client().build_request(
            "POST",
            server.base + "/v1/predictions",
            data={"model": "mean", "support_labels": ["a", "b"]},
            files=[("support_images", ("1.png", encoded(noise(i)))) for i in (1, 2)]
            + [("query_images", ("q.png", encoded(noise(3))))],
        )
        body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self._rest = body[-100:]
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        self._socket.sendall(f"POST /v1/predictions HTTP/1.1\r\n{head}\r\n".encode() + body[:-100])

    def finish(self) -> None:
        self._socket.sendall(self._rest)

    def answer(self) -> str:
        """Everything until the server hangs up."""
        with self._socket:
            parts = iter(lambda: self._socket.recv(65_536), b"")
            return b"".join(parts).decode()


def stop(server: Server, number: int = signal.SIGTERM) -> None:
    """Signal it, and wait until /readyz says so: 200 may still come before the signal does."""
    server.process.send_signal(number)
    give_up = time.monotonic() + PATIENCE
    while (answer := httpx.get(server.base + "/readyz", timeout=PATIENCE)).status_code == 200:
        assert time.monotonic() < give_up
    assert_problem(answer, 503, "not-ready")


@contextmanager
def hangups(handled: signal.Handlers) -> Iterator[None]:
    """What processes inherit for SIGHUP: nohup, under which the tests may run, ignores it."""
    before = signal.signal(signal.SIGHUP, handled)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def begun(server: Server) -> None:
    """Wait until the server has seen the half-sent request."""
    give_up = time.monotonic() + PATIENCE
    while not busy(server):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def busy(server: Server) -> bool:
    metrics = httpx.get(server.base + "/metrics", timeout=PATIENCE).text
    return "fewshot_http_requests_in_progress 1.0" in metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_begun_is_finished_and_nothing_new_is_taken(
    zoo: Path, tmp_path: Path, workers: int, number: int
) -> None:
    flags = ("--workers", workers, "--shutdown-s", 60)
    with hangups(signal.SIG_DFL), serving(zoo, tmp_path, *flags) as server:
        request = HalfSent(server)
        begun(server)
        stop(server, number)
        if number == signal.SIGHUP:  # as a shell passes it on
            stop(server, number)
        refused = httpx.post(
            server.base + "/v1/predictions", files={"x": b"y" * 100_000}, timeout=PATIENCE
        )
        assert_problem(refused, 503, "not-ready")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(server.base + "/livez", timeout=PATIENCE).status_code == 200
        assert server.process.poll() is None
        request.finish()
        assert '"classes":["a","b"]' in request.answer()
        server.process.wait(PATIENCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_under_nohup_a_closed_terminal_does_not_end_it(
    zoo: Path, tmp_path: Path, workers: int
) -> None:
    with hangups(signal.SIG_IGN), serving(zoo, tmp_path, "--workers", workers) as server:
        server.process.send_signal(signal.SIGHUP)
        for _ in range(20):  # a supervisor looks every half a second
            assert httpx.get(server.base + "/readyz", timeout=PATIENCE).status_code == 200
            time.sleep(0.1)


def test_it_ends_within_the_grace_period_whatever_runs(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--shutdown-s", 6) as server:
        request = HalfSent(server)
        begun(server)
        stop(server)
        assert server.process.wait(PATIENCE) is not None
        answer = request.answer()
        assert answer.startswith("HTTP/1.1 503")
        assert "urn:fewshot:problem:not-ready" in answer


def test_a_client_that_does_not_read_does_not_double_the_grace_period(
    zoo: Path, tmp_path: Path
) -> None:
    get = b"GET /static/swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        serving(zoo, tmp_path, "--shutdown-s", 10) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as deaf,
    ):
        for _ in range(40):  # 70 MB: more than both sides' buffers take
            deaf.sendall(get)
            stuck = time.monotonic() + 2
            while busy(server) and time.monotonic() < stuck:
                time.sleep(0.02)
            if time.monotonic() >= stuck:
                break
        begun(server)
        start = time.monotonic()
        stop(server)
        server.process.wait(PATIENCE)
        assert 10 <= time.monotonic() - start < 10 + TAIL_S + 7  # 20 s where it doubles


def test_ctrl_c_leaves_running_requests_the_whole_grace_period(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--shutdown-s", 60) as server:
        request = HalfSent(server)
        begun(server)
        stop(server, signal.SIGINT)
        time.sleep(TAIL_S + 2)
        request.finish()
        assert '"classes":["a","b"]' in request.answer()
        assert server.process.wait(PATIENCE) == 0


@contextmanager
def as_process_1() -> Iterator[None]:
    """What is started in the block ignores a SIGTERM that it does not handle, as process 1 of a
    container does."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)]
)
def test_work_that_nothing_can_stop_does_not_put_off_the_end(
    tmp_path: Path, number: int, workers: int
) -> None:
    zoo = build_endless(tmp_path / "zoo")
    flags = ("--workers", workers, "--shutdown-s", 1)
    with as_process_1(), serving(zoo, tmp_path, *flags) as server:
        image = {"name": "images", "shape": [1, 1, 16, 16], "datatype": "FP32", "data": [0] * 256}
        asked = threading.Thread(
            target=httpx.post,
            args=(f"{server.base}/v2/models/endless.encode/infer",),
            kwargs={"json": {"inputs": [image]}, "timeout": PATIENCE},
        )
        asked.start()
        begun(server)
        processes = [server.process.pid]
        if workers > 1:  # Ctrl+C is for all processes of a terminal
            processes += worker_ids(server.process.pid, workers)
        start = time.monotonic()
        for process in processes:
            os.kill(process, number)
        try:
            assert server.process.wait(PATIENCE) == 0
            assert time.monotonic() - start < 1 + TAIL_S + 10
        finally:  # nothing else would end a worker that is left over
            for process in processes[1:]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        asked.join()


def test_compose_waits_for_longer_than_the_service_takes() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    grace = Settings.model_fields["shutdown_s"].default
    for name in ("fewshot", "fewshot-gpu"):
        waits = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert waits > grace + TAIL_S + CLOSE_S


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_database_that_hangs_does_not_put_off_the_end(
    zoo: Path, tmp_path: Path, postgres: Postgres, number: int, workers: int
) -> None:
    flags = ("--workers", workers, "--shutdown-s", 1)
    with serving(zoo, tmp_path, *flags, DATABASE_URL=postgres.new_database()) as server:
        processes = [server.process.pid]
        if number == signal.SIGINT:  # Ctrl+C is for all processes of a terminal
            processes += worker_ids(server.process.pid, workers)
        with postgres.hung():
            for _ in range(2 * workers):  # so that threads of every worker hang
                answer = httpx.get(server.base + SETS, timeout=PATIENCE)
                assert_problem(answer, 503, "store-unavailable")
            start = time.monotonic()
            for process in processes:
                os.kill(process, number)
            server.process.wait(PATIENCE)
            assert time.monotonic() - start < 1 + TAIL_S + CLOSE_S + 5


def test_a_write_that_has_begun_is_finished_before_the_end(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "fewshot.sqlite3"
    with serving(zoo, tmp_path, "--data-dir", tmp_path, "--shutdown-s", 6) as server:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            asked = threading.Thread(
                target=httpx.post,
                args=(server.base + SETS,),
                kwargs={"files": {"name": (None, "late")}, "timeout": PATIENCE},
            )
            asked.start()
            begun(server)
            stop(server)
            asked.join()  # it is told after six seconds that the service stops
            assert server.process.poll() is None
            other.execute("ROLLBACK")
        server.process.wait(PATIENCE)
        with closing(sqlite3.connect(file)) as other:
            assert other.execute("SELECT name FROM support_sets").fetchall() == [("late",)]


def test_an_idle_server_ends_at_once_or_after_the_drain(zoo: Path, tmp_path: Path) -> None:
    # As long as a busy machine may make nothing of, between the signal and a question of ours.
    with serving(zoo, tmp_path, "--drain-s", 8) as server:
        start = time.monotonic()
        stop(server)  # which could not be seen without the drain
        server.process.wait(PATIENCE)
        assert time.monotonic() - start >= 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_starting_do_not_put_off_the_end(
    zoo: Path, tmp_path: Path, number: int
) -> None:
    with serving(zoo, tmp_path, "--workers", 2, ready=False) as server:
        processes = [server.process.pid]
        if number == signal.SIGINT:  # Ctrl+C is for all processes of a terminal
            processes += worker_ids(server.process.pid, 2)
        time.sleep(0.6)  # a supervisor looks every half a second
        start = time.monotonic()
        for process in processes:
            os.kill(process, number)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 30


def test_a_worker_that_dies_while_it_starts_is_replaced_soon(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--workers", 2, ready=False) as server:
        dead = min(worker_ids(server.process.pid, 2))  # the first, which is asked first
        time.sleep(0.6)  # a supervisor looks every half a second
        os.kill(dead, signal.SIGKILL)
        start = time.monotonic()
        worker_ids(server.process.pid, 2, without=dead)
        assert time.monotonic() - start < 30


def test_a_worker_s_death_is_seen_while_another_is_silent(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--workers", 2, "--shutdown-s", 1) as server:
        silent, dead = sorted(worker_ids(server.process.pid, 2))
        os.kill(silent, signal.SIGSTOP)
        time.sleep(1)  # until it is asked
        os.kill(dead, signal.SIGKILL)
        start = time.monotonic()
        assert silent in worker_ids(server.process.pid, 2, without=dead)
        assert time.monotonic() - start < 30
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)  # which one that is silent does not take
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 1 + TAIL_S + CLOSE_S + 20


def test_workers_that_cannot_start_end_it_with_an_error(tmp_path: Path) -> None:
    program = (
        "import socket; from uvicorn import Config; from service.commands.serve import supervise; "
        "supervise(Config('nowhere:app', workers=2), socket.socket(), 5)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == STARTUP_FAILURE
    assert "nowhere" in ended.stderr and "Traceback" not in ended.stderr


def test_a_worker_that_cannot_start_says_why_and_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(settings: Settings) -> NoReturn:
        raise ValueError("for a reason")

    monkeypatch.setenv(MULTIPROCESS, str(tmp_path))
    monkeypatch.setattr(serve, "create_app", broken)
    with pytest.raises(SystemExit) as ended:
        serve.Application(Settings(data_dir=tmp_path)).in_worker()
    assert ended.value.code == STARTUP_FAILURE
    assert "for a reason" in caplog.text


def test_workers_end_with_a_supervisor_that_was_killed(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--workers", 2, killed=True) as server:
        workers = worker_ids(server.process.pid, 2)
        environment = Path(f"/proc/{min(workers)}/environ").read_bytes().decode().split("\0")
        (folder,) = (
            Path(v) for k, _, v in (e.partition("=") for e in environment) if k == MULTIPROCESS
        )
        give_up = time.monotonic() + 60
        # They go on using it for a while; the service answers when the first of them has begun.
        while not all(str(folder / "lock") in open_files(worker) for worker in workers):
            assert time.monotonic() < give_up
            time.sleep(0.1)
        server.process.kill()
        server.process.wait()
        give_up = time.monotonic() + 30
        while any(map(alive, workers)) and time.monotonic() < give_up:
            time.sleep(0.1)
        assert not any(map(alive, workers))
        with pytest.raises(httpx.TransportError):
            httpx.get(server.base + "/livez", timeout=PATIENCE)
    (tmp_path / "next").mkdir()
    with serving(zoo, tmp_path / "next", "--workers", 2):
        assert not folder.exists()


def open_files(process: int) -> list[str]:
    found = []
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(file))
    return found


def alive(process: int) -> bool:
    """Not even as a zombie that nobody has asked for."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
