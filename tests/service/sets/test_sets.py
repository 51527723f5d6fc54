"""Support sets as resources: made, listed, changed, deleted. On both databases."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.asking import SETS, add, ask_set, assert_problem, make_set, task, zipped
from tests.service.sets.making import QUERIES, Clock, made


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
        {"label": "a", "examples": 2},
        {"label": "b", "examples": 2},
    ]
    assert full["support_set"]["bytes"] == sum(len(data) for _, data in support)


def test_a_zip_or_one_label_for_all_says_the_same(client: TestClient) -> None:
    support = task("ab", 2)
    files = {f"{label}/{i}.png": data for i, (label, data) in enumerate(support)}
    archive = client.get(f"{SETS}/{made(client, [], archive=zipped(files))}").json()
    assert archive["classes"] == [{"label": "a", "examples": 2}, {"label": "b", "examples": 2}]
    one = made(client, support, labels=["x"])
    assert client.get(f"{SETS}/{one}").json()["classes"] == [{"label": "x", "examples": 4}]


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
    many = {str(i): "x" for i in range(1001)}
    for wrong in (
        {"revision": 9}, {"name": 3}, {"ttl": 0}, {"ttl": 10**12}, {"ttl": True}, {"name": "a\nb"},
        {"labels": many}, [],
    ):  # fmt: skip
        assert_problem(client.patch(path, json=wrong), 422, "invalid-request")
    assert client.get(path).json() == found


def test_a_patch_that_makes_no_difference_is_no_edit(client: TestClient, clock: Clock) -> None:
    set_id = made(client, task("ab", 1), name="old", metadata='{"a": 1}', ttl=100)
    path = f"{SETS}/{set_id}"
    before = client.get(path).json()
    clock.now += 10
    for same in ({}, {"name": "old"}, {"metadata": {"a": 1}, "ttl": 100, "labels": {"a": "a"}}):
        response = client.patch(path, json=same, headers={"If-Match": '"1"'})
        assert (response.status_code, response.headers["etag"]) == (200, '"1"')
        after = response.json()
        assert after["expires_at"] > before["expires_at"]  # but it is a use
        assert after | {"expires_at": None} == before | {"expires_at": None}
    assert client.patch(path, json={"labels": {"a": "c"}}).json()["revision"] == 2


def test_classes_are_renamed_all_at_once(client: TestClient) -> None:
    set_id = made(client, task("abc", 1))
    path = f"{SETS}/{set_id}"
    before = client.get(f"{path}/examples").json()["examples"]
    probabilities = ask_set(client, set_id, QUERIES).json()["predictions"][0]["probabilities"]
    found = client.patch(path, json={"labels": {"a": "b", "b": " a "}, "name": "exchanged"}).json()
    assert [one["label"] for one in found["classes"]] == ["a", "b", "c"]
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
    ]] == ["a", "b"]  # fmt: skip
    for wrong, kind in (({"x": "y", "a": "z"}, "unknown-label"), ({"a": " "}, "invalid-label")):
        assert_problem(client.patch(path, json={"labels": wrong}), 422, kind)
    found = client.get(path).json()
    assert [(one["label"], one["examples"]) for one in found["classes"]] == [("a", 2), ("b", 1)]
    assert found["revision"] == 3


def test_a_class_is_renamed_in_whatever_spelling_it_was_sent(client: TestClient) -> None:
    [(_, first), (_, second)] = task("ab", 1)
    set_id = made(client, [("e\u0301t\u00e9", first), ("b", second)])
    path = f"{SETS}/{set_id}"
    changed = client.patch(path, json={"labels": {" \u00e9te\u0301 ": "summer"}})
    assert [one["label"] for one in changed.json()["classes"]] == ["b", "summer"]
    twice = client.patch(path, json={"labels": {"b": "c", " b": "d"}})
    detail = assert_problem(twice, 422, "invalid-request")["detail"]
    assert detail == "labels: one class is named twice"


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

    def edits(tag: str) -> list[httpx.Response]:
        return [
            client.patch(path, json={"name": "x"}, headers={"if-match": tag}),
            client.delete(path, headers={"if-match": tag}),
            client.delete(f"{path}/examples/{example}", headers={"if-match": tag}),
            add(client, set_id, [("q", QUERIES[0])], {"if-match": tag}),
        ]

    for tag in ('"2"', '"x"', '""', '"99999999999999999999"', '"2", "3"', '"2", W/"1"'):
        for response in edits(tag):
            document = assert_problem(response, 412, "revision-mismatch")
            assert document["revision"] == 1
            assert response.headers["etag"] == '"1"'
    # To read again would not help.
    for tag in ('W/"1"', "1", "nonsense", "", '"', '1, W/"1"'):
        for response in edits(tag):
            detail = assert_problem(response, 412, "revision-mismatch")["detail"]
            assert str(detail).startswith("If-Match: send the ETag with its quotes")
    assert add(client, set_id, [("q", QUERIES[0])], {"if-match": '"1"'}).status_code == 201
    assert client.patch(path, json={}, headers={"if-match": '"1", "2"'}).status_code == 200
    assert client.delete(path, headers={"if-match": "*"}).status_code == 204


def test_more_sets_than_allowed_are_refused(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", data_dir=tmp_path, max_sets=2)
    with TestClient(create_app(settings)) as client:
        first = made(client, [])
        made(client, [])
        assert_problem(make_set(client), 409, "too-many-sets")
        client.delete(f"{SETS}/{first}")
        assert make_set(client).status_code == 201


def test_metadata_of_every_kind_comes_back(client: TestClient) -> None:
    value = {
        "é\u0000'; DROP TABLE support_sets; --": [1.5, -(2**70), True, None, {"": "\U0001f600"}]
    }
    for sent in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert make_set(client, metadata=sent).json()["support_set"]["metadata"] == value
