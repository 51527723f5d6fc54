"""Who waits for the database, for how long, and who need not."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.app import create_app
from service.settings import Settings
from service.store import database as database_module
from service.store import threads as threads_module
from service.store.database import Database
from service.store.keys import Scope
from tests.service.asking import SETS, add, ask_set, assert_problem, encoded, make_set, noise, task

QUERIES = [encoded(noise(900))]


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def database(client: TestClient) -> Database:
    found: Database = client.app.state.store.database
    return found


def test_uploads_that_wait_for_one_another_hold_up_no_reader(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six uploads wait for SQLite's lock; a list, and the look-up of a key, do not."""
    monkeypatch.setattr(database_module, "_BUSY_S", 60)
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path, store_threads=4)
    with TestClient(create_app(settings)) as client, ThreadPoolExecutor(7) as threads:
        keys = client.app.state.store.keys
        writer, reader = (
            {"authorization": f"Bearer {keys.create(name, [Scope.write])[1]}"} for name in "wr"
        )
        assert make_set(client, (), writer).status_code == 201
        with closing(sqlite3.connect(tmp_path / "fewshot.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            try:
                uploads = [threads.submit(make_set, client, task(), writer) for _ in range(6)]
                until(lambda: database(client).writers.waiting == 5)
                listed = threads.submit(client.get, SETS, headers=reader).result(timeout=10)
                assert listed.status_code == 200
                assert not any(upload.done() for upload in uploads)
            finally:
                other.execute("ROLLBACK")
        assert [upload.result().status_code for upload in uploads] == [201] * 6


def test_every_write_of_a_request_is_in_the_writer_s_thread(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path, sweep_s=3600)
    with TestClient(create_app(settings)) as client:
        store, writing = client.app.state.store, []
        _, token = store.keys.create("limited", [Scope.write], daily_quota=2000)
        head = {"authorization": f"Bearer {token}"}

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if statement == "BEGIN IMMEDIATE":
                writing.append(threading.current_thread().name.split("_")[0])

        event.listen(store.database.engine, "before_cursor_execute", note)
        made = make_set(client, task(), head, ttl=1000).json()["support_set"]["id"]
        path, later = f"{SETS}/{made}", store.sets.clock() + 500
        store.sets.clock = lambda: later  # so that the use is written down
        assert ask_set(client, made, QUERIES, head).status_code == 200
        assert client.patch(path, json={}, headers=head).status_code == 200
        assert add(client, made, [("c", QUERIES[0])], head).status_code == 201
        example = client.get(f"{path}/examples", headers=head).json()["examples"][0]["id"]
        assert client.delete(f"{path}/examples/{example}", headers=head).status_code == 204
        assert client.delete(path, headers=head).status_code == 204
        store.database.faulted = True
        assert client.get("/readyz").status_code == 200
    # One for the quota, one for each request but the list, and two to find out if writing works.
    assert writing == ["store-write"] * 9


@contextmanager
def hung(client: TestClient) -> Iterator[None]:
    """The database's only thread hangs, as on a database that does not answer."""
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait(60)

    call = client.portal.start_task_soon(database(client).readers.run, hang)
    assert begun.wait(60)
    try:
        yield
    finally:
        over.set()
        call.result(60)


@pytest.fixture(scope="module")
def open_client(zoo: Path, database_url: str) -> Iterator[TestClient]:
    """With one thread for the database, and no keys to look up."""
    settings = Settings(
        zoo=zoo, device="cpu", database_url=database_url, store_threads=1, auth="off"
    )
    with TestClient(create_app(settings)) as client:
        yield client


def test_a_question_is_told_in_time_that_the_database_is_slow(open_client: TestClient) -> None:
    set_id = make_set(open_client, task()).json()["support_set"]["id"]
    files = [("query_images", ("q", QUERIES[0]))]
    head, path = {"x-request-timeout": "0.3"}, f"{SETS}/{set_id}"
    with ThreadPoolExecutor(2) as threads, hung(open_client):
        asked = threads.submit(
            open_client.post, f"{path}/predictions", data={"model": "mean"}, files=files,
            headers=head,
        )  # fmt: skip
        taken = threads.submit(
            open_client.get, f"{path}/classifier.onnx", params={"model": "mean"}, headers=head
        )
        for answer in (asked, taken):
            assert_problem(answer.result(timeout=10), 504, "deadline-exceeded")
        # And nothing of them is left waiting.
        assert database(open_client).readers.waiting == 0
    assert ask_set(open_client, set_id, QUERIES).status_code == 200


def test_only_so_many_calls_wait_for_a_database_that_hangs(
    open_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "MOST_WAITING", 2)
    monkeypatch.setattr(database_module, "ANSWER_S", 60)
    with ThreadPoolExecutor(3) as threads:
        with hung(open_client):
            waiting = [threads.submit(open_client.get, SETS) for _ in range(2)]
            until(lambda: database(open_client).readers.waiting == 2)
            refused = threads.submit(open_client.get, SETS).result(timeout=10)
            assert_problem(refused, 503, "store-unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert not any(one.done() for one in waiting)
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert open_client.get(SETS).status_code == 200
