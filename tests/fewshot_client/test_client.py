"""The client against a real server, also over a line that loses requests and answers."""

from __future__ import annotations

import asyncio
import email.utils
import io
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import onnxruntime
import pytest
from PIL import Image

import fewshot_client
from fewshot_client import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionFailed,
    FewshotError,
    Gone,
    InvalidRequest,
    NotAllowed,
    NotFound,
    NotSent,
    Outdated,
    RateLimited,
    Retry,
    SupportSet,
    Unavailable,
)
from tests.fewshot_client.conftest import PATIENT
from tests.service.asking import encoded, noise
from tests.service.process import Server, serving
from tests.service.zoo import build_zoo

ROOT = Path(__file__).parents[2]

CAT, DOG = (encoded(noise(seed)) for seed in (1, 2))


class Lossy(httpx.HTTPTransport):
    """Before the `losses` are used up, loses requests on the way there or their answers."""

    def __init__(self, *losses: str) -> None:
        super().__init__()
        self.losses, self.sent = list(losses), 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        loss = self.losses.pop(0) if self.losses else ""
        if loss == "there":
            raise httpx.ConnectError("lost", request=request)
        if loss.isdecimal():
            return httpx.Response(int(loss), headers={"Retry-After": "0"}, request=request)
        answer = super().handle_request(request)
        if loss == "back":
            answer.read()
            answer.close()
            raise httpx.ReadError("lost", request=request)
        return answer


def test_models_and_limits(client: Client) -> None:
    assert [model.id for model in client.models()] == ["attentive", "descent", "mean"]
    assert client.model("mean").limits.max_way >= 2
    assert client.model("mean").adaptation is None
    adapted = client.model("descent").adaptation
    assert adapted is not None
    assert 0 < adapted.steps <= adapted.max_steps
    assert client.limits().files > 0
    with pytest.raises(NotFound) as caught:
        client.model("../etc")
    assert caught.value.problem.request_id


def test_options_reach_the_server(client: Client) -> None:
    color = [encoded(noise(seed, (16, 16, 3))) for seed in range(3)]
    support = {"a": color[0], "b": color[1]}
    seen = client.classify("attentive", support, color[2], attention="maps", top_k=1)
    assert len(seen.predictions[0].probabilities) == 1
    assert seen.predictions[0].attention is not None
    assert len(seen.predictions[0].attention.task or []) == 2
    still = client.classify("descent", {"a": CAT, "b": DOG}, CAT, steps=0)
    assert still.predictions[0].confidence == pytest.approx(0.5)
    with pytest.raises(InvalidRequest, match="order of the examples"):
        client.classify("mean", {"a": CAT, "b": DOG}, CAT, orders=2)


