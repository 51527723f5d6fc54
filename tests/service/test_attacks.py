"""Attacks on a real server process: what comes is answered in order, and it lives on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.service.asking import SETS, assert_problem, encoded, noise
from tests.service.process import PATIENCE, ROOT, Server, serving

#: Random requests to each operation; more finds more, and takes as much longer.
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")
FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    # Without keys: schemathesis invents some, and would be refused at the door.
    flags = ("--auth", "off", "--body-timeout-s", 2, "--max-body-mb", 8, "--log-format", "json")
    with serving(zoo, folder, "--data-dir", folder / "data", *flags) as server:
        yield server
        assert httpx.get(server.base + "/readyz", timeout=PATIENCE).status_code == 200
        assert httpx.get(server.base + "/livez", timeout=PATIENCE).status_code == 200


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def everything(connection: socket.socket) -> bytes:
    """What is answered, to the end."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def guarded(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that asks for keys, and one of them."""
    folder = tmp_path_factory.mktemp("guarded")
    place = ("--data-dir", str(folder / "data"))
    command = [sys.executable, str(ROOT / "fewshot.py"), "keys", "create", "fuzz", *place]
    made = subprocess.run(
        [*command, "--scopes", "admin", "--json"], capture_output=True, text=True, check=True
    )
    token = json.loads(made.stdout)["key"]
    with serving(zoo, folder, *place, "--auth", "required", "--max-body-mb", 8) as server:
        yield server, token


