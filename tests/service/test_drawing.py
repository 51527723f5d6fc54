"""What is drawn is a part of the request: of its permit, its deadline and its limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.asking import assert_problem, encoded, make_set, noise

SUPPORT = [(label, encoded(noise(i, (500, 500, 3)))) for i, label in enumerate("abcd")]
QUERIES = [encoded(noise(50 + i, (500, 500, 3))) for i in range(4)]

Asked = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def client(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("drawing")
    settings = Settings(zoo=zoo, device="cpu", threads=1, data_dir=folder, overlay_side=480)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(params=["sent", "stored"])
def asked(client: TestClient, request: pytest.FixtureRequest) -> Asked:
    """Overlays of the same task, its images sent or stored, within so many seconds."""
    if request.param == "stored":
        set_id = make_set(client, SUPPORT).json()["support_set"]["id"]
        url, support = f"/v1/support-sets/{set_id}/predictions", []
    else:
        url, support = "/v1/predictions", SUPPORT

    def send(timeout_s: float = 60) -> httpx.Response:
        files = [("support_images", ("s.png", data)) for _, data in support]
        files += [("query_images", ("q.png", data)) for data in QUERIES]
        form = {"model": "attentive", "attention": "overlay"}
        labels = {"support_labels": [label for label, _ in support]} if support else {}
        headers = {"X-Request-Timeout": str(timeout_s)}
        return client.post(url, data=form | labels, files=files, headers=headers)

    return send


def test_drawing_ends_with_the_deadline(asked: Asked) -> None:
    asked()
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        answer = asked()
        whole = time.perf_counter() - start
        runs.append((whole, whole - sum(answer.json()["timing_ms"].values()) / 1000))
    whole, drawing = min(runs)
    assert drawing > whole / 2
    assert_problem(asked(whole - 0.75 * drawing), 504, "deadline-exceeded")


def test_too_many_overlays_are_refused_before_an_image_is_read(
    client: TestClient, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = client.app.state.classifier
    few = classifier.settings.model_copy(update={"max_overlays": 39})  # 2 layers x 4 x (1 + 4) - 1
    monkeypatch.setattr(classifier, "settings", few)
    decoded: list[str] = []
    monkeypatch.setattr(classifier.events, "stage", lambda _, stage, __: decoded.append(stage))
    answer = assert_problem(asked(), 422, "answer-too-large")
    assert "40 overlay pictures; at most 39" in str(answer["detail"])
    assert decoded == []