def test_faults_are_exceptions_with_the_problem(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.classify("mean", {"a": CAT, "b": b"text"}, CAT)
    assert caught.value.kind == "not-an-image"
    assert caught.value.problem.file is not None
    assert caught.value.problem.file.field == "support_images"
    with pytest.raises(NotFound, match="unknown-model"):
        client.classify("none", {"a": CAT, "b": DOG}, CAT)
    with pytest.raises(TypeError, match="int is no image"):
        client.classify("mean", {"a": [1]}, CAT)  # type: ignore[dict-item]
    with pytest.raises(NotSent, match="is no id"):
        client.get_set("..")


def test_faults_go_from_process_to_process(client: Client) -> None:
    """As they do out of a pool's worker, which dies or hangs over one that cannot."""
    with pytest.raises(InvalidRequest) as caught:
        client.classify("mean", {"a": CAT, "b": b"text"}, CAT)
    faults: list[FewshotError] = [caught.value, NotSent("a"), ConnectionFailed("b")]
    faults += [kind(caught.value.problem, 2.0) for kind in (ApiError, *ApiError.__subclasses__())]
    for fault in faults:
        again = pickle.loads(pickle.dumps(fault))
        assert (type(again), str(again), vars(again)) == (type(fault), str(fault), vars(fault))


def test_a_support_set_from_its_making_to_its_end(client: Client) -> None:
    made = client.create_set({"cat": CAT}, name="pets", metadata={"team": "north"}, ttl=3600)
    key = made.support_set.id
    assert made.support_set.metadata == {"team": "north"}
    added = client.add(key, {"dog": [DOG, DOG, b"text"]})
    assert [r.status for r in added.results] == ["created", "duplicate", "rejected"]
    assert added.results[2].problem is not None
    assert added.results[2].problem.kind == "not-an-image"
    answer = client.ask(key, "mean", [DOG, CAT])
    assert answer.labels == ["dog", "cat"]
    assert answer.support_set_ref == f"{key}@{added.support_set.revision}"
    listed = client.examples(key).examples
    assert [example.label for example in listed] == ["cat", "dog"]
    assert client.image(key, listed[1].id) == DOG
    with pytest.raises(Outdated):
        client.update_set(key, name="x", if_revision=made.support_set.revision)
    changed = client.update_set(key, name="beasts", ttl=None)
    assert (changed.name, changed.ttl, changed.metadata) == ("beasts", None, {"team": "north"})
    renamed = client.update_set(key, labels={"cat": "tiger"})
    assert [c.label for c in renamed.classes or []] == ["dog", "tiger"]
    client.delete_example(key, listed[0].id)
    assert [c.label for c in client.get_set(key).classes or []] == ["dog"]
    assert key in [one.id for one in client.sets().support_sets]
    client.delete_set(key)
    with pytest.raises((NotFound, Gone)):
        client.get_set(key)


def test_a_set_is_judged_and_taken_away(client: Client) -> None:
    cats, dogs = ([encoded(noise(seed)) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    key = client.create_set({"cat": cats, "dog": dogs}).support_set.id
    found = client.evaluate(key, ["mean"])
    assert [each.model for each in found.models] == ["mean"]
    (judged,) = found.models
    assert judged.accuracy is not None
    assert judged.accuracy.count == found.left_out == sum(map(sum, judged.confusion)) == 4
    assert [verdict.label for verdict in judged.examples] == ["cat", "cat", "dog", "dog"]
    assert sum(verdict.correct for verdict in judged.examples) == judged.accuracy.correct
    assert [each.accuracy and each.accuracy.count for each in judged.classes] == [2, 2]
    assert judged.problem is None
    assert len(client.evaluate(key).models) == len(client.models())
    with pytest.raises(NotFound):
        client.evaluate(key, ["none"])
    assert [each.model for each in client.evaluate(key, "mean").models] == ["mean"]
    with pytest.raises(NotSent, match="no models to judge"):
        client.evaluate(key, [])

    session = onnxruntime.InferenceSession(client.classifier(key, "mean"))
    labels = session.get_modelmeta().custom_metadata_map["labels"]
    assert json.loads(labels) == ["cat", "dog"]


def test_pages_follow_each_other(client: Client) -> None:
    made = {client.create_set(name=str(i)).support_set.id for i in range(3)}
    found: list[SupportSet] = []
    cursor = None
    while True:
        page = client.sets(limit=2, cursor=cursor)
        found += page.support_sets
        cursor = page.next_cursor
        if cursor is None:
            break
    assert made <= {one.id for one in found}
    assert len({one.id for one in found}) == len(found)


def over(server: Server, *losses: str, **options: float) -> tuple[Client, Lossy]:
    line = Lossy(*losses)
    retry = Retry(backoff_s=0.001, **options)  # type: ignore[arg-type]
    return Client(server.base, timeout=PATIENT, retry=retry, transport=line), line


@pytest.mark.parametrize("losses", [("there",), ("back",), ("503", "429", "back")])
def test_a_lost_answer_does_not_make_a_set_twice(server: Server, losses: tuple[str, ...]) -> None:
    client, line = over(server, *losses)
    name = "lost " + "-".join(losses)
    with client:
        made = client.create_set({"cat": CAT}, name=name)
        assert line.sent == len(losses) + 1
        alike = [s for s in client.sets().support_sets if s.name == name]
        assert [one.id for one in alike] == [made.support_set.id]


def test_what_may_have_been_done_is_not_done_again(server: Server) -> None:
    client, line = over(server, "back")
    with client:
        key = Client(server.base).create_set(name="x").support_set.id
        with pytest.raises(ConnectionFailed):
            client.delete_set(key)
        assert line.sent == 1
        with pytest.raises(NotFound):  # it had been done
            client.get_set(key)


@pytest.mark.parametrize(("loss", "sent"), [("503", 1), ("429", 2)])
def test_a_deletion_is_sent_again_only_where_it_was_refused(
    server: Server, loss: str, sent: int
) -> None:
    """A 503 may be a database that committed and could not say so."""
    client, line = over(server, loss)
    with client:
        key = Client(server.base).create_set(name="x").support_set.id
        if loss == "503":
            with pytest.raises(Unavailable):
                client.delete_set(key)
        else:
            client.delete_set(key)
        assert line.sent == sent


def test_work_whose_time_is_over_is_told_so_and_not_sent_again(server: Server) -> None:
    slow = encoded(Image.new("RGB", (4000, 3000)), "WEBP", lossless=True)  # 12 megapixels each
    work = ("mean", {"cat": CAT, "dog": DOG}, [slow] * 30)
    line = Lossy()
    with (
        Client(server.base, timeout=0.5, transport=line) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.classify(*work)
    assert (caught.value.kind, line.sent) == ("deadline-exceeded", 1)

    async def use() -> None:
        async with AsyncClient(server.base, timeout=0.5, retry=Retry(0)) as client:
            with pytest.raises(Unavailable, match="deadline-exceeded"):
                await client.classify(*work)

    asyncio.run(use())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_it_waits_for_as_long_as_retry_after_says(
    monkeypatch: pytest.MonkeyPatch, kind: type[Client] | type[AsyncClient], form: str
) -> None:
    """Seven seconds are waited, and an hour is not: then the error is told."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("fewshot_client.client.time.sleep", waited.append)
    monkeypatch.setattr("fewshot_client.client.asyncio.sleep", sleep)
    delays = [7, 7, 3600]

    def busy(request: httpx.Request) -> httpx.Response:
        seconds = delays.pop(0)
        later = email.utils.formatdate(time.time() + seconds + 1, usegmt=True)
        after = later if form == "date" else str(seconds)
        return httpx.Response(429, headers={"Retry-After": after}, json={"detail": "busy"})

    async def ask() -> None:
        async with AsyncClient("http://x", transport=httpx.MockTransport(busy)) as client:
            await client.models()

    with pytest.raises(RateLimited) as caught:
        if kind is AsyncClient:
            asyncio.run(ask())
        else:
            with Client("http://x", transport=httpx.MockTransport(busy)) as client:
                client.models()
    assert waited == pytest.approx([7, 7], abs=1.01 if form == "date" else 1e-9)
    assert caught.value.retry_after == pytest.approx(3600, abs=2)
    assert delays == []


def test_the_asynchronous_client_tries_again_as_well(server: Server) -> None:
    sent = []
    inner = httpx.AsyncHTTPTransport()

    async def lossy(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("idempotency-key"))
        if len(sent) == 1:
            raise httpx.ConnectError("lost", request=request)
        answer = await inner.handle_async_request(request)
        if len(sent) == 2:
            await answer.aread()
            await answer.aclose()
            raise httpx.ReadError("lost", request=request)
        return answer

    async def use() -> list[str]:
        retry, line = Retry(backoff_s=0.001), httpx.MockTransport(lossy)
        async with AsyncClient(server.base, timeout=PATIENT, retry=retry, transport=line) as client:
            made = await client.create_set({"cat": CAT}, name="lost by the other")
            sets = [
                s for s in (await client.sets()).support_sets if s.name == made.support_set.name
            ]
            assert [one.id for one in sets] == [made.support_set.id]
            return sent[:3]

    keys = asyncio.run(use())
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert keys[0] is not None


def test_it_gives_up_in_the_end_and_does_not_wait_for_ever(server: Server) -> None:
    client, line = over(server, *["503"] * 9, retries=2)
    with client, pytest.raises(Unavailable):
        client.models()
    assert line.sent == 3
    client, line = over(server, "503", max_wait_s=-1.0)
    with client, pytest.raises(Unavailable):
        client.models()
    assert line.sent == 1
    address = "http://name:secret@127.0.0.1:9"
    with (
        pytest.raises(ConnectionFailed, match=r"^http://127\.0\.0\.1:9: .*refused"),
        Client(address, retry=Retry(0)) as nobody,
    ):
        nobody.models()


def test_no_room_for_another_set_is_no_reason_to_read_again_and_retry(tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path / "zoo")
    with (
        serving(zoo, tmp_path, "--data-dir", tmp_path, "--max-sets", 1) as full,
        Client(full.base, timeout=PATIENT) as client,
    ):
        client.create_set({"cat": CAT})
        with pytest.raises(InvalidRequest, match="409 too-many-sets"):
            client.create_set({"dog": DOG})


def test_a_page_in_place_of_the_service_s_answer_is_said_to_be_one() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<h1>Please log in</h1>", request=request)

    async def use() -> None:
        async with AsyncClient("http://x", transport=httpx.MockTransport(page)) as client:
            with pytest.raises(ConnectionFailed, match="text/html"):
                await client.limits()

    with Client("http://x", transport=httpx.MockTransport(page)) as client:
        for call in (
            client.models,
            lambda: client.get_set("s"),
            lambda: client.delete_set("s"),
            lambda: client.classifier("s", "mean"),
            lambda: client.image("s", "e"),
        ):
            with pytest.raises(ConnectionFailed, match=r"answered 200 \(text/html.*a proxy"):
                call()
    asyncio.run(use())


@pytest.mark.parametrize("status", [301, 307])
def test_an_answer_that_points_elsewhere_says_where(status: int) -> None:
    def moved(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"Location": "https://y/"}, request=request)

    with (
        Client("http://name:secret@x", transport=httpx.MockTransport(moved)) as client,
        pytest.raises(
            ConnectionFailed, match=f"answered {status} .*pointing to https://y/"
        ) as said,
    ):
        client.models()
    assert "secret" not in str(said.value)


def test_a_time_that_no_clock_tells_is_no_time_to_wait() -> None:
    def late(request: httpx.Request) -> httpx.Response:
        never = {"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"}
        return httpx.Response(503, headers=never, request=request)

    with (
        Client("http://x", transport=httpx.MockTransport(late), retry=Retry(0)) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.models()
    assert caught.value.retry_after is None


def test_a_key_may_end_its_line(tmp_path: Path) -> None:
    """As it does where it is read from a file."""
    command = [sys.executable, str(ROOT / "fewshot.py"), "keys", "create", "me", "--json"]
    made = subprocess.run([*command, "--data-dir", tmp_path], capture_output=True, check=True)
    line = json.loads(made.stdout)["key"] + "\n"
    with serving(build_zoo(tmp_path / "zoo"), tmp_path, "--data-dir", tmp_path) as closed:
        with Client(closed.base, api_key=line, headers={"X-Team": " north\n"}) as client:
            assert client.models()
        with pytest.raises(NotAllowed), Client(closed.base, api_key="other") as client:
            client.models()


@pytest.mark.parametrize("secret", ["", " \n", "secr\u00e9t", "secret\nsecret", "secret\0"])
def test_what_is_no_header_is_refused_and_not_shown(secret: str) -> None:
    for make in (
        lambda: Client("http://127.0.0.1:1", api_key=secret),
        lambda: AsyncClient("http://127.0.0.1:1", api_key=secret),
        lambda: Client("http://127.0.0.1:1", headers={"Authorization": secret}),
        lambda: Client("http://127.0.0.1:1").create_set(idempotency_key=secret),
        lambda: Client("http://127.0.0.1:1").add("s", {"a": CAT}, idempotency_key=secret),
    ):
        with pytest.raises(NotSent, match="must be printable ASCII") as refused:
            make()
        assert "secr" not in "".join(traceback.format_exception_only(refused.value))
        assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:8000",
        "localhost:8000",
        "http://",
        "ftp://x",
        "me:secret@x",
        "http://x:secret",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_shown(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(NotSent, match="with http:// or https://") as refused:
            kind(address)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, "9", None])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(NotSent, match="the timeout must be a number of seconds above 0"):
            kind("http://127.0.0.1:1", timeout=timeout)


def test_what_is_not_http_is_not_tried_again(server: Server) -> None:
    line = Lossy()
    with (
        Client(server.base, headers={"X Y": "a"}, transport=line) as client,
        pytest.raises(ConnectionFailed, match="Illegal header name"),
    ):
        client.models()
    assert line.sent == 1
    assert Retry().wait(1, True, httpx.UnsupportedProtocol("no http")) is None


def test_an_answer_that_cannot_be_read_is_a_fault_of_the_connection() -> None:
    def garbled(request: httpx.Request) -> httpx.Response:
        coded = {"content-encoding": "gzip"}
        return httpx.Response(200, headers=coded, stream=httpx.ByteStream(b"no gzip"))

    with (
        Client("http://x", transport=httpx.MockTransport(garbled), retry=Retry(0)) as client,
        pytest.raises(ConnectionFailed, match=r"^http://x: "),
    ):
        client.models()


def test_the_asynchronous_client_is_the_same(server: Server) -> None:
    async def use() -> list[str]:
        async with AsyncClient(server.base, timeout=PATIENT) as client:
            made = await client.create_set({"cat": CAT, "dog": DOG})
            key = made.support_set.id
            answers = await asyncio.gather(
                *(client.ask(key, "mean", one) for one in (DOG, CAT)),
                client.classify("mean", {"cat": CAT, "dog": DOG}, DOG),
            )
            with pytest.raises(NotFound):
                await client.model("none")
            await client.delete_set(key)
            return [answer.labels[0] for answer in answers]

    assert asyncio.run(use()) == ["dog", "cat", "dog"]
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncClient) if not name.startswith("_")}


def test_its_types_are_the_server_s(server: Server) -> None:
    """Each field that the client relies on is one that the server documents, and each that the
    server documents, but of a card some, has a type in the client."""
    schemas = httpx.get(server.base + "/openapi.json", timeout=PATIENT).json()["components"][
        "schemas"
    ]
    names = {"Model": "Card", "Example": "SetExample", "Problem": "ProblemDocument"}
    names |= {"SupportSet": "SupportSetDetail", "Limits": "ServiceLimits"}
    names |= {"Prediction": "QueryPrediction"}
    checked = 0
    for name in fewshot_client.__all__:
        kind = getattr(fewshot_client, name)
        if hasattr(kind, "model_fields"):
            documented = set(schemas[names.get(name, name)]["properties"])
            assert set(kind.model_fields) <= documented, name
            assert name == "Model" or set(kind.model_fields) == documented, name
            checked += 1
    assert checked >= 20
    told = {"attention", "uncertainty", "adaptation", "transductive", "order_dependent"}
    assert told <= set(fewshot_client.Model.model_fields)


def test_the_readme_s_example_runs(server: Server, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme[readme.index("**From Python**") :]
    lines = re.search(r"\n((?:    .*\n|\n)+)", section)
    assert lines is not None
    code = re.sub("(?m)^    ", "", lines[1])
    assert "http://127.0.0.1:8000" in code
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    printed = io.StringIO()
    code = code.replace("http://127.0.0.1:8000", server.base).replace("stanet-omniglot", "mean")
    code = code.replace('"samples/', f'"{tmp_path}/samples/')
    exec(code, {"print": lambda *values: printed.write(f"{values}\n")})
    assert "hook" in printed.getvalue()
