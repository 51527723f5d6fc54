"""A full disk, a locked database, one that is gone: 503, not ready, and back without a restart."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from service.app import create_app
from service.problems import StoreUnavailable
from service.settings import Settings
from service.store import database as database_module
from service.store import keys as keys_module
from service.store.database import Database
from service.store.keys import BELIEVED_S, Scope
from tests.service.asking import SETS, add, ask, ask_set, assert_problem, encoded, make_set, noise
from tests.service.asking import task as some
from tests.service.postgres import Postgres

QUERIES = [encoded(noise(900))]


def big(seed: int) -> list[tuple[str, bytes]]:
    """One image of about 700 kB."""
    return [("a", encoded(noise(seed, (400, 600, 3))))]


def assert_down(response: httpx.Response) -> None:
    document = assert_problem(response, 503, "store-unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert "sqlite" not in str(document).lower()
    assert "SQL" not in str(document)


def test_a_full_disk_is_503_and_recovers_when_there_is_room(zoo: Path, full_disk: Path) -> None:
    ballast = full_disk / "ballast"
    settings = Settings(zoo=zoo, device="cpu", data_dir=full_disk / "data")
    with TestClient(create_app(settings)) as client:
        set_id = make_set(client, some()).json()["support_set"]["id"]
        free = os.statvfs(full_disk)
        ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - (300 << 10))))
        assert client.get("/readyz").status_code == 200
        _fills_up_and_recovers(client, set_id, ballast.unlink)


def test_a_database_at_its_size_limit_does_the_same(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by SQLite's own limit, for where nothing can be mounted."""
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path, store_threads=1)
    with TestClient(create_app(settings)) as client:
        set_id = make_set(client, some()).json()["support_set"]["id"]
        engine = client.app.state.store.database.engine

        def limit(pages: int) -> None:
            with closing(engine.raw_connection()) as connection:  # the only one
                connection.cursor().execute(f"PRAGMA max_page_count = {pages}")

        limit(60)
        _fills_up_and_recovers(client, set_id, lambda: limit(1_000_000))


def _fills_up_and_recovers(client: TestClient, set_id: str, make_room: object) -> None:
    before = client.get(f"{SETS}/{set_id}").json()
    assert_down(add(client, set_id, big(1)))
    assert_down(make_set(client, big(2)))
    assert_problem(client.get("/readyz"), 503, "store-unavailable")
    assert client.get("/livez").status_code == 200
    # What can be answered still is, and nothing was half-written.
    assert client.get(f"{SETS}/{set_id}").json() == before
    assert ask_set(client, set_id, QUERIES).status_code == 200
    assert ask(client, some(), QUERIES).status_code == 200
    assert callable(make_room)
    make_room()
    assert client.get("/readyz").status_code == 200
    assert add(client, set_id, big(1)).status_code == 201
    assert client.get(f"{SETS}/{set_id}").json()["examples"] == before["examples"] + 1


