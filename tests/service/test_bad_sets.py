"""A user's mistake, or malice, with stored sets: a problem document, and nothing is harmed.

On both databases: what one swallows, such as a NUL in a text, the other may refuse.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import onnx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
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
from tests.service.process import PATIENCE, serving
from tests.service.test_bad_archives import FAULTY, cut
from tests.service.test_bad_input import BROKEN

QUERY = [encoded(noise(99))]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(zoo: Path, database_url: str) -> Iterator[TestClient]:
    settings = Settings(
        zoo=zoo, device="cpu", threads=1, database_url=database_url,
        max_body_mb=2, max_archive_mb=1, max_files=40,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def set_id(client: TestClient) -> str:
    found: str = make_set(client, task()).json()["support_set"]["id"]
    return found


@pytest.fixture(autouse=True)
def _unharmed(client: TestClient, set_id: str) -> object:
    """After every fault the set is as it was, and answers as before."""

    def state() -> object:
        answer = ask_set(client, set_id, QUERY).json()
        shown = client.get(f"{SETS}/{set_id}").json()
        return answer["predictions"], shown, client.get(f"{SETS}/{set_id}/examples").json()

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("name", BROKEN)
def test_faulty_files_are_named(client: TestClient, set_id: str, name: str) -> None:
    make, kind = BROKEN[name]
    bad = make()
    for response in (
        make_set(client, [("a", bad)]),
        add(client, set_id, [("a", bad)]),
        make_set(client, archive=zipped({"a/x.png": bad, "b/y.png": b"no"})),
    ):
        document = assert_problem(response, 422, "nothing-added")
        assert document["rejected"][0]["type"] == f"urn:fewshot:problem:{kind}"
        assert document["file"]["index"] == 0
    good = encoded(noise(1))
    document = assert_problem(ask_set(client, set_id, [good, bad]), 422, kind)
    assert document["file"] == {"field": "query_images", "index": 1, "name": "q1.png"}


@pytest.mark.parametrize("to", ["a new set", "a set"])
def test_what_is_wrong_in_an_archive_does_not_sink_the_rest(client: TestClient, to: str) -> None:
    files = {
        "a/1.png": encoded(noise(71)),
        "a/2.png": b"no image",
        "b/": b"",
        "c" * 201 + "/1.png": encoded(noise(72)),
        "d/1.png": encoded(noise(73)),
        "notes.txt": b"hello",
    }
    sent = {"archive": zipped(files)}
    if to == "a new set":
        answer = make_set(client, **sent)
    else:
        answer = add(client, make_set(client).json()["support_set"]["id"], **sent)
    assert answer.status_code == 201, answer.text
    found = {
        one["filename"]: one["problem"] and one["problem"]["type"].rpartition(":")[2]
        for one in answer.json()["results"]
    }
    assert found == {
        "a/1.png": None,
        "a/2.png": "not-an-image",
        "b": "empty-class",
        "c" * 201 + "/1.png": "invalid-label",
        "d/1.png": None,
        "notes.txt": "bad-archive",
    }
    for one in answer.json()["results"]:
        if one["problem"]:
            where = {"field": "archive", "index": one["index"], "name": one["filename"]}
            assert one["problem"]["file"] == where


@pytest.mark.parametrize(("data", "kind"), FAULTY)
def test_of_a_faulty_archive_sets_take_what_is_whole_or_nothing(
    client: TestClient, data: bytes, kind: str
) -> None:
    empty = make_set(client).json()["support_set"]["id"]
    for answer in (make_set(client, archive=cut(data)), add(client, empty, archive=cut(data))):
        if answer.status_code == 422:
            assert_problem(answer, 422, kind)
            continue
        assert answer.status_code == 201, answer.text
        results = answer.json()["results"]
        faults = {one["problem"]["type"].rpartition(":")[2] for one in results if one["problem"]}
        assert faults == ({kind} if kind != "one-class" else set())  # which a set may have
        assert (
            answer.json()["support_set"]["examples"] == sum(not r["problem"] for r in results) > 0
        )


@pytest.mark.parametrize("where", ["name", "pixels", "checksum"])
def test_a_flipped_byte_in_an_archive_harms_one_image(client: TestClient, where: str) -> None:
    files = {f"a/{index}.png": encoded(noise(80 + index)) for index in range(3)}
    data = bytearray(zipped(files))
    local = data.find(b"PK\x03\x04", 4)  # of the second file
    data[local + {"name": 31, "pixels": 80, "checksum": 14}[where]] ^= 1
    if where == "checksum":
        data[data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 4) + 16] ^= 1
    made = make_set(client, archive=bytes(data))
    assert made.status_code == 201, made.text
    found = [one["problem"] and one["problem"]["type"] for one in made.json()["results"]]
    assert found == [None, "urn:fewshot:problem:bad-archive", None]
    assert made.json()["results"][1]["problem"]["file"] == {
        "field": "archive", "index": 1, "name": "a/1.png",
    }  # fmt: skip
    assert_problem(ask(client, queries=QUERY, archive=bytes(data)), 422, "bad-archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_that_is_twice_in_an_archive_is_told(client: TestClient) -> None:
    """Else one of the two images would be lost without a word."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, name in enumerate(
            ("a/", "a/", "a/1.png", "b/1.png", "a//1.png", "b/.x", "b/.x")
        ):
            archive.writestr(name, b"" if name.endswith("/") else encoded(noise(90 + index)))
    made = make_set(client, archive=buffer.getvalue())
    assert made.status_code == 201, made.text
    assert [
        (one["filename"], one["problem"] and one["problem"]["type"].rpartition(":")[2])
        for one in made.json()["results"]
    ] == [("a/1.png", "bad-archive"), ("b/1.png", None)]
    document = assert_problem(
        ask(client, queries=QUERY, archive=buffer.getvalue()), 422, "bad-archive"
    )
    assert "a/1.png is there more than once" in document["detail"]


