"""How long things are kept: sets and their ttl, answers to be repeated, what is on the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.settings import Settings
from service.store import replays, rows
from service.store.store import Store
from tests.service.asking import SETS, add, ask_set, assert_problem, make_set, task
from tests.service.sets.making import QUERIES, Clock, made


def test_the_same_idempotency_key_does_it_once(client: TestClient, clock: Clock) -> None:
    key, support = {"idempotency-key": "order 66"}, task("ab", 1)
    first = make_set(client, support, key, name="once")
    again = make_set(client, support, key, name="once")
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    for other in (
        make_set(client, support, key, name="twice"),
        make_set(client, support[:1], key, name="once"),
        make_set(client, support, key, name="once", labels=["x", "y"]),
        add(client, first.json()["support_set"]["id"], support, key),
    ):
        assert_problem(other, 422, "idempotency-mismatch")

    set_id = first.json()["support_set"]["id"]
    key = {"idempotency-key": "add"}
    added = add(client, set_id, [("c", QUERIES[0])], key)
    assert client.patch(f"{SETS}/{set_id}", json={"name": "x"}).headers["etag"] == '"3"'
    replayed = add(client, set_id, [("c", QUERIES[0])], key)
    assert (replayed.content, replayed.headers["etag"]) == (added.content, '"2"')
    assert client.get(f"{SETS}/{set_id}").json()["examples"] == 3

    clock.now += 24 * 3600 + 1
    assert make_set(client, support, {"idempotency-key": "order 66"}).json() != first.json()
    for bad in ("", "é".encode(), "x" * 256):
        response = make_set(client, support, {"idempotency-key": bad})
        assert_problem(response, 422, "invalid-request")


def test_answers_to_repeat_take_only_so_much_room(
    client: TestClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images again and again, each time under a new key."""
    monkeypatch.setattr(replays, "MOST_BYTES", 32_768)
    clock.now += 24 * 3600 + 1
    client.app.state.store.sets.sweep()
    set_id = made(client)

    def again(number: int) -> httpx.Response:
        return add(client, set_id, task(), {"idempotency-key": f"again {number}"})

    def kept() -> int:
        with client.app.state.store.database.read() as connection:
            query = text("SELECT sum(length(body)) FROM replays")
            return int(connection.execute(query).scalar_one())

    count = next(number for number in range(100) if again(number).status_code != 200)
    refused = again(count)
    assert_problem(refused, 429, "rate-exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 600
    assert add(client, set_id, task()).status_code == 200  # without a key
    assert 10_000 < kept() <= 32_768
    # None goes while it may be asked for; then the oldest do.
    assert again(0).headers["idempotency-replayed"] == "true"
    clock.now += 300
    assert_problem(again(count), 429, "rate-exceeded")
    clock.now += 301
    assert again(count).status_code == 200
    assert kept() <= 32_768
    assert "idempotency-replayed" not in again(0).headers
    assert again(count).headers["idempotency-replayed"] == "true"


def test_a_failed_request_leaves_its_idempotency_key_free(client: TestClient) -> None:
    key = {"idempotency-key": "retry"}
    assert_problem(make_set(client, [("a", b"x")], key), 422, "nothing-added")
    assert make_set(client, task(), key).status_code == 201


def test_a_set_lives_its_ttl_after_each_use_and_then_is_gone(
    client: TestClient, clock: Clock
) -> None:
    set_id = made(client, ttl=1000)
    for _ in range(3):  # each use puts it off
        clock.now += 999
        assert ask_set(client, set_id, QUERIES).status_code == 200
    clock.now += 999
    assert add(client, set_id, task()).status_code == 200  # all are there already
    clock.now += 999
    assert client.get(f"{SETS}/{set_id}").status_code == 200  # looking is no use
    clock.now += 60
    for _ in range(2):
        for response in (
            client.get(f"{SETS}/{set_id}"),
            ask_set(client, set_id, QUERIES),
            add(client, set_id, task()),
            client.patch(f"{SETS}/{set_id}", json={"ttl": None}),
        ):
            assert_problem(response, 410, "support-set-expired")
        assert set_id not in [one["id"] for one in client.get(SETS).json()["support_sets"]]
        client.app.state.store.sets.sweep()  # before and after its images are deleted
    clock.now += 8 * 24 * 3600
    client.app.state.store.sets.sweep()
    assert_problem(client.get(f"{SETS}/{set_id}"), 404, "unknown-support-set")


def test_expired_sets_do_not_stand_in_the_way_of_new_ones(client: TestClient, clock: Clock) -> None:
    kept = made(client)
    for _ in range(200):
        last = make_set(client, ttl=10)
        if last.status_code != 201:
            break
    assert_problem(last, 409, "too-many-sets")
    clock.now += 11
    assert make_set(client, ttl=10).status_code == 201
    assert client.get(f"{SETS}/{kept}").status_code == 200


def test_a_use_that_waited_until_the_set_expired_does_not_bring_it_back(
    client: TestClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_id = made(client, ttl=1000)
    clock.now += 1040
    clock.now += 11  # until then the clock is set back:
    times = [clock.now - 11] * 2  # found, and found to be due; then it waits to write
    store = client.app.state.store
    monkeypatch.setattr(store.sets, "clock", lambda: times.pop() if times else clock.now)
    ask_set(client, set_id, QUERIES)
    assert not times
    assert_problem(client.get(f"{SETS}/{set_id}"), 410, "support-set-expired")
    store.sets.sweep()


def test_nor_does_an_edit_that_waited_for_the_set_s_lock(
    client: TestClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PostgreSQL the sweep may have had the lock, and the examples, before."""
    store, set_id = client.app.state.store, made(client, ttl=1000)
    expires_at = clock.now + 2000

    def waiting(*_: object) -> None:
        clock.now = expires_at

    monkeypatch.setattr(rows, "refuse_revoked", waiting)
    changed = client.patch(f"{SETS}/{set_id}", json={"name": "late"})
    assert_problem(changed, 410, "support-set-expired")
    assert store.sets.sweep() == 1


def test_the_sweep_deletes_the_images_of_expired_sets_alone(
    client: TestClient, clock: Clock
) -> None:
    store = client.app.state.store
    store.sets.sweep()
    kept, gone = made(client, ttl=5000), made(client, ttl=10)
    clock.now += 11
    assert store.sets.sweep() == 1
    assert store.sets.sweep() == 0
    assert ask_set(client, kept, QUERIES).status_code == 200
    assert_problem(client.get(f"{SETS}/{gone}"), 410, "support-set-expired")


def test_what_is_stored_is_there_for_the_next_process(
    zoo: Path, database_url: str, client: TestClient
) -> None:
    set_id = made(client, name="persisted")
    before = ask_set(client, set_id, QUERIES).json()["predictions"]
    settings = Settings(zoo=zoo, device="cpu", threads=1, database_url=database_url)
    store = Store(settings)
    store.sets.clock = client.app.state.store.sets.clock
    with TestClient(create_app(settings, store=store)) as other:
        assert ask_set(other, set_id, QUERIES).json()["predictions"] == before
        # And an edit by one is seen by the other at once.
        assert add(other, set_id, [("c", QUERIES[0])]).status_code == 201
    answer = ask_set(client, set_id, QUERIES).json()
    assert answer["support_set_ref"] == f"{set_id}@2"
    assert answer["predictions"][0]["label"] == "c"


def test_a_set_that_takes_longer_to_make_than_it_may_go_unused_is_made(
    client: TestClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def later() -> float:
        clock.now += 0.6
        return clock.now

    monkeypatch.setattr(client.app.state.store.sets, "clock", later)
    answer = make_set(client, task("ab", 1), ttl=1)
    assert answer.status_code == 201, answer.text
    assert answer.json()["support_set"]["examples"] == 2


def test_expired_images_are_deleted_in_the_background(zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a?b#c %41"  # a path is no URL
    settings = Settings(zoo=zoo, device="cpu", data_dir=folder, sweep_s=0.05)
    with TestClient(create_app(settings)) as client:
        set_id = made(client, ttl=1)
        sets = client.app.state.store.sets
        give_up = time.monotonic() + 60
        while _stored(client, set_id) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert _stored(client, set_id) == 0
        assert_problem(client.get(f"{SETS}/{set_id}"), 410, "support-set-expired")
        assert sets.sweep() == 0
    assert (folder / "fewshot.sqlite3").is_file()


def _stored(client: TestClient, set_id: str) -> int:
    """Images in the database itself."""
    with client.app.state.store.database.read() as connection:
        query = text("SELECT count(*) FROM examples WHERE set_id = :id")
        return int(connection.execute(query, {"id": set_id}).scalar_one())


@pytest.mark.skipif(os.name != "posix", reason="folders have no modes")
def test_a_data_folder_that_the_service_makes_is_its_user_s_alone(
    zoo: Path, tmp_path: Path
) -> None:
    settings = Settings(zoo=zoo, device="cpu", threads=1, data_dir=tmp_path / "new")
    with TestClient(create_app(settings)) as client:
        assert client.post(SETS).status_code == 201
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
