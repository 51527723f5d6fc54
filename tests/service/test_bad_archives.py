"""Faulty archives get a problem document, and nothing is unpacked outside memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.api import forms
from service.archives import ArchiveLimits, archive_size, read_archive
from service.problems import FileRef
from tests.service.asking import ask, assert_problem, encoded, noise, zipped

QUERY = [encoded(noise(99))]
GOOD = {"a/1.png": encoded(noise(1)), "b/1.png": encoded(noise(2))}


def _archive(client: TestClient, data: bytes) -> httpx.Response:
    return ask(client, queries=QUERY, archive=data)


def _deflated(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", b"\0" * size)
        archive.writestr("b/1.png", GOOD["b/1.png"])
    return buffer.getvalue()


def _lying(size: int) -> bytes:
    """A bomb whose directory declares ten bytes."""
    data = _deflated(size)
    return data.replace(struct.pack("<I", size), struct.pack("<I", 10))


def _telling(count: int, files: int) -> bytes:
    """A zip of so many files that tells of another number."""
    data = bytearray(zipped({f"{'ab'[i % 2]}/{i}.png": GOOD["a/1.png"] for i in range(files)}))
    struct.pack_into("<HH", data, data.rfind(b"PK\x05\x06") + 8, count, count)
    return bytes(data)


def _link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a/1.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def _encrypted() -> bytes:
    data = bytearray(zipped(GOOD))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + offset] |= 1
    return bytes(data)


#: What may come as an archive, and the kind of its fault where a whole task is asked.
FAULTY = [
    (b"", "empty-file"),
    (b"not a zip", "bad-archive"),
    (zipped(GOOD)[:-30], "bad-archive"),
    (zipped(GOOD)[30:], "bad-archive"),
    (zipped({}), "no-support"),
    (zipped({"../a/1.png": b"x", **GOOD}), "bad-archive"),
    (zipped({"/etc/passwd": b"x", **GOOD}), "bad-archive"),
    (zipped({"..\\a\\1.png": b"x", **GOOD}), "bad-archive"),
    (zipped({"1.png": b"x", **GOOD}), "bad-archive"),
    (zipped({"a/\x1b[2J.png": b"x", **GOOD}), "bad-archive"),
    (zipped({"x/" + "a/" * 500 + "1.png": b"x", **GOOD}), "bad-archive"),
    (zipped({"c/": b"", **GOOD}), "empty-class"),
    (zipped({"a/1.png": GOOD["a/1.png"], "a/2.png": GOOD["b/1.png"]}), "one-class"),
    (zipped({f"a/{i}.png": b"" for i in range(41)}), "archive-too-large"),
    (zipped({f"a/{i}.png": b"" for i in range(70_000)}), "archive-too-large"),
    (_deflated(3 << 20), "archive-too-large"),
    (_lying(3 << 20), "bad-archive"),
    (_telling(1, files=2), "bad-archive"),
    (_telling(3, files=2), "bad-archive"),
    (_telling(100, files=2000), "bad-archive"),
    (_link(), "bad-archive"),
    (_encrypted(), "bad-archive"),
]


def cut(data: bytes) -> bytes:
    """Below the body's limit; the directory is at the end."""
    return data[-(1 << 20) :] if len(data) > 2 << 20 else data


@pytest.mark.parametrize(("data", "kind"), FAULTY)
def test_faulty_archives(client: TestClient, data: bytes, kind: str) -> None:
    document = assert_problem(_archive(client, cut(data)), 422, kind)
    if kind in ("bad-archive", "archive-too-large", "empty-file"):
        assert document["file"] == {"field": "support_archive", "index": 0, "name": "set.zip"}


def test_files_that_lie_of_their_size_take_no_more_than_they_tell_of() -> None:
    """Each fails by itself, and must not cost what the whole archive may."""
    limits = ArchiveLimits(40, 64 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", GOOD["a/1.png"])
        for index in range(2):
            archive.writestr(f"b/{index}.png", b"\0" * (48 << 20))
    data = buffer.getvalue().replace(struct.pack("<I", 48 << 20), struct.pack("<I", 10))
    tracemalloc.start()
    try:
        members = read_archive(data, FileRef("archive", 0, "set.zip"), limits, whole=False)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [member.problem is None for member in members] == [True, False, False]
    assert most < 8 << 20


def test_an_archive_waits_for_its_turn_before_it_is_unpacked(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts for its files, or for its megabytes where those are more."""
    ref, limits = FileRef("archive", 0, "set.zip"), ArchiveLimits(40, 8 << 20)
    assert archive_size(zipped(GOOD), ref, limits) == 2
    assert archive_size(_deflated(5 << 20), ref, limits) == 5

    def unpacked(*_: object) -> None:
        raise AssertionError("unpacked while others were waiting")

    monkeypatch.setattr(forms, "read_archive", unpacked)
    admission = client.app.state.classifier.admission
    monkeypatch.setattr(admission, "held", admission._max_images)
    assert_problem(_archive(client, zipped(GOOD)), 429, "overloaded")
    data = {"archive": ("set.zip", zipped(GOOD))}
    assert_problem(client.post("/v1/support-sets", files=data), 429, "overloaded")


def test_a_faulty_image_in_an_archive_is_named_by_its_path(client: TestClient) -> None:
    document = assert_problem(
        _archive(client, zipped({**GOOD, "b/2.png": b"text"})), 422, "not-an-image"
    )
    assert document["file"] == {"field": "support_archive", "index": 2, "name": "b/2.png"}


def test_names_in_utf8_without_the_flag_and_leftovers_are_read(client: TestClient) -> None:
    data = zipped({"größe/1.png": GOOD["a/1.png"], **GOOD, "__MACOSX/a/._1.png": b"x"})
    flagged = data
    unflagged = bytearray(flagged)
    for signature, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        unflagged[unflagged.find(signature) + offset] &= ~0x08
    for archive in (flagged, bytes(unflagged)):
        assert _archive(client, archive).json()["classes"] == ["a", "b", "größe"]


def test_random_bytes_never_make_a_server_error(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(zipped(GOOD))
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        assert _archive(client, bytes(data)).status_code in (200, 422)
