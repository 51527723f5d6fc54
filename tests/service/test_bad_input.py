"""A user's mistake gets a problem document that says what and which file, and harms nothing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.images import Upload
from service.problems import FileRef, LabelCount
from service.tasks import pair
from tests.service.asking import ask, assert_problem, encoded, noise, task, zipped

QUERY = [encoded(noise(99))]


@pytest.fixture(autouse=True)
def _still_answers(client: TestClient) -> object:
    """After every fault the service answers as before."""
    before = ask(client, task(), QUERY).json()["predictions"]
    yield
    assert ask(client, task(), QUERY).json()["predictions"] == before


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_a_misspelt_field_is_named_with_those_that_there_are(client: TestClient) -> None:
    refused = ask(client, task(), QUERY, step="3", topk="1")
    detail = assert_problem(refused, 422, "invalid-request")["detail"]
    assert detail.startswith("no such field: step, topk; there are model, support_images, ")
    assert "steps" in detail
    url = "/v1/predictions?model=mean"
    files = [("support_images", ("a", b"x")), ("query_images", ("b", b"y"))]
    refused = client.post(url, data={"model": "mean"}, files=files)
    detail = assert_problem(refused, 422, "invalid-request")["detail"]
    assert detail == "no such parameter of the address: model; send fields in the form"


@pytest.mark.parametrize(
    ("support", "queries", "fields", "status", "kind"),
    [
        ([], QUERY, {}, 422, "no-support"),
        (task(), [], {}, 422, "invalid-request"),
        (task("a"), QUERY, {}, 422, "one-class"),
        (task(), QUERY, {"support_labels": ["a"]}, 422, "label-count"),
        (task(), QUERY, {"step": "3"}, 422, "invalid-request"),
        (task(), QUERY, {"support_labels": ["a"] * 7}, 422, "label-count"),
        (task("abcdefg", 1), QUERY, {}, 422, "too-many-classes"),
        (task("ab", 6), QUERY, {}, 422, "too-many-shots"),
        (task("abcdef", 4), QUERY, {}, 422, "too-many-images"),
        (task(), QUERY * 31, {}, 422, "too-many-images"),
        (task(), QUERY, {"model": "nope"}, 404, "unknown-model"),
        (task(), QUERY, {"model": "../mean"}, 404, "unknown-model"),
        (task(), QUERY, {"model": "\x00\ud7ff\n"}, 404, "unknown-model"),
        (task("ab", 1), QUERY, {"support_labels": ["a", ""]}, 422, "invalid-label"),
        (task("ab", 1), QUERY, {"support_labels": ["a", "  "]}, 422, "invalid-label"),
        (task("ab", 1), QUERY, {"support_labels": ["a", "b" * 201]}, 422, "invalid-label"),
        (task("ab", 1), QUERY, {"support_labels": ["a", "b\x07"]}, 422, "invalid-label"),
        (task("ab", 1), QUERY, {"support_labels": ["a", "b" * 100_000]}, 400, "malformed-request"),
        (task(), QUERY, {"attention": "all"}, 422, "invalid-request"),
        (task(), QUERY, {"top_k": 0}, 422, "invalid-request"),
        (task(), QUERY, {"top_k": "many"}, 422, "invalid-request"),
        (task(), QUERY, {"steps": 3}, 422, "no-adaptation"),
        (task(), QUERY, {"inner_lr": 0.1}, 422, "no-adaptation"),
        (task(), QUERY, {"orders": 2}, 422, "no-orders"),
        (task(), QUERY, {"orders": 0}, 422, "invalid-request"),
        (task(), QUERY, {"orders": 17}, 422, "invalid-request"),
        (task(), QUERY, {"model": "descent", "steps": 51}, 422, "adaptation-range"),
        (task(), QUERY, {"model": "descent", "steps": -1}, 422, "invalid-request"),
        (task(), QUERY, {"model": "descent", "inner_lr": 1e7}, 422, "adaptation-range"),
        (task(), QUERY, {"model": "descent", "inner_lr": "nan"}, 422, "invalid-request"),
        (task(), QUERY, {"model": "descent", "inner_lr": "inf"}, 422, "adaptation-range"),
        (
            task(),
            QUERY,
            {"model": "descent", "steps": 50, "inner_lr": 1e6},
            422,
            "adaptation-diverged",
        ),
    ],
)
def test_faulty_tasks(
    client: TestClient,
    support: list[tuple[str, bytes]],
    queries: list[bytes],
    fields: dict[str, object],
    status: int,
    kind: str,
) -> None:
    assert_problem(ask(client, support, queries, **fields), status, kind)


def test_one_of_a_kind_reads_well(client: TestClient) -> None:
    alone = ask(client, task()[:1], QUERY)
    assert assert_problem(alone, 422, "one-class")["detail"].startswith("all support images are of")
    with pytest.raises(LabelCount, match="support images: 2, labels: 1; send one label per image"):
        pair([Upload(FileRef("support", i, "x"), b"") for i in range(2)], ["cat"], 9)


def test_an_unknown_model_lists_the_known_ones(client: TestClient) -> None:
    for response in (
        ask(client, task(), QUERY, model="meany"),
        client.get("/v1/models/meany"),
    ):
        problem = assert_problem(response, 404, "unknown-model")
        assert problem["known"] == ["attentive", "descent", "mean"]
        assert problem["detail"] == (
            "unknown model 'meany'; did you mean mean? `GET /v1/models` names all"
        )


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"not an image at all", "not-an-image"),
    "empty": (lambda: b"", "empty-file"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
    "truncated png": (lambda: encoded(noise(1, (64, 64)))[:900], "damaged-image"),
    "truncated jpeg": (lambda: encoded(noise(1, (64, 64)), "JPEG")[:900], "damaged-image"),
    "png header only": (lambda: encoded(noise(1))[:20], "damaged-image"),
    "damaged png": (
        lambda: encoded(noise(1, (64, 64))).replace(b"IDAT", b"IDAT\xff\xff", 1),
        "damaged-image",
    ),
    "bomb": (lambda: png_header(60_000, 60_000), "image-too-large"),
    "bomb beyond pillow's own limit": (lambda: png_header(2**31 - 1, 2**31 - 1), "image-too-large"),
    "thread": (lambda: encoded(Image.new("L", (100_000, 1))), "image-too-large"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_faulty_files_are_named(client: TestClient, name: str) -> None:
    make, kind = BROKEN[name]
    good = encoded(noise(1))
    support = [("a", good), ("b", good), ("b", make())]
    document = assert_problem(ask(client, support, QUERY), 422, kind)
    assert document["file"] == {"field": "support_images", "index": 2, "name": "2.png"}
    document = assert_problem(ask(client, task(), [good, make(), good]), 422, kind)
    assert document["file"] == {"field": "query_images", "index": 1, "name": "q1.png"}


def test_the_first_of_several_faulty_files_is_named(client: TestClient) -> None:
    big_and_bad = encoded(noise(1, (900, 900)))[:-2000]
    support = [("a", big_and_bad), ("b", b"x"), ("b", b"")]
    assert assert_problem(ask(client, support, QUERY), 422, "damaged-image")["file"]["index"] == 0


def test_a_bomb_is_refused_before_it_is_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", forbidden)
    support = [("a", png_header(20_000, 3_000)), ("b", b"")]
    with_bomb = ask(client, support, QUERY)
    monkeypatch.undo()
    assert_problem(with_bomb, 422, "image-too-large")


def test_a_name_that_is_not_utf8_or_printable_is_answered(client: TestClient) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmean\r\n'
        b'--x\r\nContent-Disposition: form-data; name="support_labels"\r\n\r\na\r\n'
        b'--x\r\nContent-Disposition: form-data; name="support_labels"\r\n\r\n\xff\xfe\r\n'
        b'--x\r\nContent-Disposition: form-data; name="support_images"; filename="a\xff\x01"\r\n'
        b"\r\nnothing\r\n"
        b'--x\r\nContent-Disposition: form-data; name="support_images"; filename="b"\r\n'
        b"\r\nnothing\r\n"
        b'--x\r\nContent-Disposition: form-data; name="query_images"; filename="c"\r\n'
        b"\r\nnothing\r\n--x--\r\n"
    )
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data; boundary=x; charset=hex"):
        response = client.post("/v1/predictions", content=body, headers={"content-type": kind})
        document = assert_problem(response, 422, "not-an-image")
        assert document["file"]["name"].isprintable()


@pytest.mark.parametrize(
    "label",
    ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937",
     "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u65e5\u672c\u3000\u8a9e",
     "a\u00a0b", "\u05d0\u200e1"],
)  # fmt: skip
def test_labels_in_every_spelling(client: TestClient, label: str) -> None:
    images = [encoded(noise(i)) for i in range(2)]
    found = ask(client, [(label, images[0]), ("b", images[1])], QUERY)
    assert found.json()["classes"] == sorted([label, "b"])
    zipped_too = zipped({f"{label}/1.png": images[0], "b/1.png": images[1]})
    found = ask(client, [], QUERY, archive=zipped_too)
    assert found.json()["classes"] == sorted([label, "b"])


@pytest.mark.parametrize(
    ("label", "fault"),
    [("a\u202eb", "cannot be printed"), ("a\u2066b", "cannot be printed"),
     ("a\u200bb", "cannot be printed"), ("a\ufeff", "cannot be printed"),
     ("a\u2028b", "cannot be printed"), ("a\x1bb", "cannot be printed"),
     ("\u200c", "is empty"), ("\u3000", "is empty")],
)  # fmt: skip
def test_labels_that_would_mislead_a_reader(client: TestClient, label: str, fault: str) -> None:
    images = [encoded(noise(i)) for i in range(2)]
    refused = ask(client, [(label, images[0]), ("b", images[1])], QUERY)
    assert fault in assert_problem(refused, 422, "invalid-label")["detail"]


def test_one_word_in_two_spellings_is_one_class(client: TestClient) -> None:
    """As folders of macOS and of other systems spell it."""
    composed, apart = "K\u00e4se", "Ka\u0308se"
    images = [encoded(noise(i)) for i in range(3)]
    shown = zip((composed, apart, "b"), images, strict=True)
    assert ask(client, list(shown), QUERY).json()["classes"] == [composed, "b"]


def test_a_label_cannot_smuggle_a_lone_surrogate(client: TestClient) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\\ud800\r\n'
        b'--x\r\nContent-Disposition: form-data; name="query_images"; filename="\\ud800"\r\n'
        b"\r\nnothing\r\n--x--\r\n"
    )
    kind = "multipart/form-data; boundary=x; charset=unicode_escape"
    response = client.post("/v1/predictions", content=body, headers={"content-type": kind})
    assert response.status_code in (404, 422)
    assert_problem(response, response.status_code, "unknown-model")


@pytest.mark.parametrize(
    ("headers", "content", "status", "kind"),
    [
        ({"content-type": "application/json"}, b"{}", 415, "not-multipart"),
        ({"content-type": "multipart/form-data"}, b"x", 400, "malformed-request"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"y", 400, "malformed-request"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"", 422, "invalid-request"),
        ({}, b"", 415, "not-multipart"),
    ],
)
def test_bodies_that_are_no_form(
    client: TestClient, headers: dict[str, str], content: bytes, status: int, kind: str
) -> None:
    assert_problem(client.post("/v1/predictions", content=content, headers=headers), status, kind)


def test_a_form_without_files_is_told_to_be_multipart(client: TestClient) -> None:
    response = client.post("/v1/predictions", data={"model": "mean", "query_images": "x"})
    assert_problem(response, 415, "not-multipart")


def test_text_in_place_of_a_file_is_told_in_plain_words(client: TestClient) -> None:
    response = ask(client, task(), (), query_images=["x"])
    document = assert_problem(response, 422, "invalid-request")
    assert document["detail"] == "query_images.0: this is text, not a file"


def test_file_inputs_left_empty_count_as_none(client: TestClient) -> None:
    response = ask(client, task(), QUERY, support_archive="", top_k="", steps="", inner_lr="")
    assert response.status_code == 200, response.text


def test_too_many_files_or_fields(client: TestClient) -> None:
    response = ask(client, [("a", b"x")] * 41, QUERY)
    assert_problem(response, 400, "malformed-request")
    response = ask(client, task(), QUERY, support_labels=["a"] * 41)
    assert_problem(response, 400, "malformed-request")


def test_images_and_archive_together(client: TestClient) -> None:
    archive = zipped({"a/1.png": encoded(noise(1)), "b/1.png": encoded(noise(2))})
    assert_problem(ask(client, task(), QUERY, archive=archive), 422, "invalid-request")


def test_unknown_addresses_and_methods(client: TestClient) -> None:
    assert_problem(client.get("/nothing"), 404, "not-found")
    assert_problem(client.get("/static/../settings.py"), 404, "not-found")
    assert_problem(client.get("/static/%2e%2e/settings.py"), 404, "not-found")
    response = client.get("/v1/predictions")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"
    response = client.put("/v1/support-sets/set_0")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "DELETE, GET, HEAD, PATCH"


def test_a_slash_too_many_is_told_and_leads_nowhere(client: TestClient) -> None:
    """A redirect would lose the prefix of a proxy, and send the body to whatever is there."""
    for method, path in (
        ("POST", "/v1/predictions/"),
        ("GET", "/v1/models/mean/"),
        ("GET", "/docs/"),
    ):
        response = client.request(method, path, follow_redirects=False)
        detail = assert_problem(response, 404, "not-found")["detail"]
        assert detail == "no such address; leave out the slash at its end"
        assert "location" not in response.headers
    document = assert_problem(client.get("/nothing/"), 404, "not-found")
    assert "slash" not in str(document["detail"])


def test_random_bytes_never_make_a_server_error(client: TestClient) -> None:
    """Files that start like an image and go on at random."""
    rng = np.random.default_rng(0)
    starts = [encoded(noise(1, (20, 20)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
    for trial in range(60):
        data = bytearray(starts[trial % len(starts)])
        for place in rng.integers(0, len(data), 12):
            data[place] = rng.integers(0, 256)
        assert ask(client, task(), [bytes(data)]).status_code in (200, 422)
