"""The HTTP layer: body limits, disconnects, headers, unexpected faults."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_zoo.cards import find_card
from service import middleware
from service.answers import check_size
from service.app import create_app
from service.classifier import Classifier, Outcome
from service.engine.events import Events
from service.engine.models import Models
from service.problems import AnswerTooLarge
from service.schemas import AttentionMode
from service.settings import Settings
from service.store.keys import Scope
from tests.service.asking import ask, ask_set, assert_problem, encoded, make_set, noise, task
from tests.service.gate import Gate

MB = 1 << 20
FILE_HEAD = b'--x\r\nContent-Disposition: form-data; name="query_images"; filename="f"\r\n\r\n'


async def _chunks(size: int, chunk: int = 65_536) -> AsyncIterator[bytes]:
    yield FILE_HEAD
    for _ in range(0, size, chunk):
        yield b"x" * chunk


async def _post(
    app: FastAPI, content: object, address: str = "127.0.0.1", **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        return await client.post("/v1/predictions", content=content, headers=kind | headers)


def test_a_body_over_the_limit_is_413_with_or_without_a_length(client: TestClient) -> None:
    app = client.app
    for content, headers in (
        (FILE_HEAD + b"x" * 2 * MB, {}),
        (_chunks(3 * MB), {}),
        (_chunks(3 * MB), {"content-length": "17"}),  # a lie
        (b"", {"content-length": str(10**12)}),
    ):
        response = asyncio.run(_post(app, content, **headers))
        document = assert_problem(response, 413, "body-too-large")
        assert document["limit"] == 2 * MB
        assert response.headers["connection"] == "close"


def test_bodies_that_are_too_much_together_are_429_until_one_is_done(zoo: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", max_body_mb=2, max_archive_mb=1, queue_mb=2)
    app = create_app(settings)

    async def scenario() -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield FILE_HEAD + b"x" * (3 * MB // 2)
            arrived.set()
            await go_on.wait()
            yield b"\r\n--x--\r\n"

        async with app.router.lifespan_context(app):
            first = asyncio.create_task(_post(app, slow()))
            await arrived.wait()
            refused = await _post(app, _chunks(MB))
            assert_problem(refused, 429, "overloaded")
            assert refused.headers["retry-after"] == "1"
            small, large = (FILE_HEAD + b"x" * size + b"\r\n--x--\r\n" for size in (9, MB))
            assert_problem(await _post(app, small), 422, "invalid-request")
            go_on.set()
            assert_problem(await first, 422, "invalid-request")
            assert_problem(await _post(app, large), 422, "invalid-request")

    asyncio.run(scenario())


def test_bodies_of_one_address_leave_half_of_the_room_to_the_others(zoo: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", max_body_mb=2, max_archive_mb=1, queue_mb=4)
    events = Refusals()
    app = create_app(settings, Classifier(settings, events=events))

    async def scenario() -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def stalled() -> AsyncIterator[bytes]:
            yield FILE_HEAD + b"x" * (3 * MB // 2)
            arrived.set()
            await go_on.wait()
            yield b"\r\n--x--\r\n"

        async with app.router.lifespan_context(app):
            first = asyncio.create_task(_post(app, stalled(), "10.0.0.1"))
            await arrived.wait()
            large = FILE_HEAD + b"x" * MB + b"\r\n--x--\r\n"
            refused = await _post(app, large, "10.0.0.1")
            assert_problem(refused, 429, "overloaded")
            assert refused.headers["connection"] == "close"
            assert events.images == [0]
            honest = await _post(app, large, "10.0.0.2")
            assert_problem(honest, 422, "invalid-request")  # it was read, and is merely wrong
            go_on.set()
            assert_problem(await first, 422, "invalid-request")
            again = await _post(app, large, "10.0.0.1")
            assert_problem(again, 422, "invalid-request")

    asyncio.run(scenario())


class Refusals(Events):
    def __init__(self) -> None:
        self.images: list[int] = []

    def refused(self, images: int) -> None:
        self.images.append(images)


def test_a_body_that_stalls_in_the_room_of_others_is_cut_and_a_slow_one_is_not(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "_LEAST_SECONDS", 0.5)
    settings = Settings(zoo=zoo, device="cpu", max_body_mb=2, max_archive_mb=1, queue_mb=4)
    app = create_app(settings)

    async def scenario() -> None:
        def sending(address: str, *parts: bytes) -> tuple[asyncio.Task[int], asyncio.Queue[bytes]]:
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            for part in (FILE_HEAD, *parts):
                queue.put_nowait(part)
            return asyncio.create_task(_send_body(app, address, queue)), queue

        async with app.router.lifespan_context(app), asyncio.timeout(20):
            large = b"x" * (3 * MB // 2)
            first, rest = sending("10.0.0.1", large)
            await asyncio.sleep(1.2)
            assert not first.done()  # nobody needs its room
            phone, film = sending("10.0.0.2")
            second, more = sending("10.0.0.3", large)
            for _ in range(20):
                await asyncio.sleep(0.1)
                film.put_nowait(b"x" * (4 << 10))
            assert sorted([first.done(), second.done()]) == [False, True]  # enough is free again
            assert (first if first.done() else second).result() == 408
            for queue in (rest, more, film):
                queue.put_nowait(b"\r\n--x--\r\n")
                queue.put_nowait(b"")
            assert await phone == 422  # it was read, and is merely wrong
            assert sorted([await first, await second]) == [408, 422]

    asyncio.run(scenario())


async def _send_body(app: FastAPI, address: str, parts: asyncio.Queue[bytes]) -> int:
    """Send a request part by part, the last one empty; returns the status."""
    status = 0

    async def receive() -> dict[str, object]:
        part = await parts.get()
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(_scope() | {"client": (address, 1)}, receive, send)
    return status


@pytest.mark.parametrize("size", [3 * MB // 2, 3 * MB])
def test_bodies_that_are_thrown_away_take_no_room_and_have_no_limit(
    zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """What is sent without a key cannot shut out who has one, and is answered to the end."""
    settings = Settings(
        zoo=zoo, device="cpu", max_body_mb=2, max_archive_mb=1, queue_mb=2, auth="required",
        data_dir=tmp_path,
    )  # fmt: skip
    app = create_app(settings)

    async def scenario() -> None:
        thrown, go_on = asyncio.Event(), asyncio.Event()

        async def stranger() -> AsyncIterator[bytes]:
            async for chunk in _chunks(size):
                yield chunk
            thrown.set()
            await go_on.wait()
            yield b"\r\n--x--\r\n"

        async with app.router.lifespan_context(app):
            _, token = app.state.store.keys.create("honest", [Scope.read])
            keyless = asyncio.create_task(_post(app, stranger()))
            await asyncio.wait_for(thrown.wait(), 10)
            large = FILE_HEAD + b"x" * MB + b"\r\n--x--\r\n"
            honest = await _post(app, large, authorization=f"Bearer {token}")
            assert_problem(honest, 422, "invalid-request")  # it was read, and is merely wrong
            go_on.set()
            assert_problem(await keyless, 401, "unauthenticated")

    asyncio.run(scenario())
    assert "unanswered fault" not in caplog.text


def test_a_body_just_under_the_limit_is_read(client: TestClient) -> None:
    tail = b"\r\n--x--\r\n"
    body = FILE_HEAD + b"x" * (2 * MB - len(FILE_HEAD) - len(tail)) + tail
    response = asyncio.run(_post(client.app, body))
    assert_problem(response, 422, "invalid-request")


def test_a_full_disk_for_uploads_is_503_and_a_log_line(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A large file is kept on the disk while it is read."""
    files = [("query_images", ("q.png", b"x" * (3 * MB // 2)))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, hard))
    try:
        response = client.post("/v1/predictions", data={"model": "mean"}, files=files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_problem(response, 503, "files-not-kept")
    assert int(response.headers["retry-after"]) >= 1
    assert "File too large" in caplog.text
    assert "File too large" not in response.text
    again = client.post("/v1/predictions", data={"model": "mean"}, files=files)
    assert_problem(again, 422, "no-support")


def test_an_oversized_body_is_not_kept_in_memory(client: TestClient) -> None:
    received = 0

    async def endless() -> dict[str, object]:
        nonlocal received
        received += 1
        if received > 10_000:
            return {"type": "http.disconnect"}
        body = FILE_HEAD if received == 1 else b"x" * 65_536
        return {"type": "http.request", "body": body, "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 1:  # the answer starts before the body has run out
            assert received <= 2 * MB / 65_536 + 2

    asyncio.run(client.app(_scope(), endless, send))
    assert sent[0]["status"] == 413
    assert received < 6000  # the rest is drained, but not for ever


def test_work_of_a_client_that_has_gone_is_dropped(zoo: Path) -> None:
    gate = Gate(find_card("mean", zoo))
    settings = Settings(zoo=zoo, device="cpu")
    classifier = Classifier(settings, Models(zoo, lambda card, root: gate))
    app = create_app(settings, classifier)
    request = httpx.Client().build_request(
        "POST",
        "http://test/",
        data={"model": "mean", "support_labels": ["a", "b"]},
        files=[("support_images", ("1.png", encoded(noise(i)))) for i in (1, 2)]
        + [("query_images", ("q.png", encoded(noise(3))))],
    )
    body, kind = request.read(), request.headers["content-type"]

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            stays, leaves = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(_call(app, body, kind, stays))
            await asyncio.to_thread(gate.entered.acquire)
            second = asyncio.create_task(_call(app, body, kind, leaves))
            while classifier.admission.held < 6:
                await asyncio.sleep(0.01)
            leaves.set()  # it disconnects while its work waits
            assert await second == 499
            async with asyncio.timeout(5):  # the cancelled task still has to run to its end
                while classifier.admission.held > 3:
                    await asyncio.sleep(0.01)
            gate.opened.set()
            assert await first == 200

    asyncio.run(scenario())
    assert gate.seen == [3]


async def _call(app: FastAPI, body: bytes, kind: str, gone: asyncio.Event) -> int:
    """Send a request whose client disconnects when `gone` is set; returns the status."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(_scope(kind), receive, send)
    return status


def _scope(kind: str = "multipart/form-data; boundary=x") -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/predictions",
        "raw_path": b"/v1/predictions",
        "query_string": b"",
        "headers": [(b"content-type", kind.encode())],
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }


@pytest.fixture
def gated(zoo: Path) -> Gate:
    return Gate(find_card("mean", zoo))


def _client(zoo: Path, gate: Gate, **settings: object) -> TestClient:
    chosen = Settings(zoo=zoo, device="cpu", **settings)
    classifier = Classifier(chosen, Models(zoo, lambda card, root: gate))
    return TestClient(create_app(chosen, classifier), raise_server_exceptions=False)


def test_a_request_over_its_deadline_is_504_and_the_next_one_is_served(
    zoo: Path, gated: Gate
) -> None:
    with _client(zoo, gated, request_timeout_s=0.2) as client:
        query = [encoded(noise(1))]
        assert_problem(ask(client, task(), query), 504, "deadline-exceeded")
        gated.opened.set()
        client.headers["X-Request-Timeout"] = "30"
        assert ask(client, task(), query).status_code == 200


def test_a_client_may_set_its_own_deadline_up_to_a_maximum(zoo: Path, gated: Gate) -> None:
    with _client(zoo, gated, request_timeout_s=0.2, max_request_timeout_s=3) as client:
        query = [encoded(noise(1))]

        def asked(seconds: str) -> httpx.Response:
            client.headers["X-Request-Timeout"] = seconds
            return ask(client, task(), query)

        assert "within 0.5 s" in str(assert_problem(asked("0.5"), 504, "deadline-exceeded"))
        assert "within 3 s" in str(assert_problem(asked("3600"), 504, "deadline-exceeded"))
        for nonsense in ("0", "-1", "soon", "nan", "inf"):
            assert_problem(asked(nonsense), 422, "invalid-request")
        gated.opened.set()
        assert asked("3").status_code == 200
        assert client.get("/v1/limits").json()["max_request_timeout_s"] == 3


def test_overload_is_429_with_retry_after(zoo: Path, gated: Gate) -> None:
    with _client(zoo, gated, queue_images=8) as client:
        classifier = client.app.state.classifier
        classifier.admission._take(5)
        response = ask(client, task(), [encoded(noise(1))])
        assert_problem(response, 429, "overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 60


def test_requests_that_wait_for_gradient_steps_shut_out_no_others(client: TestClient) -> None:
    admission, query = client.app.state.classifier.admission, [encoded(noise(1))]
    set_id = make_set(client, task()).json()["support_set"]["id"]
    whole = [("support", [1, 2, 1, 16, 16]), ("labels", [1, 2]), ("query", [1, 1, 1, 16, 16])]
    tensors = [
        {"name": name, "datatype": "INT64" if name == "labels" else "UINT8", "shape": shape,
         "data": [0, 1] * (np.prod(shape) // 2)}
        for name, shape in whole
    ]  # fmt: skip

    def asked(model: str) -> list[int]:
        answers = [
            ask(client, task(), query, model=model),
            ask_set(client, set_id, query, model=model),
            client.get(f"/v1/support-sets/{set_id}/classifier.onnx", params={"model": model}),
            client.post(f"/v1/support-sets/{set_id}/evaluations", data={"models": model}),
            client.post(f"/v2/models/{model}/infer", json={"inputs": tensors}),
        ]
        return [answer.status_code for answer in answers]

    most = admission._most
    admission._take(most, gradient=True)
    try:
        assert asked("descent") == [429] * 5
        assert asked("mean") == [200] * 5
    finally:
        admission._add(-most, gradient=True)
    assert asked("descent") == [200] * 5


def test_an_unexpected_fault_is_a_500_without_internals_and_a_log_line(
    zoo: Path, gated: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gated.opened.set()
    gated.fault = RuntimeError("password=hunter2")
    with _client(zoo, gated) as client, caplog.at_level(logging.ERROR):
        response = ask(client, task(), [encoded(noise(1))])
    assert_problem(response, 500, "internal")
    assert "hunter2" not in response.text
    assert "hunter2" in caplog.text
    assert "POST /v1/predictions" in caplog.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_model_that_is_not_what_its_card_says_is_503(zoo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "mean"
    bad.mkdir()
    for path in (zoo / "mean").iterdir():
        data = path.read_bytes()
        (bad / path.name).write_bytes(data[:-1] + b"\0" if path.suffix == ".onnx" else data)
    with TestClient(create_app(Settings(zoo=tmp_path, device="cpu"))) as client:
        ready = "/v2/models/mean/ready"
        assert client.get(ready).status_code == 200  # nobody has tried
        response = ask(client, task(), [encoded(noise(1))])
        assert_problem(response, 503, "model-unavailable")
        assert str(tmp_path) not in response.text
        assert_problem(client.get(ready), 503, "model-unavailable")


def test_a_malformed_entry_leaves_the_others_in_service(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "mean", tmp_path / "mean")
    for name, text in (("broken", "{"), ("empty", ""), ("other", json.dumps({"id": "x"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(text)
    with TestClient(create_app(Settings(zoo=tmp_path, device="cpu"))) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["models"]] == ["mean"]
        assert client.get("/readyz").json() == {"status": "ready", "models": 1}
        assert_problem(client.get("/v1/models/broken"), 503, "model-unavailable")


def test_an_empty_zoo_is_alive_but_not_ready(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(zoo=tmp_path, device="cpu"))) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert_problem(client.get("/readyz"), 503, "not-ready")


def test_a_dead_worker_is_told(zoo: Path) -> None:
    with TestClient(create_app(Settings(zoo=zoo, device="cpu"))) as client:
        client.app.state.classifier.engine.close()
        assert_problem(client.get("/livez"), 503, "not-ready")
        assert_problem(client.get("/readyz"), 503, "not-ready")


def test_answers_too_large_are_refused(zoo: Path) -> None:
    """With advice that helps: fewer queries are none where there is one."""
    query = [encoded(noise(1))]
    for mode, limit, advice in (
        ("overlay", {"max_overlays": 5}, "Ask with fewer examples or attention=maps"),
        ("overlay", {"max_overlays": 5, "max_map_values": 100}, "Ask with fewer examples"),
        ("maps", {"max_map_values": 100}, "Ask with fewer examples"),
        ("overlay", {"max_overlays": 14}, "Send fewer queries at a time"),
    ):
        settings = Settings(zoo=zoo, device="cpu", **limit)
        with TestClient(create_app(settings)) as client:
            asked = query * 2 if advice.startswith("Send") else query
            response = ask(client, task(), asked, model="attentive", attention=mode)
            detail = str(assert_problem(response, 422, "answer-too-large")["detail"])
            assert detail.endswith(f"are given. {advice}")
            assert ask(client, task(), query, model="attentive").status_code == 200
            assert ask(client, task(), asked, model="attentive").status_code == 200


@pytest.mark.parametrize("mode", list(AttentionMode))
def test_weights_of_examples_count_in_every_answer_that_has_them(
    settings: Settings, mode: AttentionMode
) -> None:
    weights = np.zeros((2, 3, 4), np.float32)  # layers x queries x examples: 24, as five each
    answer = SimpleNamespace(attention=SimpleNamespace(task=weights, query=None, support=None))
    outcome = cast(Outcome, SimpleNamespace(answer=answer, queries=[None] * 3))
    check_size(outcome, mode, settings.model_copy(update={"max_map_values": 120}))
    if mode is not AttentionMode.none:
        with pytest.raises(AnswerTooLarge, match="120 numbers; at most 119"):
            check_size(outcome, mode, settings.model_copy(update={"max_map_values": 119}))


def test_settings_come_from_the_environment_and_unsafe_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEWSHOT_PORT", "9001")
    monkeypatch.setenv("FEWSHOT_MAX_IMAGE_MEGAPIXELS", "2.5")
    assert Settings().port == 9001
    assert Settings().max_pixels == 2_500_000
    monkeypatch.setenv("FEWSHOT_MAX_BODY_MB", "0")
    with pytest.raises(ValueError, match="max_body_mb"):
        Settings()
    undocumented = [n for n, f in Settings.model_fields.items() if len(f.description or "") < 40]
    assert undocumented == []