def test_a_locked_database_is_503_until_it_is_free(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_S", 0.2)
    with TestClient(create_app(Settings(zoo=zoo, device="cpu", data_dir=tmp_path))) as client:
        set_id = make_set(client, some()).json()["support_set"]["id"]
        with closing(sqlite3.connect(tmp_path / "fewshot.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert_down(add(client, set_id, big(1)))
            assert_problem(client.get("/readyz"), 503, "store-unavailable")
            assert client.get(f"{SETS}/{set_id}").status_code == 200  # readers are not held up
            other.execute("ROLLBACK")
        assert client.get("/readyz").status_code == 200
        assert add(client, set_id, big(1)).status_code == 201


def test_postgresql_gone_is_503_and_recovers_when_it_is_back(zoo: Path, postgres: Postgres) -> None:
    settings = Settings(zoo=zoo, device="cpu", database_url=postgres.new_database())
    with TestClient(create_app(settings)) as client:
        set_id = make_set(client, some()).json()["support_set"]["id"]
        before = ask_set(client, set_id, QUERIES).json()["predictions"]
        postgres.stop()
        try:
            for response in (
                add(client, set_id, big(1)),
                ask_set(client, set_id, QUERIES),
                client.get(f"{SETS}/{set_id}"),
                client.get(SETS),
                client.get("/readyz"),
            ):
                assert_down(response)
            assert client.get("/livez").status_code == 200
        finally:
            postgres.start()
        assert client.get("/readyz").status_code == 200
        assert ask_set(client, set_id, QUERIES).json()["predictions"] == before
        assert add(client, set_id, big(1)).status_code == 201


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else's transaction keeps everyone from the keys and the sets."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with closing(engine.connect()) as other, other.begin():
        other.execute(text("LOCK TABLE api_keys, support_sets IN ACCESS EXCLUSIVE MODE"))
        yield
    engine.dispose()


@pytest.mark.parametrize("fault", ["hung", "locked"])
def test_postgresql_that_does_not_answer_is_503_in_seconds_and_recovers(
    zoo: Path, postgres: Postgres, fault: str
) -> None:
    url = postgres.new_database()
    with TestClient(create_app(Settings(zoo=zoo, device="cpu", database_url=url))) as client:
        _, token = client.app.state.store.keys.create("a", [Scope.write])
        head = {"authorization": f"Bearer {token}", "x-request-timeout": "20"}
        set_id = make_set(client, some(), head).json()["support_set"]["id"]
        time.sleep(BELIEVED_S)
        broken: AbstractContextManager[None] = postgres.hung() if fault == "hung" else locked(url)
        with broken:
            start = time.monotonic()
            if fault == "hung":
                assert_problem(client.get("/readyz"), 503, "store-unavailable")
            assert_down(ask_set(client, set_id, QUERIES, head))
            assert_down(client.get(SETS, headers=head))
            assert time.monotonic() - start < 3 * database_module.ANSWER_S + 10  # 60 s without it
            assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert ask_set(client, set_id, QUERIES, head).status_code == 200


def test_somebody_else_s_lock_in_postgresql_is_given_up_and_nothing_is_written_later(
    zoo: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_S", 0.5)
    url = postgres.new_database()
    settings = Settings(zoo=zoo, device="cpu", database_url=url, auth="off", store_threads=1)
    with TestClient(create_app(settings)) as client:
        with locked(url):
            start = time.monotonic()
            assert_down(make_set(client, some()))
            assert time.monotonic() - start < database_module.ANSWER_S
        assert client.get(SETS).json()["support_sets"] == []


def test_a_write_and_a_quota_do_not_wait_for_a_database_that_hangs_either(
    zoo: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "BELIEVED_S", 60)  # no look-up tells it first
    settings = Settings(zoo=zoo, device="cpu", database_url=postgres.new_database())
    with TestClient(create_app(settings)) as client:
        keys, quotas = client.app.state.store.keys, (None, 100)
        tokens = [keys.create("a", [Scope.write], daily_quota=quota)[1] for quota in quotas]
        free, counted = ({"authorization": f"Bearer {token}"} for token in tokens)
        for head in (free, counted):
            assert client.get("/v1/models", headers=head).status_code == 200
        monkeypatch.setattr(database_module, "_WRITE_S", 2)
        with postgres.hung():
            assert_down(make_set(client, some(), free))
            assert_down(client.get("/v1/models", headers=counted))
        assert client.get("/v1/models", headers=counted).status_code == 200
        # What was told to have failed had begun, and comes to its end.
        give_up = time.monotonic() + 60
        while not client.get(SETS, headers=free).json()["support_sets"]:
            assert time.monotonic() < give_up


def test_postgresql_that_allows_no_tables_is_503_until_it_does(
    zoo: Path, postgres: Postgres
) -> None:
    """What a role without a right gets since PostgreSQL 15."""
    url = postgres.new_database()
    administrator = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def administer(*commands: str) -> None:
        with administrator.begin() as connection:
            for command in commands:
                connection.execute(text(command))

    administer("CREATE ROLE plain LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    plain = url.replace("postgres@", "plain@")
    try:
        made = subprocess.run(
            [sys.executable, "-m", "fewshot", "keys", "create", "me"],
            env=os.environ | {"DATABASE_URL": plain},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 2
        assert "Traceback" not in made.stderr
        assert "permission denied for schema public" in made.stderr
        with TestClient(create_app(Settings(zoo=zoo, device="cpu", database_url=plain))) as client:
            assert_down(client.get("/readyz"))
            administer("GRANT CREATE ON SCHEMA public TO plain")
            assert client.get("/readyz").status_code == 200
    finally:
        administrator.dispose()


def test_a_database_that_comes_after_the_service_is_waited_for(
    zoo: Path, postgres: Postgres
) -> None:
    settings = Settings(zoo=zoo, device="cpu", database_url=postgres.new_database())
    postgres.stop()
    try:
        with TestClient(create_app(settings)) as client:
            assert_down(client.get("/readyz"))
            # Whether there are keys cannot be known: nobody is let in.
            assert_down(client.get(SETS))
            assert_down(client.get("/v1/models"))
            postgres.start()
            assert client.get("/readyz").status_code == 200
            assert make_set(client, some()).status_code == 201
    finally:
        postgres.start_if_stopped()


def test_a_file_that_was_deleted_or_replaced_takes_no_writes_that_would_be_lost(
    zoo: Path, tmp_path: Path
) -> None:
    settings, file = (
        Settings(zoo=zoo, device="cpu", data_dir=tmp_path),
        tmp_path / "fewshot.sqlite3",
    )
    with TestClient(create_app(settings)) as client:
        assert make_set(client, some()).status_code == 201
        file.rename(tmp_path / "moved")
        for other in (False, True):
            if other:
                file.write_bytes((tmp_path / "moved").read_bytes())
            assert_down(make_set(client, some()))
            assert_down(client.get("/readyz"))
            with ThreadPoolExecutor(8) as threads:  # more than have a connection
                list(threads.map(client.get, [SETS] * 32))
            assert file.exists() == other, "SQLite made one"
        (tmp_path / "moved").rename(file)
        assert client.get("/readyz").status_code == 200
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(client.post, [SETS] * 32))
    made = {answer.json()["support_set"]["id"] for answer in answers}
    with closing(sqlite3.connect(file)) as database:
        kept = {name for (name,) in database.execute("SELECT id FROM support_sets")}
    assert kept > made


def test_newest_writes_that_lost_their_file_are_saved_at_the_end(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path)
    with TestClient(create_app(settings)) as client:
        assert make_set(client, some()).status_code == 201
        (tmp_path / "fewshot.sqlite3-wal").unlink()
        assert_down(make_set(client, some()))
        assert_down(client.get("/readyz"))
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
        assert len(client.get(SETS).json()["support_sets"]) == 1


def test_a_write_whose_file_goes_meanwhile_is_not_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite3"
    with closing(Database(file, 1)) as database:
        database.open()
        with pytest.raises(StoreUnavailable), database.write():
            file.rename(tmp_path / "moved")


def test_what_is_shown_of_a_url_is_no_password() -> None:
    for user in ("u:p?w", "u@corp:p%40w", "u"):
        with closing(Database(f"postgresql://{user}@host:5/db", 1)) as database:
            assert database.name == "db on host:5"


@pytest.mark.parametrize(
    "url",
    ["mysql://x/y", "nonsense", "sqlite:////proc/nowhere/x.sqlite3", "sqlite://",
     "sqlite:///:memory:", "sqlite:///file:x?uri=true", "postgresql://u:a@b@host/db",
     "postgresql://u:a?b@c@host/db", "postgresql://u:a@b?c@host/db", "postgresql://u:a@b/c@host/db"],
)  # fmt: skip
def test_a_database_that_cannot_be_is_told_in_one_line(zoo: Path, tmp_path: Path, url: str) -> None:
    command = [sys.executable, str(Path(__file__).parents[2] / "fewshot.py"), "keys", "list"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"DATABASE_URL": url}
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
