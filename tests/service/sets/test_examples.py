"""The examples of a support set: added, listed, fetched, deleted. On both databases."""

from __future__ import annotations

import hashlib

from fastapi.testclient import TestClient
from PIL import Image

from tests.service.asking import (
    SETS,
    URN,
    add,
    ask,
    ask_set,
    assert_problem,
    encoded,
    make_set,
    noise,
    task,
)
from tests.service.sets.making import QUERIES, made


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
    assert results[3]["example"] == results[0]["example"]

    set_id = response.json()["support_set"]["id"]
    again = add(client, set_id, [("a", good[0]), ("z", good[1])])
    assert (again.status_code, again.headers["etag"]) == (200, '"1"')
    assert [r["status"] for r in again.json()["results"]] == ["duplicate"] * 2
    document = assert_problem(add(client, set_id, [("a", b"x"), ("a", b"")]), 422, "nothing-added")
    assert [one["file"]["index"] for one in document["rejected"]] == [0, 1]
    assert client.get(f"{SETS}/{set_id}").json()["revision"] == 1


def test_an_image_that_is_there_under_another_label_is_told(client: TestClient) -> None:
    one, other = encoded(noise(0)), encoded(noise(1))
    response = make_set(client, [("cat", one), ("dog", one), ("cat", one)])
    assert response.status_code == 201
    set_id, results = response.json()["support_set"]["id"], response.json()["results"]
    kept = results[0]["example"]
    assert [r["status"] for r in results] == ["created", "duplicate", "duplicate"]
    assert [r["example"] for r in results] == [kept] * 3
    assert [r["problem"] is None for r in results] == [True, False, True]

    answer = add(client, set_id, [("dog", one)])
    assert answer.status_code == 200
    [result] = answer.json()["results"]
    problem = result["problem"]
    assert (problem["type"], problem["status"]) == (URN + "labelled-otherwise", 409)
    assert problem["file"] == {"field": "images", "index": 0, "name": "0.png"}
    assert "already as 'cat'" in problem["detail"]

    # It tells what to do.
    assert f"delete {kept['id']} first" in problem["detail"]
    client.delete(f"{SETS}/{set_id}/examples/{kept['id']}")
    answer = add(client, set_id, [("dog", one), ("cat", other)])
    assert [r["problem"] for r in answer.json()["results"]] == [None, None]
    classes = answer.json()["support_set"]["classes"]
    assert [each["label"] for each in classes] == ["cat", "dog"]


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
    for mine, status in ((image.headers["etag"], 304), ('"other"', 200)):
        again = client.get(path, headers={"If-None-Match": mine})
        assert (again.status_code, again.headers["etag"]) == (status, image.headers["etag"])
        assert again.content == (b"" if status == 304 else jpeg)


def test_a_rotated_photo_is_measured_upright(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(noise(5, (20, 30, 3))), "JPEG", exif=exif)
    example = make_set(client, [("a", turned)]).json()["results"][0]["example"]
    assert (example["width"], example["height"]) == (20, 30)


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


def test_limits_of_a_set_reject_what_is_over(client: TestClient) -> None:
    results = make_set(client, task("abcdefg", 2)).json()["results"]
    assert [r["status"] for r in results] == ["created"] * 12 + ["rejected"] * 2
    assert results[12]["problem"]["type"] == "urn:fewshot:problem:support-set-full"
    big = [("a", encoded(noise(i, (400, 600, 3)))) for i in range(2)]  # about 720 kB each
    results = make_set(client, big).json()["results"]
    assert [r["status"] for r in results] == ["created", "rejected"]