def test_one_label_for_all_is_offered_where_it_is_taken(client: TestClient) -> None:
    made = make_set(client, task("ab", 1), labels=[])
    assert made.json()["detail"].endswith("in the same order, or one label for all")
    asked = ask(client, task("ab", 1), QUERY, support_labels=["a"])
    assert asked.json()["detail"].endswith("in the same order")


def test_an_archive_of_which_nothing_can_be_taken_is_refused(client: TestClient) -> None:
    for files in ({"notes.txt": b"x"}, {"a/": b"", "notes.txt": b"x"}):
        assert_problem(make_set(client, archive=zipped(files)), 422, "bad-archive")


@pytest.mark.parametrize(
    ("support", "fields", "status", "kind"),
    [
        (task("ab", 1), {"labels": ["a", "b", "c"]}, 422, "label-count"),
        (task("abc", 1), {"labels": ["a", "b"]}, 422, "label-count"),
        (task("ab", 1), {"labels": []}, 422, "label-count"),
        (task("ab", 1), {"labels": ["a", " "]}, 422, "invalid-label"),
        (task("ab", 1), {"labels": [""]}, 422, "invalid-label"),
        (task("ab", 1), {"labels": ["a\x00b"]}, 422, "invalid-label"),
        (task("ab", 1), {"labels": ["a\r\nSet-Cookie: x"]}, 422, "invalid-label"),
        (task("ab", 1), {"labels": ["b" * 201]}, 422, "invalid-label"),
        (task("ab", 1), {"labels": ["b" * (1 << 20)]}, 400, "malformed-request"),
        (task("ab", 1), {"archive": zipped({"a/1.png": b"x"})}, 422, "invalid-request"),
        ([], {"archive": b"no zip"}, 422, "bad-archive"),
        ([], {"archive": zipped({"../a/1.png": b"x"})}, 422, "bad-archive"),
        ([], {"archive": zipped({"a/1.png": bytes(3 << 19)})}, 422, "archive-too-large"),
        (task("a", 41), {}, 400, "malformed-request"),
    ],
)
def test_faulty_examples(
    client: TestClient,
    set_id: str,
    support: list[tuple[str, bytes]],
    fields: dict[str, object],
    status: int,
    kind: str,
) -> None:
    assert_problem(make_set(client, support, **fields), status, kind)
    assert_problem(add(client, set_id, support, **fields), status, kind)


@pytest.mark.parametrize("levels", [21, 300, 600, 900])
def test_deep_metadata_is_refused(client: TestClient, set_id: str, levels: int) -> None:
    deep = '{"a":' * levels + "1" + "}" * levels
    response = client.post(SETS, data={"metadata": deep})
    assert_problem(response, 422, "invalid-request")
    body = '{"metadata":' + deep + "}"
    kind = {"content-type": "application/json"}
    response = client.patch(f"{SETS}/{set_id}", content=body, headers=kind)
    assert_problem(response, 422, "invalid-request")


def test_json_is_bounded_more_tightly_than_images(client: TestClient, set_id: str) -> None:
    body = b'{"metadata":[' + b"[]," * 90_000 + b"0]}"
    for headers in ({"content-type": "application/json"}, {}):
        response = client.patch(f"{SETS}/{set_id}", content=body, headers=headers)
        assert_problem(response, 413, "body-too-large")


