"""Support sets as resources: registered once, asked many times. On both databases."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import text

from service.app import create_app
from service.settings import Settings
from service.store.store import Store
from tests.service.asking import (
    SETS,
    add,
    ask,
    ask_set,
    assert_problem,
    encoded,
    make_set,
    noise,
    task,
    zipped,
)

QUERIES = [encoded(noise(900)), encoded(noise(901))]


class Clock:
    """Time that tests move."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def client(zoo: Path, database_url: str, clock: Clock) -> Iterator[TestClient]:
    settings = Settings(
        zoo=zoo, device="cpu", threads=1, database_url=database_url, max_body_mb=2, max_files=40,
        max_set_examples=12, max_set_mb=1, max_sets=200,
    )  # fmt: skip
    store = Store(settings)
    store.sets.clock = clock
    with TestClient(create_app(settings, store=store)) as client:
        yield client


def made(
    client: TestClient, support: list[tuple[str, bytes]] | None = None, **fields: object
) -> str:
    response = make_set(client, task() if support is None else support, **fields)
    assert response.status_code == 201, response.text
    set_id: str = response.json()["support_set"]["id"]
    return set_id


def test_a_set_is_made_empty_or_with_images(client: TestClient) -> None:
    empty = make_set(client, name=" glyphs ", metadata='{"team": ["a", 1, null]}', ttl=3600)
    found = empty.json()["support_set"]
    assert empty.status_code == 201
    assert empty.headers["location"] == f"{SETS}/{found['id']}"
    assert empty.headers["etag"] == '"1"'
    assert (found["name"], found["metadata"], found["ttl"]) == (
        "glyphs",
        {"team": ["a", 1, None]},
        3600,
    )
    assert (found["examples"], found["bytes"], found["classes"]) == (0, 0, [])
    assert client.get(empty.headers["location"]).json() == found
    assert client.post(SETS).status_code == 201  # nothing at all is an empty set, too

    support = task("ba", 2)
    full = make_set(client, support).json()
    assert [r["status"] for r in full["results"]] == ["created"] * 4
    assert full["support_set"]["classes"] == [
        {"label": "b", "examples": 2},
        {"label": "a", "examples": 2},
    ]
    assert full["support_set"]["bytes"] == sum(len(data) for _, data in support)


def test_a_zip_or_one_label_for_all_says_the_same(client: TestClient) -> None:
    support = task("ab", 2)
    files = {f"{label}/{i}.png": data for i, (label, data) in enumerate(support)}
    archive = client.get(f"{SETS}/{made(client, [], archive=zipped(files))}").json()
    assert archive["classes"] == [{"label": "a", "examples": 2}, {"label": "b", "examples": 2}]
    one = made(client, support, labels=["x"])
    assert client.get(f"{SETS}/{one}").json()["classes"] == [{"label": "x", "examples": 4}]


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_it_answers_as_sending_the_images_would(client: TestClient, model: str) -> None:
    support, set_id = task("cab", 2), made(client, task("cab", 2))
    stateless = ask(client, support, QUERIES, model=model, attention="maps", top_k=2).json()
    stored = ask_set(client, set_id, QUERIES, model=model, attention="maps", top_k=2).json()
    assert stored["predictions"] == stateless["predictions"]
    assert stored["classes"] == stateless["classes"] == ["c", "a", "b"]
    assert stored["model_ref"] == stateless["model_ref"] == f"{model}@1.0"
    assert stored["support_set_ref"] == f"{set_id}@1"
    assert stateless["support_set_ref"] is None


def test_adding_and_deleting_examples_is_seen_at_once(client: TestClient) -> None:
    support = task("ab", 1)
    set_id = made(client, support)
    new = ("c", QUERIES[0])
    assert add(client, set_id, [new]).headers["etag"] == '"2"'
    answer = ask_set(client, set_id, QUERIES).json()
    assert answer["support_set_ref"] == f"{set_id}@2"
    assert answer["predictions"][0]["label"] == "c"
    assert answer["predictions"] == ask(client, [*support, new], QUERIES).json()["predictions"]

    examples = client.get(f"{SETS}/{set_id}/examples").json()["examples"]
    gone = client.delete(f"{SETS}/{set_id}/examples/{examples[0]['id']}")
    assert (gone.status_code, gone.headers["etag"]) == (204, '"3"')
    answer = ask_set(client, set_id, QUERIES).json()
    assert answer["classes"] == ["b", "c"]
    left = [support[1], new]
    assert answer["predictions"] == ask(client, left, QUERIES).json()["predictions"]
    found = client.get(f"{SETS}/{set_id}").json()
    assert (found["examples"], found["bytes"]) == (2, sum(len(data) for _, data in left))
    again = client.delete(f"{SETS}/{set_id}/examples/{examples[0]['id']}")
    assert_problem(again, 404, "unknown-example")


