"""API keys: who may do what, and that one's sets are nobody else's. On both databases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from typer.testing import CliRunner

from fewshot import app as fewshot
from service.app import create_app
from service.problems import TooManySets
from service.settings import Settings
from service.store import keys as keys_module
from service.store.keys import Keys, Scope
from service.store.replays import Answer
from service.store.store import Store
from tests.service.asking import SETS, add, ask, ask_set, assert_problem, encoded, make_set, noise
from tests.service.asking import task as some

ROOT = Path(__file__).parents[2]
QUERIES = [encoded(noise(900))]


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are looked up each time: tests do not wait for what is believed to lapse."""
    monkeypatch.setattr(keys_module, "BELIEVED_S", 0.0)


@pytest.fixture(scope="module")
def client(zoo: Path, database_url: str) -> Iterator[TestClient]:
    settings = Settings(zoo=zoo, device="cpu", threads=1, database_url=database_url)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def keys(client: TestClient) -> Keys:
    found: Keys = client.app.state.store.keys
    return found


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def tokens(keys: Keys) -> dict[str, str]:
    return {scope.value: keys.create(scope, [scope])[1] for scope in Scope}


def test_without_any_key_the_service_is_open_and_with_the_first_it_closes(
    client: TestClient, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not keys.list()
    open_set = make_set(client, some()).json()["support_set"]["id"]
    assert client.get("/v1/models").status_code == 200

    key, token = keys.create("first", [Scope.write])
    for response in (
        client.get("/v1/models"),
        client.get(SETS),
        make_set(client),
        ask(client, some(), QUERIES),
        client.get(f"{SETS}/{open_set}"),
        client.get("/v1/nothing"),
    ):
        assert_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert client.head(SETS).status_code == 401
    for path in ("/livez", "/readyz", "/v1/limits", "/docs", "/openapi.json", "/"):
        assert client.get(path).status_code == client.head(path).status_code == 200
    # What was made by nobody belongs to nobody.
    assert_problem(
        client.get(f"{SETS}/{open_set}", headers=bearer(token)), 404, "unknown-support-set"
    )
    keys.revoke(key.id)
    assert_problem(client.get(SETS, headers=bearer(token)), 401, "unauthenticated")
    assert_problem(client.get(SETS), 401, "unauthenticated")  # it does not open again


def test_only_the_very_key_is_taken(client: TestClient, keys: Keys, tokens: dict[str, str]) -> None:
    good = tokens["read"]
    assert client.get(SETS, headers=bearer(good)).status_code == 200
    assert client.get(SETS, headers={"x-api-key": good}).status_code == 200
    assert client.get(SETS, headers={"authorization": f"bearer  {good} "}).status_code == 200
    other = tokens["write"]
    name, of_read, secret = good.split("_", 2)
    for wrong in (
        good[:-1],
        good + "x",
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        f"{name}_{of_read}_{other.split('_', 2)[2]}",
        f"{name}_{'0' * 12}_{secret}",
        good.upper(),
        "' OR 1=1 --",
        "fewshot_",
        "x" * 10_000,
        "\x00é".encode(),
    ):
        token = wrong if isinstance(wrong, bytes) else wrong.encode()
        response = client.get(SETS, headers={b"authorization": b"Bearer " + token})
        assert_problem(response, 401, "unauthenticated")
    for header in ("Basic abc", "Bearer", "Bearer ", good):
        response = client.get(SETS, headers={"authorization": header})
        assert_problem(response, 401, "unauthenticated")


def test_a_scope_allows_what_it_says_and_no_more(
    client: TestClient, tokens: dict[str, str]
) -> None:
    for name, writes in (("read", False), ("write", True), ("admin", True)):
        head = bearer(tokens[name])
        assert client.get("/v1/models", headers=head).status_code == 200
        assert client.head("/v1/models", headers=head).status_code == 200
        assert client.get(SETS, headers=head).status_code == 200
        made = make_set(client, some(), head)
        if writes:
            assert made.status_code == 201
            continue
        missing = f"{SETS}/set_{'0' * 24}"
        for response in (
            made,
            add(client, f"set_{'0' * 24}", some(), head),
            client.patch(missing, json={}, headers=head),
            client.delete(missing, headers=head),
            client.delete(f"{missing}/examples/ex_{'0' * 24}", headers=head),
        ):
            assert_problem(response, 403, "forbidden")
    files = [("query_images", ("q", QUERIES[0]))]
    form = {"model": "mean", "support_labels": ["a"]}
    answer = client.post("/v1/predictions", data=form, files=files, headers=bearer(tokens["read"]))
    assert_problem(answer, 422, "label-count")  # allowed, and merely wrong


def test_another_keys_set_is_not_there(client: TestClient, keys: Keys) -> None:
    mine, yours = (bearer(keys.create(name, [Scope.write])[1]) for name in ("mine", "yours"))
    boss = bearer(keys.create("boss", [Scope.admin])[1])
    set_id = make_set(client, some(), mine).json()["support_set"]["id"]
    path = f"{SETS}/{set_id}"
    example = client.get(f"{path}/examples", headers=mine).json()["examples"][0]["id"]
    own = make_set(client, some(), yours).json()["support_set"]["id"]
    for head in (yours, boss):
        for response in (
            client.get(path, headers=head),
            client.patch(path, json={"name": "stolen"}, headers=head),
            client.delete(path, headers=head),
            add(client, set_id, some(seed=50), head),
            client.get(f"{path}/examples", headers=head),
            client.get(f"{path}/examples/{example}/image", headers=head),
            client.delete(f"{path}/examples/{example}", headers=head),
            ask_set(client, set_id, QUERIES, head),
            client.get(f"{path}/classifier.onnx", params={"model": "mean"}, headers=head),
            client.post(f"{path}/evaluations", headers=head),
        ):
            assert_problem(response, 404, "unknown-support-set")
            assert set_id not in response.text
        listed = client.get(SETS, headers=head).json()["support_sets"]
        assert set_id not in [one["id"] for one in listed]
    # Nor by way of a set of one's own.
    for response in (
        client.get(f"{SETS}/{own}/examples/{example}/image", headers=yours),
        client.delete(f"{SETS}/{own}/examples/{example}", headers=yours),
    ):
        assert_problem(response, 404, "unknown-example")
    assert client.get(path, headers=mine).json()["examples"] == len(some())
    # The same Idempotency-Key of two callers is two keys.
    once = {"idempotency-key": "k"}
    first = make_set(client, some(), mine | once).json()["support_set"]["id"]
    assert make_set(client, some(), yours | once).json()["support_set"]["id"] != first


def test_secrets_are_not_in_the_database(client: TestClient, tokens: dict[str, str]) -> None:
    with client.app.state.store.database.read() as connection:
        rows = connection.execute(text("SELECT * FROM api_keys")).all()
    stored = " ".join(str(value) for row in rows for value in row)
    assert len(rows) >= len(tokens)
    for token in tokens.values():
        assert token.split("_", 2)[2] not in stored


def test_a_request_without_a_key_is_refused_before_its_body_is_read(
    client: TestClient,
) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        assert sent, "the body was read before the answer"
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": SETS, "raw_path": SETS.encode(), "query_string": b"", "scheme": "http",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
        "server": ("test", 80), "client": ("test", 1),
    }  # fmt: skip
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 401


