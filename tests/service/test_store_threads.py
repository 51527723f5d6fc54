"""Who waits for the database, for how long, and who need not."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.app import create_app
from service.settings import Settings
from service.store import database as database_module
from service.store.database import Database
from service.store.keys import Scope
from tests.service.asking import SETS, add, ask_set, encoded, make_set, noise, task

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