def test_one_bad_file_does_not_sink_the_others(client: TestClient) -> None:
    good = [encoded(noise(i)) for i in range(3)]
    sent = [("a", good[0]), ("a", b"no image"), ("b", good[1]), ("b", good[0]), ("b", b"")]
    response = make_set(client, sent)
    assert response.status_code == 201
    results = response.json()["results"]
    assert [r["status"] for r in results] == [
        "created",
        "rejected",
        "created",
        "duplicate",
        "rejected",
    ]
    assert [r["index"] for r in results] == list(range(5))
    assert results[1]["problem"]["type"] == "urn:fewshot:problem:not-an-image"
    assert results[1]["problem"]["file"] == {"field": "images", "index": 1, "name": "1.png"}
    assert results[4]["problem"]["type"] == "urn:fewshot:problem:empty-file"
    assert results[3]["example"] == results[0]["example"]  # under its first label

    set_id = response.json()["support_set"]["id"]
    again = add(client, set_id, [("a", good[0]), ("z", good[1])])
    assert (again.status_code, again.headers["etag"]) == (200, '"1"')
    assert [r["status"] for r in again.json()["results"]] == ["duplicate"] * 2
    document = assert_problem(add(client, set_id, [("a", b"x"), ("a", b"")]), 422, "nothing-added")
    assert [one["file"]["index"] for one in document["rejected"]] == [0, 1]
    assert client.get(f"{SETS}/{set_id}").json()["revision"] == 1


def test_a_set_of_bad_files_alone_is_not_made(client: TestClient) -> None:
    before = client.get(SETS).json()
    assert_problem(make_set(client, [("a", b"x")]), 422, "nothing-added")
    assert client.get(SETS).json() == before


def test_images_come_back_byte_for_byte_under_their_true_type(client: TestClient) -> None:
    jpeg = encoded(noise(5, (20, 30, 3)), "JPEG")
    name = 'a"\r\nSet-Cookie: x=1;é.png'
    response = client.post(
        SETS, data={"labels": "a"}, files=[("images", (name, jpeg, "text/html"))]
    )
    result = response.json()["results"][0]["example"]
    assert (result["media_type"], result["width"], result["height"]) == ("image/jpeg", 30, 20)
    assert result["sha256"] == hashlib.sha256(jpeg).hexdigest()
    path = f"{SETS}/{response.json()['support_set']['id']}/examples/{result['id']}/image"
    image = client.get(path)
    assert image.content == jpeg
    assert image.headers["content-type"] == "image/jpeg"
    assert image.headers["x-content-type-options"] == "nosniff"
    assert image.headers["content-disposition"].startswith("attachment; filename*=UTF-8''a")
    assert "set-cookie" not in image.headers


def test_a_rotated_photo_is_measured_upright(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(noise(5, (20, 30, 3))), "JPEG", exif=exif)
    example = make_set(client, [("a", turned)]).json()["results"][0]["example"]
    assert (example["width"], example["height"]) == (20, 30)


def test_the_list_is_newest_first_and_pages_without_loss(client: TestClient, clock: Clock) -> None:
    ids = []
    clock.now += 1
    for index in range(5):
        clock.now += index % 2  # some are made in the same instant
        ids.append(made(client, [], name=f"n{index}"))
    seen: list[str] = []
    stamps: list[str] = []
    cursor = None
    while True:
        params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = client.get(SETS, params=params).json()
        seen += [one["id"] for one in page["support_sets"]]
        stamps += [one["created_at"] for one in page["support_sets"]]
        assert len(page["support_sets"]) <= 2
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert set(ids) == set(seen[:5])
    assert stamps == sorted(stamps, reverse=True)