def test_keys_are_required_or_not_as_the_setting_says(zoo: Path, tmp_path: Path) -> None:
    settings = {"zoo": zoo, "device": "cpu", "data_dir": tmp_path}
    with TestClient(create_app(Settings(**settings, auth="required"))) as client:
        assert_problem(client.get("/v1/models"), 401, "unauthenticated")
        client.app.state.store.keys.create("k", [Scope.read])
    with TestClient(create_app(Settings(**settings, auth="off"))) as client:
        assert client.get("/v1/models").status_code == 200
        assert make_set(client).status_code == 201


@pytest.mark.parametrize(
    ("host", "auth", "keys", "warned"),
    [
        ("0.0.0.0", "off", 0, True),
        ("::", "off", 1, True),
        ("shop.example", "auto", 0, True),
        ("0.0.0.0", "auto", 1, False),
        ("0.0.0.0", "required", 0, False),
        ("127.0.0.2", "off", 0, False),
        ("::1", "auto", 0, False),
        ("localhost", "off", 0, False),
    ],
)
def test_a_service_that_is_open_to_other_machines_says_so_once(
    zoo: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    host: str,
    auth: Literal["auto", "required", "off"],
    keys: int,
    warned: bool,
) -> None:
    settings = Settings(zoo=zoo, device="cpu", host=host, auth=auth, data_dir=tmp_path)
    store = Store(settings)
    for number in range(keys):
        store.keys.create(str(number), [Scope.read])
    with TestClient(create_app(settings, store=store)):
        pass
    found = [record.message for record in caplog.records if "no API key" in record.message]
    assert len(found) == warned, found