def test_adding_nothing_is_told(client: TestClient, set_id: str) -> None:
    assert_problem(add(client, set_id), 422, "no-support")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 201},
        {"name": "a\x00b"},
        {"name": "a\r\nLocation: /evil"},
        {"metadata": "[1]"},
        {"metadata": "{"},
        {"metadata": "null"},
        {"metadata": '{"a": NaN}'},
        {"metadata": '{"a": "\\ud800"}'},
        {"metadata": '{"a":' * 30 + "1" + "}" * 30},
        {"metadata": '{"a":' * 10_000},
        {"metadata": json.dumps({"a": "x" * 20_000})},
        {"metadata": '{"a": ' + "9" * 5000 + "}"},
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": 10**10},
        {"ttl": 10**30},
        {"ttl": "soon"},
        {"ttl": "1.5"},
    ],
)
def test_faulty_fields_make_no_set(client: TestClient, fields: dict[str, object]) -> None:
    before = len(client.get(SETS, params={"limit": 100}).json()["support_sets"])
    assert_problem(make_set(client, **fields), 422, "invalid-request")
    assert len(client.get(SETS, params={"limit": 100}).json()["support_sets"]) == before


def test_the_limits_that_are_told_are_those_that_hold(client: TestClient) -> None:
    told = client.get("/v1/limits").json()
    room = told["metadata_bytes"] - len('{"a": ""}')
    for most, more in (
        (
            {"name": "x" * told["set_name_characters"]},
            {"name": "x" * (told["set_name_characters"] + 1)},
        ),
        ({"ttl": told["ttl_s"]}, {"ttl": told["ttl_s"] + 1}),
        (
            {"metadata": json.dumps({"a": "x" * room})},
            {"metadata": json.dumps({"a": "x" * (room + 1)})},
        ),
    ):
        assert make_set(client, **most).status_code == 201
        assert_problem(make_set(client, **more), 422, "invalid-request")
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for form in ("CreateSupportSetForm", "SupportSetPatch"):
        fields = schemas[form]["properties"]
        for field, limit in (("name", "200 "), ("metadata", "16384 "), ("ttl", "315360000;")):
            assert limit in fields[field]["description"], (form, field)


def test_misspelt_fields_are_named_and_make_no_set(client: TestClient, set_id: str) -> None:
    before = len(client.get(SETS, params={"limit": 100}).json()["support_sets"])
    files = [("image", ("a.png", encoded(noise(1))))]
    for refused, named in (
        (client.post(SETS, data={"label": "a"}, files=files), "label, image; there are "),
        (client.post(SETS, data={"nam": "a"}), "nam; there are "),
        (
            client.post(f"{SETS}/{set_id}/examples", data={"labels": "a"}, files=files),
            "image; there ",
        ),
        (ask_set(client, set_id, QUERY, topk="1"), "topk; there are model, "),
        (client.post(f"{SETS}/{set_id}/evaluations", data={"model": "mean"}), "model; there are "),
    ):
        detail = assert_problem(refused, 422, "invalid-request")["detail"]
        assert detail.startswith(f"no such field: {named}")
    assert len(client.get(SETS, params={"limit": 100}).json()["support_sets"]) == before


def test_misspelt_parameters_are_named(client: TestClient, set_id: str) -> None:
    this, [one, *_] = f"{SETS}/{set_id}", client.get(f"{SETS}/{set_id}/examples").json()["examples"]
    for method, path, there in (
        ("GET", SETS, "limit, cursor"),
        ("GET", f"{this}/examples", "limit, cursor"),
        ("GET", f"{this}/examples/{one['id']}/image", "none"),
        ("DELETE", f"{this}/examples/{one['id']}", "none"),
        ("GET", this, "none"),
        ("PATCH", this, "none"),
        ("DELETE", this, "none"),
        ("GET", "/v1/models", "none"),
        ("GET", "/v1/models/mean", "none"),
        ("GET", "/v1/limits", "none"),
    ):
        body = {"name": "x"} if method == "PATCH" else None
        refused = client.request(method, path, params={"page_size": "1"}, json=body)
        detail = assert_problem(refused, 422, "invalid-request")["detail"]
        assert detail == f"no such parameter: page_size; there are {there}"
    assert client.get(this).json()["examples"] > 0
    twice = client.get(SETS, params={"limit": ["1", "2"]})
    assert_problem(twice, 422, "invalid-request")


