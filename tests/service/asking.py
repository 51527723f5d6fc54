"""Images and requests for the tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping

import httpx
import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

URN = "urn:fewshot:problem:"


def noise(seed: int, shape: tuple[int, ...] = (16, 16)) -> Pixels:
    """A random image; the models of the test zoo read 16 x 16, so nothing is resampled."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: Pixels | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def ask(
    client: TestClient,
    support: Iterable[tuple[str, bytes]] = (),
    queries: Iterable[bytes] = (),
    archive: bytes | None = None,
    **fields: object,
) -> httpx.Response:
    """POST a task. `support` holds (label, bytes)."""
    support = list(support)
    files = [("support_images", (f"{i}.png", data)) for i, (_, data) in enumerate(support)]
    files += [("query_images", (f"q{i}.png", data)) for i, data in enumerate(queries)]
    if archive is not None:
        files.append(("support_archive", ("set.zip", archive)))
    form = {"model": "mean", "support_labels": [label for label, _ in support]} | fields
    return client.post("/v1/predictions", data=form, files=files)


def task(
    classes: Iterable[str] = ("a", "b", "c"), shots: int = 2, seed: int = 0
) -> list[tuple[str, bytes]]:
    """A support set of random images, class after class."""
    labels = [label for label in classes for _ in range(shots)]
    return [(label, encoded(noise(seed + i))) for i, label in enumerate(labels)]


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, object]:
    """The answer is the problem document of this kind; returns it."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: dict[str, object] = response.json()
    assert (response.status_code, document["type"]) == (status, URN + kind), document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in response.text
    return document


SETS = "/v1/support-sets"


def make_set(
    client: TestClient,
    support: Iterable[tuple[str, bytes]] = (),
    headers: Mapping[str, str] | None = None,
    **fields: object,
) -> httpx.Response:
    """POST a support set. `support` holds (label, bytes)."""
    return _send(client, SETS, support, headers, fields)


def add(
    client: TestClient,
    set_id: str,
    support: Iterable[tuple[str, bytes]] = (),
    headers: Mapping[str, str] | None = None,
    **fields: object,
) -> httpx.Response:
    """POST examples to a set."""
    return _send(client, f"{SETS}/{set_id}/examples", support, headers, fields)


def ask_set(
    client: TestClient,
    set_id: str,
    queries: Iterable[bytes],
    headers: Mapping[str, str] | None = None,
    **fields: object,
) -> httpx.Response:
    """POST queries to a set."""
    files = [("query_images", (f"q{i}.png", data)) for i, data in enumerate(queries)]
    form = {"model": "mean"} | fields
    return client.post(f"{SETS}/{set_id}/predictions", data=form, files=files, headers=headers)


def _send(
    client: TestClient,
    path: str,
    support: Iterable[tuple[str, bytes]],
    headers: Mapping[str, str] | None,
    fields: Mapping[str, object],
) -> httpx.Response:
    support = list(support)
    files: list[tuple[str, object]] = [
        ("images", (f"{i}.png", data)) for i, (_, data) in enumerate(support)
    ]
    form = {"labels": [label for label, _ in support]} | dict(fields)
    if (archive := form.pop("archive", None)) is not None:
        files.append(("archive", ("set.zip", archive)))
    return client.post(path, data=form, files=files or [("images", ("", b""))], headers=headers)
