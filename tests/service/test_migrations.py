"""The tables are those of the migrations, whichever of several processes makes them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from service.images import Upload
from service.problems import FileRef, StoreUnavailable
from service.store import schema
from service.store.database import Database
from service.store.keys import Keys, Scope
from service.store.records import Limits, NewExample
from service.store.replays import Answer, Once
from service.store.sets import SupportSets
from service.store.tables import metadata
from tests.service.postgres import Postgres

ROOT = Path(__file__).parents[2]


def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    database = Database(database_url, 1)
    database.open()
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_the_newest_migration_is_the_one_named_in_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'folder' / 'x.sqlite3'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def test_an_older_database_is_brought_up_to_date_and_a_newer_one_refused(
    fresh_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(version: str) -> None:
        database = Database(fresh_url, 1)
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
        database.close()

    with monkeypatch.context() as patch:  # as a service of the first version made it
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        old = Database(fresh_url, 1)
        old.open()
        Keys(old).create("kept", [Scope.read])
        old.close()
    new = Database(fresh_url, 1)
    assert [key.name for key in Keys(new).list()] == ["kept"]
    with new.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    new.close()

    at("9999")
    newer = Database(fresh_url, 1)
    with pytest.raises(StoreUnavailable, match="newer version"):
        newer.open()
    newer.close()


def test_several_processes_may_start_at_once(fresh_url: str) -> None:
    program = (
        "import sys; from service.store.database import Database\n"
        "import alembic.command\n"  # loaded beforehand: they meet at the database
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"database = Database({fresh_url!r}, 1)\n"
        "database.open(); database.check(); database.close()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_concurrent_edits_by_two_processes_worth_of_connections_all_land(
    database_url: str,
) -> None:
    """Two pools, as of two processes; twelve threads meet at a barrier."""
    databases = [Database(database_url, 6) for _ in range(2)]
    sets = [SupportSets(database, Limits(100, 1000, 10**9)) for database in databases]

    def render(added: object) -> Answer:
        return Answer(201, repr(added).encode())

    sets[0].create("", "c", {}, None, [], render)
    set_id = sets[0].page("", 1)[0].id
    barrier, faults = threading.Barrier(12), []

    def edit(number: int) -> None:
        mine = sets[number % 2]
        barrier.wait(60)
        try:
            for round_ in range(5):
                data = f"{number} {round_}".encode()
                upload = Upload(FileRef("images", 0, "x"), data)
                # Each image is sent by two threads at once: it is stored once.
                image = NewExample(
                    "a", upload, f"{number // 2:032x}{round_:032x}", "image/png", 1, 1
                )
                mine.add("", set_id, [image], render)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []
    record, found = sets[1].examples("", set_id, 1000)
    assert len(found) == record.examples == 6 * 5
    assert record.revision == 1 + 30
    assert sorted({one.position for one in found}) == list(range(30))
    for database in databases:
        database.close()


def test_the_same_idempotency_key_at_once_is_done_once(database_url: str) -> None:
    databases = [Database(database_url, 4) for _ in range(2)]
    answers: list[bytes] = []
    barrier = threading.Barrier(8)
    before = len(SupportSets(databases[0], Limits(1000, 1, 1)).page("same", 100))

    def make(number: int) -> None:
        sets = SupportSets(databases[number % 2], Limits(1000, 1000, 10**9))
        barrier.wait(60)
        answer = sets.create(
            "same", "", {}, None, [], lambda added: Answer(201, added.set.id.encode()),
            Once("key", "f" * 64),
        )  # fmt: skip
        answers.append(answer.body)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert len(SupportSets(databases[0], Limits(1000, 1, 1)).page("same", 100)) == before + 1
    for database in databases:
        database.close()