@pytest.fixture
def belief_ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What is believed of keys is so for half a minute, which is over once this is called."""
    monkeypatch.setattr(keys_module, "BELIEVED_S", 30.0)
    now = [time.monotonic()]
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: now[0])
    return lambda: now.__setitem__(0, now[0] + 31)


def test_an_answer_about_a_key_is_believed_only_for_a_moment(
    keys: Keys, belief_ends: Callable[[], None]
) -> None:
    key, token = keys.create("brief", [Scope.read])
    assert keys.find(token) == key
    assert keys.known(token) == (True, key)
    keys.revoke(key.id)
    belief_ends()
    assert not keys.known(token)[0]
    assert keys.find(token) is None


def _fewshot(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FEWSHOT_DATA_DIR": str(folder), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "fewshot.py"), "keys", *arguments],
        capture_output=True, text=True, env=environment, cwd="/",
    )  # fmt: skip


def test_keys_are_made_listed_and_revoked_on_the_command_line(zoo: Path, tmp_path: Path) -> None:
    made = _fewshot(
        tmp_path, "create", "web shop", "--scopes", "read,write",
        "--rate-per-minute", "60", "--daily-quota", "1000", "--json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    listed = _fewshot(tmp_path, "list", "--json")
    assert json.loads(listed.stdout) == [{k: v for k, v in key.items() if k != "key"}]
    assert key["key"] not in listed.stdout
    assert (key["rate_per_minute"], key["daily_quota"]) == (60, 1000)
    assert "web shop" in _fewshot(tmp_path, "list").stdout
    assert _fewshot(tmp_path, "create", "[bold]shop[/red]").returncode == 0
    assert "[bold]shop[/red]" in _fewshot(tmp_path, "list").stdout

    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path)
    with TestClient(create_app(settings)) as client:
        assert client.get(SETS, headers=bearer(key["key"])).status_code == 200
        assert _fewshot(tmp_path, "revoke", key["id"]).returncode == 0
        assert_problem(client.get(SETS, headers=bearer(key["key"])), 401, "unauthenticated")

    for arguments, words in (
        (("revoke", "key_nobody"), "no key"),
        (("create", "x", "--scopes", "root"), "no scope 'root'"),
        (("create", "", "--scopes", "read"), "a key's name"),
    ):
        done = _fewshot(tmp_path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    plain = _fewshot(tmp_path, "create", "plain")
    assert plain.stdout.startswith("fewshot_")
    assert plain.stdout.count("\n") == 1


def test_no_date_or_scope_is_cut_in_a_narrow_table(tmp_path: Path) -> None:
    limits = ("--rate-per-minute", "60000", "--daily-quota", "1000000")
    made = _fewshot(
        tmp_path, "create", "web shop of the north", "--scopes", "read,write,admin", *limits
    )
    assert made.returncode == 0, made.stderr
    assert _fewshot(tmp_path, "revoke", f"key_{made.stdout.split('_')[1]}").returncode == 0
    narrow = {"COLUMNS": "80", "FEWSHOT_DATA_DIR": str(tmp_path)}
    table = CliRunner().invoke(fewshot, ["keys", "list"], env=narrow).stdout
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert len(re.findall(r" \d{4}-\d\d-\d\d ", table)) == 2


def test_the_database_is_named_and_made_by_create_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for arguments in (("list",), ("rotate", "key_x"), ("revoke", "key_x")):
        done = _fewshot(folder, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert str(folder / "fewshot.sqlite3") in done.stderr
        assert "--data-dir or DATABASE_URL" in done.stderr
        assert not folder.exists()
    for arguments in (("create", "a"), ("create", "b", "--json"), ("list",), ("list", "--json")):
        done = _fewshot(folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert f"database: {folder / 'fewshot.sqlite3'}" in done.stderr
        assert "fewshot.sqlite3" not in done.stdout
    unknown = _fewshot(folder, "revoke", "key_nobody")
    assert str(folder / "fewshot.sqlite3") in unknown.stderr


def test_a_file_is_no_data_folder(tmp_path: Path, zoo: Path) -> None:
    file = tmp_path / "bad.png"
    file.touch()
    runner = CliRunner()
    for command in (["serve", "--zoo", str(zoo), "--port", "0"], ["keys", "list"]):
        for folder in (file, file / "below"):
            refused = runner.invoke(fewshot, [*command, "--data-dir", str(folder)])
            assert refused.exit_code == 2
            assert refused.stderr == f"fewshot: --data-dir: {file} is a file; name a folder\n"


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    url = "postgresql://shop:secret-word@127.0.0.1:1/sets?password=secret-word"
    for command in (["create", "k"], ["list"]):
        refused = CliRunner().invoke(fewshot, ["keys", *command], env={"DATABASE_URL": url})
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "refused" in refused.stderr
        assert "(database: sets on 127.0.0.1:1)" in refused.stderr
        assert "secret" not in refused.output


def test_a_database_that_sqlite_cannot_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "fewshot.sqlite3").write_bytes(b"no database" * 2000)
    done = _fewshot(tmp_path, "list")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("fewshot: file is not a database (database: ")


def test_limits_are_what_every_database_can_keep(tmp_path: Path) -> None:
    for flag in ("--daily-quota", "--rate-per-minute"):
        for number in (2**31, 10**23):
            done = _fewshot(tmp_path, "create", "k", flag, str(number))
            assert done.returncode == 2
            assert "Traceback" not in done.stderr
        assert _fewshot(tmp_path, "create", "k", flag, str(2**31 - 1)).returncode == 0


def test_a_new_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert _fewshot(tmp_path, "create", "k").returncode == 0
    assert (tmp_path / "fewshot.sqlite3").stat().st_mode & 0o777 == 0o600


def test_the_first_key_says_which_sets_it_locks_out(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path)
    with TestClient(create_app(settings)) as client:
        for _ in range(2):
            assert make_set(client).status_code == 201
        first = _fewshot(tmp_path, "create", "first", "--json")
        assert "2 support sets made before this first key" in first.stderr
        head = bearer(json.loads(first.stdout)["key"])
        assert client.get(SETS, headers=head).json()["support_sets"] == []
    assert "before this first key" not in _fewshot(tmp_path, "create", "second").stderr
    with TestClient(create_app(settings.model_copy(update={"auth": "off"}))) as client:
        assert len(client.get(SETS).json()["support_sets"]) == 2


def test_a_key_with_a_new_text_keeps_its_sets_and_the_old_text_is_refused(
    zoo: Path, tmp_path: Path
) -> None:
    made = json.loads(_fewshot(tmp_path, "create", "shop", "--daily-quota", "50", "--json").stdout)
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path)
    with TestClient(create_app(settings)) as client:
        old = bearer(made["key"])
        set_id = make_set(client, some(), old).json()["support_set"]["id"]
        rotated = _fewshot(tmp_path, "rotate", made["id"])
        assert rotated.returncode == 0, rotated.stderr
        new = bearer(rotated.stdout.strip())
        assert_problem(client.get(SETS, headers=old), 401, "unauthenticated")
        assert ask_set(client, set_id, QUERIES, new).status_code == 200
        assert add(client, set_id, some(seed=50), new).status_code == 201
        newest = json.loads(_fewshot(tmp_path, "rotate", made["id"], "--json").stdout)
        assert newest.items() >= {k: v for k, v in made.items() if k != "key"}.items()
        assert_problem(client.get(SETS, headers=new), 401, "unauthenticated")
        assert client.get(SETS, headers=bearer(newest["key"])).status_code == 200
    assert _fewshot(tmp_path, "revoke", made["id"]).returncode == 0
    for name, words in ((made["id"], "was revoked"), ("key_nobody", "no key")):
        done = _fewshot(tmp_path, "rotate", name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr


def test_an_old_text_is_believed_only_for_a_moment(
    keys: Keys, belief_ends: Callable[[], None]
) -> None:
    """By a running service, whose key another process gives a new text."""
    key, old = keys.create("leaked", [Scope.read])
    assert keys.find(old) == key
    same, new = keys.rotate(key.id)
    assert (same, keys.find(new)) == (key, key)
    belief_ends()
    assert not keys.known(old)[0]
    assert keys.find(old) is None


def test_revoking_a_key_with_its_sets_leaves_nothing_of_it(zoo: Path, database_url: str) -> None:
    settings = Settings(zoo=zoo, device="cpu", threads=1, database_url=database_url)
    with TestClient(create_app(settings)) as client:
        keys = client.app.state.store.keys
        gone, kept = (keys.create(name, [Scope.write]) for name in ("gone", "kept"))
        once = {"idempotency-key": "k"}
        for _, token in (gone, kept):
            for headers in (bearer(token), bearer(token) | once):
                assert make_set(client, some(), headers).status_code == 201
        command = [sys.executable, str(ROOT / "fewshot.py"), "keys", "revoke", gone[0].id]
        for flags, words in (([], "is revoked"), (["--delete-sets"], "2 of its support sets")):
            done = subprocess.run(
                command + flags, capture_output=True, text=True,
                env=os.environ | {"DATABASE_URL": database_url},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert words in done.stdout
        assert_problem(client.get(SETS, headers=bearer(gone[1])), 401, "unauthenticated")
        assert len(client.get(SETS, headers=bearer(kept[1])).json()["support_sets"]) == 2
        with client.app.state.store.database.read() as connection:
            for key, count in ((gone[0], 0), (kept[0], 1)):
                mine = {"owner": key.id}
                sets = text("SELECT count(*) FROM support_sets WHERE owner = :owner")
                images = text(
                    "SELECT count(*) FROM examples JOIN support_sets ON set_id = support_sets.id "
                    "WHERE owner = :owner"
                )
                answers = text("SELECT count(*) FROM replays WHERE owner = :owner")
                found = [connection.execute(q, mine).scalar() for q in (sets, images, answers)]
                assert found == [2 * count, 2 * count * len(some()), count]
            orphans = text(
                "SELECT count(*) FROM examples WHERE set_id NOT IN (SELECT id FROM support_sets)"
            )
            assert connection.execute(orphans).scalar() == 0


def test_the_help_says_that_admin_allows_no_more_than_write() -> None:
    shown = CliRunner().invoke(fewshot, ["keys", "create", "--help"], env={"COLUMNS": "300"})
    assert "admin allows no more than write today" in shown.stdout


def test_a_key_revoked_while_its_request_was_on_the_way_writes_nothing(
    client: TestClient, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the body of a request took longer than the revocation: the key was looked up
    before."""
    monkeypatch.setattr("service.store.keys.BELIEVED_S", 60.0)
    key, token = keys.create("gone", [Scope.write])
    mine = bearer(token)
    set_id = make_set(client, some(), mine).json()["support_set"]["id"]
    example = client.get(f"{SETS}/{set_id}/examples", headers=mine).json()["examples"][0]["id"]
    keys.revoke(key.id)
    assert client.get(f"{SETS}/{set_id}", headers=mine).status_code == 200, "still believed"
    for response in (
        make_set(client, some(), mine),
        add(client, set_id, some(), mine),
        client.patch(f"{SETS}/{set_id}", json={"name": "x"}, headers=mine),
        client.delete(f"{SETS}/{set_id}/examples/{example}", headers=mine),
        client.delete(f"{SETS}/{set_id}", headers=mine),
    ):
        assert_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_no_more_sets_are_made_at_once_than_may_be_kept(zoo: Path, database_url: str) -> None:
    store = Store(Settings(zoo=zoo, device="cpu", database_url=database_url, max_sets=4))
    start = threading.Barrier(12)

    def make(_: int) -> int:
        start.wait()
        try:
            store.sets.create("crowd", "", {}, None, [], lambda _: Answer(201, b""))
        except TooManySets:
            return 0
        return 1

    try:
        with ThreadPoolExecutor(12) as threads:
            assert sum(threads.map(make, range(12))) == 4
        assert len(store.sets.page("crowd", 100)) == 4
    finally:
        store.database.close()