def fuzz(server: Server, tmp_path: Path, *flags: str, headers: dict[str, str] | None = None) -> int:
    """Schemathesis over the whole document; the number of requests, none a server error."""
    files = [("images", (f"{i}.png", encoded(noise(i)))) for i in range(4)]
    made = httpx.post(
        f"{server.base}/v1/support-sets",
        data={"labels": ["a", "b", "a", "b"]},
        files=files,
        headers=headers,
        timeout=PATIENCE,
    ).json()["support_set"]["id"]
    # Where a random id would be answered 404 before anything else is looked at. And a time of
    # 5e-324 s, which may be asked for, would be answered 504, as it should be.
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        "[[operations]]\n"
        'include-path-regex = "^/v2/models/"\n'
        'parameters = { "path.model_name" = "mean", "header.x-request-timeout" = "60" }\n'
        "[[operations]]\n"
        'include-path-regex = "^/v1/(predictions|support-sets)$"\n'
        'parameters = { "header.x-request-timeout" = "60" }\n'
        "[[operations]]\n"
        'include-path-regex = "^/v1/support-sets/[^/]*/'
        '(predictions|examples|evaluations|classifier.onnx)$"\n'
        f'parameters = {{ "path.set_id" = "{made}", "header.x-request-timeout" = "60" }}\n'
    )
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            str(command) if command.exists() else shutil.which("schemathesis") or "schemathesis",
            f"--config-file={config}",
            "run",
            f"{server.base}/openapi.json",
            "--checks=not_a_server_error",
            "--mode=all",
            "--seed=7",
            "--generation-deterministic",
            "--suppress-health-check=all",
            f"--request-timeout={PATIENCE:g}",
            "--no-color",
            *flags,
            *(f"--header={name}: {value}" for name, value in (headers or {}).items()),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (counts,) = re.findall(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts[0] == counts[1]
    return int(counts[0])


def test_nothing_that_the_document_allows_or_forbids_is_a_server_error(
    server: Server, tmp_path: Path
) -> None:
    """Every operation, with data that fit its schema and data that do not, always the same ones."""
    phases = "--phases=examples,coverage,fuzzing"
    assert fuzz(server, tmp_path, phases, f"--max-examples={EXAMPLES}") > 300


def test_nothing_is_a_server_error_where_keys_are_asked_for(
    guarded: tuple[Server, str], tmp_path: Path
) -> None:
    """With a key that may do everything, so that all requests get past the door."""
    server, token = guarded
    assert httpx.get(f"{server.base}/v1/support-sets", timeout=PATIENCE).status_code == 401
    headers = {"Authorization": f"Bearer {token}"}
    assert fuzz(server, tmp_path, "--phases=examples,coverage", headers=headers) > 200
    counted = httpx.get(f"{server.base}/metrics", headers=headers, timeout=PATIENCE).text
    changed = 'method="PATCH",route="/v1/support-sets/{set_id}",status="200"'
    assert changed in counted, "nothing got past the door"


def test_a_body_that_trickles_is_told_so_in_time(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n" + FORM + b"\r\n"
        )
        connection.sendall(b"--x\r\n")  # and no more
        answer = everything(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 408 " in head.split(b"\r\n")[0]
    assert b"connection: close" in head.lower()
    assert json.loads(body)["type"].endswith("body-too-slow")


def test_a_thousand_connections_at_once_are_all_answered(server: Server) -> None:
    """All are open before the first is answered; half of them never say anything."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(server)) for _ in range(1000)]
        for connection in opened[::2]:
            connection.sendall(b"GET /v1/limits HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        codes = {everything(connection).split(b" ", 2)[1] for connection in opened[::2]}
    assert codes == {b"200"}


def test_a_thousand_requests_at_once_are_answered_or_refused(server: Server) -> None:
    """Real work: each is answered, or refused in order with when to come again."""
    files = [("support_images", (f"{i}.png", encoded(noise(i)))) for i in range(2)]
    files.append(("query_images", ("q.png", encoded(noise(9)))))
    form = {"model": "mean", "support_labels": ["a", "b"]}
    request = httpx.Request("POST", f"{server.base}/v1/predictions", data=form, files=files)
    body, kind = request.read(), request.headers["content-type"]

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            send = client.post
            url, headers = f"{server.base}/v1/predictions", {"content-type": kind}
            return await asyncio.gather(
                *(send(url, content=body, headers=headers) for _ in range(1000))
            )

    answers = asyncio.run(all_at_once())
    codes = {answer.status_code for answer in answers}
    # 408: this machine was too slow to send a thousand bodies within --body-timeout-s.
    assert 200 in codes
    assert codes <= {200, 408, 429, 504}, codes
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) > 0
        elif answer.status_code == 200:
            assert answer.json()["classes"] == ["a", "b"]


@pytest.mark.parametrize("field", ["support_images", "query_images", "images", "nothing"])
def test_ten_thousand_tiny_files_are_one_refusal(server: Server, field: str) -> None:
    part = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="f"\r\n\r\n1\r\n'
    body = part.encode() * 10_000 + b"--x--\r\n"
    made = httpx.post(server.base + SETS, files={"name": (None, "many")}, timeout=PATIENCE).json()[
        "support_set"
    ]
    of_set = (f"{SETS}/{made['id']}/{noun}" for noun in ("examples", "predictions", "evaluations"))
    for path in ("/v1/predictions", SETS, *of_set):
        answer = httpx.post(
            server.base + path,
            content=body,
            headers={"content-type": "multipart/form-data; boundary=x"},
            timeout=PATIENCE,
        )
        assert_problem(answer, 400, "malformed-request")
        assert len(answer.content) < 2000
    assert httpx.get(f"{server.base}{SETS}/{made['id']}", timeout=PATIENCE).json()["examples"] == 0


@pytest.mark.parametrize(
    "value",
    [b"x\tSet-Cookie: a=b", b"x\x00y", b"<script>", b"\xff\xfe", b"a" * 8000, b"%0d%0aA: b"],
)
def test_a_request_id_cannot_reach_headers_or_logs(server: Server, value: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"GET /v1/models/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: "
            + value
            + b"\r\n\r\n"
        )
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] in (b"400", b"404")
    if b" 404 " in head:
        (shown,) = re.findall(rb"(?im)^x-request-id: (.*?)\r$", head + b"\r\n")
        assert re.fullmatch(b"[0-9a-f]{32}", shown)
        assert json.loads(body)["request_id"].encode() == shown
    assert b"Set-Cookie" not in head


@pytest.mark.parametrize(
    ("start", "filler"),
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nA: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
        (b"POST /v1/predictions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
        (b"POST /v1/predictions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
    ],
    ids=["address", "header", "headers", "chunk extension", "trailers"],
)
def test_what_never_ends_is_cut_off(server: Server, start: bytes, filler: bytes) -> None:
    piece, sent = filler * (32_768 // len(filler)), 0
    with connect(server) as connection:
        connection.sendall(start)
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 64 << 20:
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 32 << 20  # what the sockets hold, and not what a client would send


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("length", "size", "status"),
    [(900, 1, b"422"), (1_000_000, 50, b"422"), (1_000_000, 1, None)],
    ids=["few", "small", "next to nothing"],
)
def test_a_body_in_chunks_of_next_to_nothing_is_cut_off(
    server: Server, length: int, size: int, status: bytes | None
) -> None:
    """Each costs as much as a large one. Small ones pass, and so do few of any size."""
    part = b'Content-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
    lead = b"POST /v1/support-sets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + FORM
    body = b"--x\r\n" + part + bytes(length - len(part)) + b"\r\n--x--\r\n"
    answer = b""
    with connect(server) as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(lead + b"Connection: close\r\n\r\n" + chunked(body, size))
        answer = everything(connection)
    assert answer.split(b" ", 2)[1:2] == ([status] if status else [])
    assert httpx.get(server.base + "/livez", timeout=PATIENCE).status_code == 200


def test_half_requests_and_noise_harm_nothing(server: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    ):
        with connect(server) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                everything(connection)
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert httpx.get(server.base + "/readyz", timeout=PATIENCE).status_code == 200


def test_memory_stays_bounded_under_refused_uploads(server: Server) -> None:
    """A hundred uploads over the limit leave no trace."""
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("memory is read from /proc")

    def resident() -> int:
        (found,) = re.findall(r"VmRSS:\s+(\d+) kB", status.read_text())
        return int(found) // 1024

    def upload() -> None:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        answer = httpx.post(
            f"{server.base}/v1/predictions",
            content=b"-" * (9 << 20),
            headers=kind,
            timeout=PATIENCE,
        )
        assert_problem(answer, 413, "body-too-large")

    for _ in range(10):
        upload()
    before = resident()
    for _ in range(100):
        upload()
    give_up = time.monotonic() + PATIENCE
    while resident() > before + 64 and time.monotonic() < give_up:
        time.sleep(0.1)
    assert resident() <= before + 64


def test_memory_stays_bounded_under_images_that_nobody_reads(zoo: Path, tmp_path: Path) -> None:
    flags = ("--data-dir", tmp_path, "--max-body-mb", 8, "--queue-mb", 16)
    picture = encoded(noise(1, (1600, 1600, 3)), compress_level=0)
    with serving(zoo, tmp_path, *flags) as server, ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=server.base, timeout=PATIENCE))
        files = [("images", ("1.png", picture))]
        made = client.post("/v1/support-sets", data={"labels": "a"}, files=files)
        place = f"/v1/support-sets/{made.json()['support_set']['id']}/examples"
        place += f"/{client.get(place).json()['examples'][0]['id']}/image"
        unread = stack.enter_context(socket.socket())
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the system takes little
        unread.settimeout(PATIENCE)
        unread.connect(("127.0.0.1", server.port))
        unread.sendall(f"GET {place} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert unread.recv(12) == b"HTTP/1.1 200"
        assert_problem(client.get(place), 429, "overloaded")
        assert "fewshot_refused_requests_total 1.0" in client.get("/metrics").text
