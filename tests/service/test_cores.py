"""Workers that keep to cores of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from service.commands.cores import pin, share, threads_each
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
    pin(12345, 2, 0)
    assert caplog.messages == ["worker 12345 is not kept to its cores: Operation not permitted"]


def test_workers_and_those_that_replace_them_keep_to_their_cores(zoo: Path, tmp_path: Path) -> None:
    """So do the threads that run models, of which there are no more than cores."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = sorted(sorted(share(cores, 2, place)) for place in range(2))

    def kept(workers: set[int]) -> list[list[int]]:
        each = []
        for worker in workers:
            tasks = [int(path.name) for path in Path(f"/proc/{worker}/task").iterdir()]
            places = {frozenset(os.sched_getaffinity(task)) for task in tasks}
            assert len(places) == 1, "all threads of a worker are together"
            each.append(sorted(places.pop()))
        return sorted(each)

    with serving(zoo, tmp_path, "--workers", 2, "--pin-workers") as server:
        first = worker_ids(server.process.pid, 2)
        for _ in range(4):
            answer = httpx.get(server.base + "/v1/models", timeout=PATIENCE)
            assert answer.status_code == 200
        assert kept(first) == wanted
        os.kill(min(first), signal.SIGKILL)
        second = worker_ids(server.process.pid, 2, without=min(first))
        assert httpx.get(server.base + "/readyz", timeout=PATIENCE).status_code == 200
        assert kept(second) == wanted
    assert threads_each(2) == max(1, len(cores) // 2)
    assert threads_each(10 * len(cores)) == 1