def test_what_is_given_twice_is_named_where_one_is_taken(client: TestClient, set_id: str) -> None:
    before = client.get(SETS, params={"limit": 100}).json()
    archives = [("archive", (f"{i}.zip", zipped({f"a/{i}.png": QUERY[0]}))) for i in range(2)]
    examples, file = f"{SETS}/{set_id}/examples", f"{SETS}/{set_id}/classifier.onnx"
    query = [("query_images", ("q.png", QUERY[0]))]
    for refused, (kind, named) in (
        (client.post(SETS, files=archives), ("field", "archive")),
        (client.post(examples, files=archives), ("field", "archive")),
        (
            client.post(SETS, data={"name": ["a", "a"], "ttl": ["60", "600"]}),
            ("field", "name, ttl"),
        ),
        (
            client.post(
                f"{SETS}/{set_id}/predictions",
                data={"model": ["mean", "mean"], "top_k": ["1", "2"]},
                files=query,
            ),
            ("field", "model, top_k"),
        ),
        (client.get(file, params={"model": ["mean", "solver"]}), ("parameter", "model")),
    ):
        detail = assert_problem(refused, 422, "invalid-request")["detail"]
        assert detail == f"{kind} given more than once: {named}; send one of it"
    assert client.get(SETS, params={"limit": 100}).json() == before


def test_names_are_data_and_never_statements_or_headers(client: TestClient) -> None:
    evil = "x'); DROP TABLE support_sets; -- \" ; ../../etc %00 <script>"
    files = [("images", (evil + "\r\nX-Evil: 1", encoded(noise(7))))]
    response = client.post(SETS, data={"name": evil, "labels": evil}, files=files)
    assert response.status_code == 201
    made = response.json()["support_set"]
    assert made["name"] == evil
    assert made["classes"] == [{"label": evil, "examples": 1}]
    example = response.json()["results"][0]["example"]["id"]
    image = client.get(f"{SETS}/{made['id']}/examples/{example}/image")
    assert image.status_code == 200
    assert "x-evil" not in image.headers
    assert re.fullmatch(
        r"attachment; filename\*=UTF-8''[A-Za-z0-9%._~-]+", image.headers["content-disposition"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "set_x", "x", "SET_" + "0" * 24, "set_" + "0" * 24, "set_" + "0" * 25, "' OR '1'='1",
        "%00", "..%2f..%2fetc", "\u0660" * 24, "set_" + "\u0660" * 24, "x" * 5000,
    ],
)  # fmt: skip
def test_unknown_ids(client: TestClient, set_id: str, wrong: str) -> None:
    for method in ("GET", "DELETE"):
        response = client.request(method, f"{SETS}/{wrong}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        response = client.request(method, f"{SETS}/{set_id}/examples/{wrong}")
        assert response.status_code in (404, 405)
    assert client.get(f"{SETS}/{set_id}/examples/{wrong}/image").status_code == 404
    assert add(client, wrong, task()).status_code == 404
    assert ask_set(client, wrong, QUERY).status_code == 404


def test_made_up_cursors_and_limits(client: TestClient, set_id: str) -> None:
    def packed(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    cursors = [
        "", "x", "%%%", "é", packed([]), packed({}), packed([1e400, "x"]), packed([1.0, "\0"]),
        packed([float("nan"), "x"]), packed(["1.0", "x"]), packed([1.0, "x", 2]), packed([-1]),
        packed([10**30]), packed([True, True]), packed([None]), packed("[" * 100),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
    ]  # fmt: skip
    for path in (SETS, f"{SETS}/{set_id}/examples"):
        for cursor in cursors:
            response = client.get(path, params={"cursor": cursor})
            assert_problem(response, 422, "invalid-request")
        for limit in ("0", "101", "-1", "many", "1e3", str(10**30)):
            assert_problem(client.get(path, params={"limit": limit}), 422, "invalid-request")
    # A cursor is a place, not a permission: one of another list is harmless.
    assert client.get(SETS, params={"cursor": packed([9e99, "zzz"])}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-type": "application/json"}, b'{"name": "x"}'),
        ({"content-type": "text/plain"}, b"x"),
        ({"content-type": "application/octet-stream"}, b"\0"),
    ],
)
def test_bodies_that_are_no_form(
    client: TestClient, set_id: str, headers: dict[str, str], content: bytes
) -> None:
    for path in (SETS, f"{SETS}/{set_id}/examples", f"{SETS}/{set_id}/predictions"):
        response = client.post(path, content=content, headers=headers)
        assert_problem(response, 415, "not-multipart")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"name": null}', b'{"name": "\\ud800"}',
             b'{"metadata": {"a": "\\ud800"}}', b'{"metadata": {"a": NaN}}', b'{"ttl": 1e400}',
             b'{"metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, b"\xff\xfe"],
)  # fmt: skip
def test_bodies_that_are_no_patch(client: TestClient, set_id: str, body: bytes) -> None:
    response = client.patch(
        f"{SETS}/{set_id}", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/json"])
def test_a_patch_that_is_no_json_says_what_to_send(
    client: TestClient, set_id: str, kind: str | None
) -> None:
    headers = {"content-type": kind} if kind else {}
    response = client.patch(f"{SETS}/{set_id}", content=b'{"name": "x"}', headers=headers)
    document = assert_problem(response, 415, "not-json")
    assert document["detail"] == "send a JSON object as application/json"
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = client.patch(f"{SETS}/{set_id}", content=b"{}", headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "send a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"name": "x",', "not JSON: Expecting property name enclosed in double quotes, "
         "at character 13"),
    ],
)  # fmt: skip
def test_a_patch_s_fault_is_told_in_words_and_by_its_place(
    client: TestClient, set_id: str, body: bytes, told: str
) -> None:
    headers = {"content-type": "application/json"}
    response = client.patch(f"{SETS}/{set_id}", content=body, headers=headers)
    document = assert_problem(response, 422, "invalid-request")
    assert document["detail"] == f"body: {told}"
    assert document["errors"] == [{"field": "body", "message": told}]


