"""Workers that keep to cores of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from service.commands import serve
from service.commands.cores import keeping_to_share, share, threads_each
from service.settings import Settings
from tests.service.process import PATIENCE, serving, worker_ids

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="only Linux keeps processes to cores"
)


@pytest.mark.parametrize(("count", "workers"), [(2, 1), (2, 2), (8, 3), (16, 16), (3, 2)])
def test_every_core_is_one_worker_s_and_the_shares_are_even(count: int, workers: int) -> None:
    cores = list(range(5, 5 + count))
    shares = [share(cores, workers, place) for place in range(workers)]
    assert sorted(core for each in shares for core in each) == cores
    sizes = [len(each) for each in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(max(each) - min(each) == len(each) - 1 for each in shares)


def test_where_there_are_fewer_cores_each_worker_has_one() -> None:
    assert [share([4, 7], 5, place) for place in range(5)] == [{4}, {7}, {4}, {7}, {4}]


def test_a_system_that_forbids_it_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(process: int, cores: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with keeping_to_share(2, 0):
        pass
    assert caplog.messages == ["a worker is not kept to its cores: Operation not permitted"]


def test_what_is_started_within_keeps_to_the_share_and_the_starter_does_not() -> None:
    cores = sorted(os.sched_getaffinity(0))
    print_them = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with keeping_to_share(len(cores), 0):
        told = subprocess.run(print_them, capture_output=True, text=True, check=True).stdout
    assert len(json.loads(told)) == 1
    assert sorted(os.sched_getaffinity(0)) == cores


def test_workers_and_those_that_replace_them_keep_to_their_cores(zoo: Path, tmp_path: Path) -> None:
    """All threads of each, and a model is run by no more of them than its worker has cores."""
    cores = sorted(os.sched_getaffinity(0))
    most = threads_each(2)

    def kept(workers: set[int]) -> set[frozenset[int]]:
        each = []
        for worker in workers:
            places = set()
            for task in Path(f"/proc/{worker}/task").iterdir():
                with suppress(ProcessLookupError):  # it has just ended
                    places.add(frozenset(os.sched_getaffinity(int(task.name))))
            assert len(places) == 1, "all threads of a worker are together"
            each += places
        if len(cores) > 1:
            assert not frozenset.intersection(*each)
        assert {len(place) for place in each} <= {most, most + 1}
        return set(each)

    flags = ("--workers", 2, "--pin-workers", "--threads", 0, "--log-level", "info")
    with serving(zoo, tmp_path, *flags) as server:
        first = worker_ids(server.process.pid, 2)
        wanted = kept(first)
        os.kill(min(first), signal.SIGKILL)
        second = worker_ids(server.process.pid, 2, without=min(first))
        assert httpx.get(server.base + "/readyz", timeout=PATIENCE).status_code == 200
        assert kept(second) == wanted
    assert threads_each(10 * len(cores)) == 1


@pytest.mark.parametrize(("pinned", "workers"), [(True, 2), (True, 1), (False, 2)])
def test_a_model_is_run_by_as_many_threads_as_its_worker_has_cores(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool, workers: int
) -> None:
    """Where nothing is pinned ONNX Runtime chooses (0)."""
    chosen: list[int] = []

    def made(settings: Settings) -> NoReturn:
        chosen.append(settings.threads)
        raise ZeroDivisionError

    monkeypatch.setattr(serve, "Application", made)
    pin = "--pin-workers" if pinned else "--no-pin-workers"
    flags = ["--port", "0", "--zoo", str(zoo), "--workers", str(workers), pin, "--threads", "0"]
    with pytest.raises(ZeroDivisionError):
        serve.run(flags)
    assert chosen == [threads_each(2) if pinned and workers > 1 else 0]
