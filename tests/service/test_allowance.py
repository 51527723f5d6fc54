"""Rates and quotas of keys. Quotas are counted on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, event, insert, literal, select

from service.api.allowance import Bucket
from service.app import create_app
from service.settings import Settings
from service.store.database import Database
from service.store.keys import Scope
from service.store.store import Store
from service.store.tables import api_keys, key_usage
from service.store.usage import Usage
from tests.service.asking import assert_problem
from tests.service.postgres import Postgres


@pytest.fixture(scope="module")
def client(zoo: Path, database_url: str) -> Iterator[TestClient]:
    settings = Settings(zoo=zoo, device="cpu", threads=1, database_url=database_url)
    with TestClient(create_app(settings)) as client:
        yield client


def key(client: TestClient, **limits: int) -> dict[str, str]:
    store: Store = client.app.state.store
    _, token = store.keys.create("limited", [Scope.read], **limits)
    return {"authorization": f"Bearer {token}"}


def test_a_rate_is_a_minute_s_worth_and_then_429(client: TestClient) -> None:
    mine, other = key(client, rate_per_minute=3), key(client, rate_per_minute=3)
    start = time.monotonic()
    answers = [client.get("/v1/models/mean", headers=mine) for _ in range(4)]
    if time.monotonic() - start < 20:  # else the machine was so slow that a token came back
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        document = assert_problem(answers[-1], 429, "rate-exceeded")
        assert 0 < int(answers[-1].headers["retry-after"]) <= 20
        assert "3 times a minute" in str(document["detail"])
    assert [a.headers["ratelimit"].split(";t=")[0] for a in answers[:3]] == [
        '"minute";r=2', '"minute";r=1', '"minute";r=0',
    ]  # fmt: skip
    assert answers[0].headers["ratelimit-policy"] == '"minute";q=3;w=60'
    assert client.get("/v1/models/mean", headers=other).status_code == 200
    for path in ("/livez", "/metrics", "/v1/limits", "/v2/health/live"):
        assert client.get(path, headers=mine).status_code == 200


def test_a_quota_is_a_day_s_and_refusals_by_rate_do_not_use_it(client: TestClient) -> None:
    mine = key(client, daily_quota=3)
    codes = [client.get("/v1/models", headers=mine) for _ in range(5)]
    assert [answer.status_code for answer in codes] == [200, 200, 200, 429, 429]
    assert_problem(codes[-1], 429, "quota-exceeded")
    assert 0 < int(codes[-1].headers["retry-after"]) <= 86_400
    assert codes[1].headers["ratelimit"].startswith('"day";r=1;t=')
    assert codes[1].headers["ratelimit-policy"] == '"day";q=3;w=86400'


def test_refusals_by_quota_cost_the_database_nothing(client: TestClient) -> None:
    mine, statements = key(client, daily_quota=2), []
    for status in (200, 200, 429):
        assert client.get("/v1/models", headers=mine).status_code == status

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if "key_usage" in statement or statement == "BEGIN IMMEDIATE":
            statements.append(statement)

    engine = client.app.state.store.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        answers = [client.get("/v1/models", headers=mine) for _ in range(5)]
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert [answer.status_code for answer in answers] == [429] * 5
    assert statements == []


def test_a_claim_of_what_is_used_up_writes_nothing(database_url: str) -> None:
    """As of another process, which does not know it yet."""
    database, writes = Database(database_url, 1), []
    usage = Usage(database)
    assert usage.claim("key_spent", 20_000, 5, 5) == (5, 0)

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            writes.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    assert usage.claim("key_spent", 20_000, 5, 5) == (0, 0)
    assert writes == []
    database.close()


def test_a_clock_that_runs_ahead_gives_no_key_its_quota_again(database_url: str) -> None:
    database = Database(database_url, 1)
    usage = Usage(database)
    for key in ("key_early", "key_other"):
        assert usage.claim(key, 20_000, 5, 5) == (5, 0)
    assert usage.claim("key_early", 20_003, 5, 5) == (5, 0)
    for key in ("key_early", "key_other"):
        assert usage.claim(key, 20_000, 5, 5) == (0, 0)
    database.close()


def test_a_count_that_others_always_change_first_is_busy_and_not_used_up(
    zoo: Path, postgres: Postgres
) -> None:
    """Another process makes the row before each attempt to make it. (SQLite lets in one writer at
    a time, so there it cannot happen.)"""
    url = postgres.new_database()
    settings = Settings(zoo=zoo, device="cpu", threads=1, database_url=url)
    with TestClient(create_app(settings)) as client, closing(Database(url, 1)) as other:
        mine = key(client, daily_quota=9)

        def meddle(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("INSERT INTO key_usage"):
                with other.write() as connection:
                    row = select(api_keys.c.id, literal(int(time.time() // 86_400)), literal(0))
                    connection.execute(insert(key_usage).from_select(key_usage.c.keys(), row))
            elif "FROM key_usage" in statement and statement.startswith("SELECT"):
                with other.write() as connection:
                    connection.execute(delete(key_usage))

        engine = client.app.state.store.database.engine
        event.listen(engine, "before_cursor_execute", meddle)
        answer = client.get("/v1/models", headers=mine)
        event.remove(engine, "before_cursor_execute", meddle)
        assert_problem(answer, 503, "store-unavailable")
        assert int(answer.headers["retry-after"]) < 60
        assert client.get("/v1/models", headers=mine).status_code == 200


def test_an_unlimited_key_gets_no_such_headers(client: TestClient) -> None:
    answer = client.get("/v1/models", headers=key(client))
    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


def test_processes_together_never_give_out_more_than_the_quota(database_url: str) -> None:
    """Four processes' worth of claims at once, each on a connection of its own."""
    databases = [Database(database_url, 2) for _ in range(4)]
    try:

        def claim(index: int) -> int:
            usage = Usage(databases[index % 4])
            return usage.claim("key_concurrent", 20_000, 7, 100)[0]

        with ThreadPoolExecutor(8) as threads:
            taken = list(threads.map(claim, range(40)))
        assert sum(taken) == 100
        assert Usage(databases[0]).claim("key_concurrent", 20_001, 7, 100) == (7, 93)
    finally:
        for database in databases:
            database.close()


def test_a_bucket_fills_at_its_rate_and_no_further() -> None:
    bucket = Bucket(size=2, rate=0.5, now=0)
    assert [bucket.take(0), bucket.take(0)] == [0, 0]
    assert bucket.take(0) == pytest.approx(2)
    assert bucket.take(1.0) == pytest.approx(1)
    assert bucket.take(2.0) == 0
    assert [bucket.take(1000), bucket.take(1000)] == [0, 0]
    assert bucket.take(1000) > 0