def test_of_many_faults_the_first_ones_are_told(client: TestClient, set_id: str) -> None:
    labels = {f"label {index}": index for index in range(10_000)}
    answer = client.patch(f"{SETS}/{set_id}", json={"labels": labels})
    document = assert_problem(answer, 422, "invalid-request")
    assert [fault["field"] for fault in document["errors"]] == [
        f"labels.label {index}" for index in range(20)
    ]
    assert document["detail"].endswith("; and 9980 more")
    assert len(answer.content) < 5000


def test_a_body_over_the_limit_is_413(client: TestClient, set_id: str) -> None:
    huge = [("a", bytes(3 << 20))]
    assert_problem(make_set(client, huge), 413, "body-too-large")
    assert_problem(add(client, set_id, huge), 413, "body-too-large")


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "nope"}, 404, "unknown-model"),
        ({"model": "\x00"}, 404, "unknown-model"),
        ({"top_k": 0}, 422, "invalid-request"),
        ({"steps": 3}, 422, "no-adaptation"),
        ({"orders": 2}, 422, "no-orders"),
        ({"model": "descent", "steps": 51}, 422, "adaptation-range"),
        ({"model": "descent", "inner_lr": "nan"}, 422, "invalid-request"),
        ({"model": "descent", "steps": 50, "inner_lr": 1e6}, 422, "adaptation-diverged"),
        ({"attention": "all"}, 422, "invalid-request"),
    ],
)
def test_faulty_questions(
    client: TestClient, set_id: str, fields: dict[str, object], status: int, kind: str
) -> None:
    assert_problem(ask_set(client, set_id, QUERY, **fields), status, kind)
    assert_problem(ask_set(client, set_id, []), 415, "not-multipart")
    assert_problem(ask_set(client, set_id, QUERY * 31), 422, "too-many-images")


def test_every_command_of_the_document_works_when_pasted(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--data-dir", tmp_path) as server:
        document = httpx.get(f"{server.base}/openapi.json", timeout=PATIENCE).json()
        tried = 0
        for operation in (one for path in document["paths"].values() for one in path.values()):
            text = operation["description"].replace("http://127.0.0.1:8000", server.base)
            for block in re.findall(r"(?:^    .*\n?)+", text, re.MULTILINE):
                if "curl" not in block and "python3" not in block:
                    continue
                tried += 1
                script = textwrap.dedent(block).replace(
                    "curl ", "curl --silent --show-error --fail-with-body "
                )
                script = script.replace("-o classifier.onnx", f"-o {tmp_path}/classifier.onnx")
                done = subprocess.run(
                    ["bash", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True,
                    env=os.environ,
                )  # fmt: skip
                assert done.returncode == 0, (block, done.stdout, done.stderr)
                if "-o classifier.onnx" in block:
                    file = (tmp_path / "classifier.onnx").read_bytes()
                    onnx.checker.check_model(file, full_check=True)
                else:
                    assert json.loads(done.stdout), block
        assert tried >= 8