def test_examples_are_listed_in_stored_order_page_by_page(client: TestClient) -> None:
    support = task("abcd", 2)
    path = f"{SETS}/{made(client, support)}/examples"
    seen, cursor = [], None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=params).json()
        seen += page["examples"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert [one["sha256"] for one in seen] == [
        hashlib.sha256(data).hexdigest() for _, data in support
    ]
    assert [one["label"] for one in seen] == [label for label, _ in support]


def test_patching_changes_what_is_sent_and_keeps_the_rest(client: TestClient) -> None:
    set_id = made(client, name="old", metadata='{"a": 1}', ttl=100)
    path = f"{SETS}/{set_id}"
    response = client.patch(path, json={"name": "new"})
    assert response.headers["etag"] == '"2"'
    found = response.json()
    assert (found["name"], found["metadata"], found["ttl"]) == ("new", {"a": 1}, 100)
    found = client.patch(path, json={"metadata": {"b": 2}, "ttl": None}).json()
    assert (found["name"], found["metadata"], found["ttl"]) == ("new", {"b": 2}, None)
    assert found["expires_at"] is None
    assert client.get(path).json() == found
    for wrong in ({"revision": 9}, {"name": 3}, {"ttl": 0}, {"ttl": 10**12}, {"name": "a\nb"}, []):
        assert_problem(client.patch(path, json=wrong), 422, "invalid-request")
    assert client.get(path).json() == found


def test_classes_are_renamed_all_at_once(client: TestClient) -> None:
    set_id = made(client, task("abc", 1))
    path = f"{SETS}/{set_id}"
    before = client.get(f"{path}/examples").json()["examples"]
    probabilities = ask_set(client, set_id, QUERIES).json()["predictions"][0]["probabilities"]
    found = client.patch(path, json={"labels": {"a": "b", "b": " a "}, "name": "exchanged"}).json()
    assert [one["label"] for one in found["classes"]] == ["b", "a", "c"]
    assert (found["revision"], found["name"]) == (2, "exchanged")
    after = client.get(f"{path}/examples").json()["examples"]
    assert [one["label"] for one in after] == ["b", "a", "c"]
    assert [one["id"] for one in after] == [one["id"] for one in before]
    now = ask_set(client, set_id, QUERIES).json()["predictions"][0]["probabilities"]
    exchanged = {"a": "b", "b": "a", "c": "c"}
    assert {exchanged[one["label"]]: one["probability"] for one in probabilities} == {
        one["label"]: one["probability"] for one in now
    }
    assert [one["label"] for one in client.patch(path, json={"labels": {"c": "a"}}).json()[
        "classes"
    ]] == ["b", "a"]  # fmt: skip
    for wrong, kind in (({"x": "y", "a": "z"}, "unknown-label"), ({"a": " "}, "invalid-label")):
        assert_problem(client.patch(path, json={"labels": wrong}), 422, kind)
    found = client.get(path).json()
    assert [(one["label"], one["examples"]) for one in found["classes"]] == [("b", 1), ("a", 2)]
    assert found["revision"] == 3


def test_deleting_leaves_nothing(client: TestClient) -> None:
    set_id = made(client)
    example = client.get(f"{SETS}/{set_id}/examples").json()["examples"][0]["id"]
    assert client.delete(f"{SETS}/{set_id}").status_code == 204
    for response in (
        client.get(f"{SETS}/{set_id}"),
        client.delete(f"{SETS}/{set_id}"),
        client.patch(f"{SETS}/{set_id}", json={}),
        client.get(f"{SETS}/{set_id}/examples"),
        client.get(f"{SETS}/{set_id}/examples/{example}/image"),
        client.delete(f"{SETS}/{set_id}/examples/{example}"),
        add(client, set_id, task()),
        ask_set(client, set_id, QUERIES),
    ):
        assert_problem(response, 404, "unknown-support-set")


def test_if_match_guards_every_edit(client: TestClient) -> None:
    set_id = made(client)
    path = f"{SETS}/{set_id}"
    example = client.get(f"{path}/examples").json()["examples"][0]["id"]
    for tag in ('"2"', 'W/"1"', "1", "nonsense", '"99999999999999999999"', '"2", "3"', ""):
        for response in (
            client.patch(path, json={"name": "x"}, headers={"if-match": tag}),
            client.delete(path, headers={"if-match": tag}),
            client.delete(f"{path}/examples/{example}", headers={"if-match": tag}),
            add(client, set_id, [("q", QUERIES[0])], {"if-match": tag}),
        ):
            document = assert_problem(response, 412, "revision-mismatch")
            assert document["revision"] == 1
            assert response.headers["etag"] == '"1"'
    assert add(client, set_id, [("q", QUERIES[0])], {"if-match": '"1"'}).status_code == 201
    assert client.patch(path, json={}, headers={"if-match": '"1", "2"'}).status_code == 200
    assert client.delete(path, headers={"if-match": "*"}).status_code == 204


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
    assert client.patch(f"{SETS}/{set_id}", json={}).headers["etag"] == '"3"'
    replayed = add(client, set_id, [("c", QUERIES[0])], key)
    assert (replayed.content, replayed.headers["etag"]) == (added.content, '"2"')
    assert client.get(f"{SETS}/{set_id}").json()["examples"] == 3

    clock.now += 24 * 3600 + 1
    assert make_set(client, support, {"idempotency-key": "order 66"}).json() != first.json()
    for bad in ("", "é".encode(), "x" * 256):
        response = make_set(client, support, {"idempotency-key": bad})
        assert_problem(response, 422, "invalid-request")


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


def test_limits_of_a_set_reject_what_is_over(client: TestClient) -> None:
    results = make_set(client, task("abcdefg", 2)).json()["results"]
    assert [r["status"] for r in results] == ["created"] * 12 + ["rejected"] * 2
    assert results[12]["problem"]["type"] == "urn:fewshot:problem:support-set-full"
    big = [("a", encoded(noise(i, (400, 600, 3)))) for i in range(2)]  # about 720 kB each
    results = make_set(client, big).json()["results"]
    assert [r["status"] for r in results] == ["created", "rejected"]


def test_more_sets_than_allowed_are_refused(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path, max_sets=2)
    with TestClient(create_app(settings)) as client:
        first = made(client, [])
        made(client, [])
        assert_problem(make_set(client), 409, "too-many-sets")
        client.delete(f"{SETS}/{first}")
        assert make_set(client).status_code == 201


def test_a_set_that_a_model_does_not_take_is_told_when_asked(client: TestClient) -> None:
    assert_problem(ask_set(client, made(client, []), QUERIES), 422, "no-support")
    assert_problem(ask_set(client, made(client, task("a")), QUERIES), 422, "one-class")
    many = made(client, task("abcdefg", 1))
    assert_problem(ask_set(client, many, QUERIES), 422, "too-many-classes")


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


def test_metadata_of_every_kind_comes_back(client: TestClient) -> None:
    value = {
        "é\u0000'; DROP TABLE support_sets; --": [1.5, -(2**70), True, None, {"": "\U0001f600"}]
    }
    for sent in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert make_set(client, metadata=sent).json()["support_set"]["metadata"] == value


def test_a_set_edited_while_it_is_asked_is_asked_as_it_is_then(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_id = made(client, task("abc", 1, seed=300))
    examples = client.get(f"{SETS}/{set_id}/examples").json()["examples"]
    store = client.app.state.store
    read = store.sets.stored

    def then_deleted(owner: str, which: str) -> object:
        """An example goes between the reading of the list and the loading of the images."""
        found = read(owner, which)
        if examples:
            store.sets.delete_example(owner, which, examples.pop()["id"])
        return found

    monkeypatch.setattr(store.sets, "stored", then_deleted)
    del examples[:2]
    answer = ask_set(client, set_id, QUERIES).json()
    assert answer["support_set_ref"] == f"{set_id}@2"
    assert answer["classes"] == ["a", "b"]

    which = made(client, task("abcdef", 1, seed=400))
    examples += client.get(f"{SETS}/{which}/examples").json()["examples"]
    assert_problem(ask_set(client, which, QUERIES), 409, "set-changed")


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
