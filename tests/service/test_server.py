"""A real server process: it starts, its printed example works, and PyTorch stays out."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from fewshot import app as fewshot
from service import file_limit, http
from service.commands.serve import _listen
from service.engine.events import Events
from service.http import Connection
from service.lifecycle import TAIL_S
from service.middleware import AnswerLimit
from service.settings import Settings
from service.store.database import Database
from service.store.keys import Keys
from service.store.keys import Scope as KeyScope
from tests.service.asking import assert_problem, encoded, noise
from tests.service.postgres import Postgres
from tests.service.process import PATIENCE, ROOT, serving


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The printed welcome and the base address."""
    with serving(zoo, tmp_path_factory.mktemp("server"), "--max-body-mb", 1) as server:
        yield server.log.read_text(), server.base + "/"


def test_the_printed_example_works_when_pasted(server: tuple[str, str]) -> None:
    welcome, base = server
    assert f"{base}docs" in welcome
    command = welcome[welcome.index("curl") :].split("\n\n")[0]
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert '"classes":["cross","hook","loop"]' in done.stdout, done.stderr


def test_the_document_s_examples_ask_the_port_that_was_found(server: tuple[str, str]) -> None:
    _, base = server
    document = httpx.get(f"{base}openapi.json", timeout=PATIENCE).text
    assert f"curl {base}v1/predictions" in document
    assert ":8000" not in document


def test_head_is_answered_wherever_get_is(server: tuple[str, str]) -> None:
    """As GET is, and nothing comes between it and the next answer on the connection."""
    _, base = server
    ids: list[str] = []
    for label in ("cat", "dog"):
        files = [("images", (f"{label}.png", encoded(noise(len(ids)))))]
        to = f"v1/support-sets/{ids[0]}/examples" if ids else "v1/support-sets"
        added = httpx.post(base + to, data={"labels": label}, files=files, timeout=PATIENCE).json()
        ids += [added["support_set"]["id"], added["results"][0]["example"]["id"]]
    values = {"set_id": ids[0], "example_id": ids[1], "model_id": "mean", "model_name": "mean"}
    values |= {"model_version": "1"}
    documented = httpx.get(base + "openapi.json", timeout=PATIENCE).json()["paths"]
    paths = [path.format(**values) for path, methods in documented.items() if "get" in methods]
    assert len(paths) > 15
    assert not any("head" in methods for methods in documented.values())
    host, port = base.removeprefix("http://").rstrip("/").split(":")
    with closing(HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
        for path in [*paths, "/", "/docs", "/openapi.json", "/static/style.css", "/v1/models/none"]:
            address = f"{path}?model=mean" if path.endswith(".onnx") else path
            found = []
            for method in ("GET", "HEAD"):
                connection.request(method, address)
                answer = connection.getresponse()
                passing = {"date", "x-request-id"} | (
                    {"content-length"} if path == "/metrics" else set()
                )
                kept = {k: v for k, v in answer.getheaders() if k.lower() not in passing}
                found.append((answer.status, kept))
                assert bool(answer.read()) is (method == "GET"), path
            assert found[0] == found[1], path
        connection.request("HEAD", "/v1/predictions")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("allow")) == (405, "POST")


def test_a_connection_outlives_a_pause(server: tuple[str, str]) -> None:
    """Load balancers send their next request on one that they hold."""
    host, port = server[1].removeprefix("http://").rstrip("/").split(":")
    with closing(HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
        connection.request("GET", "/livez")
        connection.getresponse().read()
        held = connection.sock
        time.sleep(6)  # uvicorn's own is 5 s
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        assert connection.sock is held


def test_it_says_which_database_it_serves_and_no_password(
    zoo: Path, tmp_path: Path, postgres: Postgres
) -> None:
    with serving(zoo, tmp_path, "--data-dir", tmp_path) as server:
        assert f"\nDatabase    {tmp_path / 'fewshot.sqlite3'}\n" in server.log.read_text()
    url = postgres.new_database().replace("postgres@", "postgres:secret-word@")
    with serving(zoo, tmp_path, DATABASE_URL=url) as server:
        assert re.search(r"^Database    test\d+ on /\S+$", server.log.read_text(), re.MULTILINE)
        assert "secret" not in server.log.read_text()


@pytest.mark.parametrize("flag", ["--data-dir=mine", "--data-dir mine"])
@pytest.mark.parametrize("command", ["serve", "keys list"])
def test_a_data_folder_that_would_go_unused_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*command.split(), *flag.split()]
    url = "postgresql://shop:secret-word@127.0.0.1:1/sets"

    def refused() -> None:
        done = CliRunner().invoke(fewshot, arguments)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert done.stderr.startswith("fewshot: --data-dir would go unused: DATABASE_URL or ")
        assert "leave one of them out" in done.stderr
        assert "secret" not in done.output

    for name in ("DATABASE_URL", "FEWSHOT_DATABASE_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, url)
            refused()
    (tmp_path / ".env").write_text(f"DATABASE_URL={url}\n")
    refused()
    assert not (tmp_path / "mine").exists()


def test_where_there_are_keys_the_printed_example_sends_one(zoo: Path, tmp_path: Path) -> None:
    with closing(Database(tmp_path / "fewshot.sqlite3", threads=1)) as database:
        _, key = Keys(database).create("page", [KeyScope.write])
    with serving(zoo, tmp_path, "--data-dir", tmp_path) as server:
        welcome = server.log.read_text()
        assert "Try it, with your API key for KEY:" in welcome
        command = welcome[welcome.index("curl") :].split("\n\n")[0].replace("KEY", key)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert '"classes":["cross","hook","loop"]' in done.stdout, done.stderr


def test_a_data_folder_that_cannot_be_made_is_one_clear_line(zoo: Path) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("a place where nobody may make a folder")
    arguments = ["serve", "--zoo", str(zoo), "--port", "0", "--data-dir", "/proc/x"]
    refused = CliRunner().invoke(fewshot, arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("fewshot: --data-dir: /proc/x cannot be made (")
    assert refused.stderr.count("\n") == 1


def test_a_chunked_upload_over_the_limit_gets_its_413(server: tuple[str, str]) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="query_images"; filename="f"\r\n\r\n'

    def chunks() -> Iterator[bytes]:
        yield head
        for _ in range(200):
            yield b"x" * 65_536

    kind = {"content-type": "multipart/form-data; boundary=x"}
    response = httpx.post(f"{server[1]}v1/predictions", content=chunks(), headers=kind, timeout=30)
    assert_problem(response, 413, "body-too-large")


def test_an_announced_upload_over_the_limit_is_refused_before_it_is_sent(
    server: tuple[str, str],
) -> None:
    address = httpx.URL(server[1])
    with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert b" 413 " in connection.recv(65_536).split(b"\r\n")[0]
    assert httpx.get(server[1] + "readyz", timeout=PATIENCE).status_code == 200


def test_a_client_that_leaves_in_the_middle_harms_nothing(server: tuple[str, str]) -> None:
    address = httpx.URL(server[1])
    for _ in range(5):
        with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
    assert httpx.get(server[1] + "livez", timeout=PATIENCE).status_code == 200


def test_a_taken_port_is_one_clear_line(server: tuple[str, str], zoo: Path) -> None:
    port = str(httpx.URL(server[1]).port)
    command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--zoo", str(zoo), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"fewshot: cannot listen on 127\.0\.0\.1:\d+: .*in use\n", done.stderr)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("no-such-host.invalid", r"no-such-host\.invalid:0: .*[Nn]ame.*"),
        ("[2001:db8::1]", r"\[2001:db8::1\]:0: .+"),
    ],
)
def test_an_address_that_is_not_ours_is_one_clear_line(zoo: Path, host: str, line: str) -> None:
    command = ["serve", "--zoo", str(zoo), "--port", "0", "--host", host]
    refused = CliRunner().invoke(fewshot, command)
    assert refused.exit_code == 2
    assert re.fullmatch(f"fewshot: cannot listen on {line}\n", refused.stderr)


def test_two_colons_take_both_kinds_of_addresses(zoo: Path, tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving(zoo, tmp_path, "--host", "::") as server:
        for host in ("127.0.0.1", "[::1]"):
            answer = httpx.get(f"http://{host}:{server.port}/livez", timeout=PATIENCE)
            assert answer.status_code == 200


@pytest.mark.parametrize("files", [64, 128, 1024, 4096, 1 << 16, 1 << 20])
def test_a_few_backlogs_have_files_beside_all_connections(
    monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """asyncio accepts three of them before the first of their connections is known to be open."""
    monkeypatch.setattr(file_limit, "files", lambda: files)
    most, backlog = file_limit.most_connections(), file_limit.backlog()
    assert most >= files // 4 > 0 < backlog
    assert most + 3 * backlog + min(200, files // 4) < files


def test_more_connections_than_files_are_closed_and_cost_one_line(
    zoo: Path, tmp_path: Path
) -> None:
    with (
        serving(zoo, tmp_path, files=128) as server,
        httpx.Client(base_url=server.base, timeout=PATIENCE) as client,
        ExitStack() as stack,
    ):
        assert client.get("/livez").status_code == 200
        others = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            for _ in range(200)
        ]
        assert others[-1].recv(1) == b""  # closed by the server
        assert client.get("/livez").status_code == 200  # whoever was there stays
        stack.pop_all().close()
        give_up = time.monotonic() + PATIENCE
        while True:
            with suppress(httpx.TransportError):
                assert httpx.get(server.base + "/livez", timeout=PATIENCE).status_code == 200
                break
            assert time.monotonic() < give_up
        assert server.log.read_text().count("connections are open and new ones are closed") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--database-url", "mysql://x"), "the database must be sqlite:/// or postgresql://"),
        (("--database-url", "postgresql://x@h:p/d"), "the database's URL cannot be read"),
        (
            ("--database-url", "postgresql://x:p@ss/w%rd@h/d"),
            r"the database's URL: write @, / and \? of a password as %40, %2F and %3F",
        ),
        (
            ("--database-url", "postgresql://x@h/d?sslmod=require"),
            "the database's URL: .*sslmod.*",
        ),
        (("--pinned-models", "no-such"), "unknown pinned model 'no-such'; .*"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line_from_any_number_of_workers(
    zoo: Path, tmp_path: Path, workers: str, flags: tuple[str, str], line: str
) -> None:
    command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--zoo", str(zoo), "--port", "0"]
    command += ["--device", "cpu", "--workers", workers, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(f"fewshot: {line}\n", done.stderr)
    assert done.stdout == ""


def test_serving_imports_no_torch_and_no_training_code(zoo: Path) -> None:
    script = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
import fewshot, service.commands.serve, service.commands.classify, service.commands.models
from service.app import create_app
from service.settings import Settings
from tests.service.asking import ask, encoded, noise, task
with TestClient(create_app(Settings(zoo=Path(sys.argv[1]), device="cpu"))) as client:
    assert ask(client, task(), [encoded(noise(1))]).status_code == 200
found = {name.split(".")[0] for name in sys.modules} & {"torch", "torchvision", "training", "onnx"}
assert not found, found
assert "onnxruntime" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(zoo)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_headers() -> None:
    """Without TCP_NODELAY each answer over a kept connection comes 40 ms late."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted_socket = writer.get_extra_info("socket")
            found.set_result(accepted_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(accepted, sock=_listen(Settings(port=0)))
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.close()
            return await found

    assert asyncio.run(option()) != 0


def test_a_request_whose_head_is_slow_is_cut_off_and_a_slow_answer_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "HEAD_S", 0.5)
    get = b"GET / HTTP/1.1\r\nHost: x\r\n"

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1.5)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def told(port: int, *parts: bytes) -> tuple[bytes, float]:
        """What is answered until the server hangs up, and after how many seconds it did."""
        start = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return answer, time.monotonic() - start

    async def ask() -> list[tuple[bytes, float]]:
        config = uvicorn.Config(slow, http=Connection, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        listener = _listen(Settings(port=0))
        serving = asyncio.create_task(server.serve([listener]))
        port = listener.getsockname()[1]
        answers = await asyncio.gather(
            told(port),
            told(port, get),
            told(port, get + b"\r\n" + get, b"Connection: close\r\n", b"\r\n"),
            told(port, get + b"Connection: close\r\n\r\n"),
        )
        server.should_exit = True
        await serving
        return answers

    silent, half, pipelined, whole = asyncio.run(ask())
    assert (silent[0], half[0]) == (b"", b"")
    assert min(silent[1], half[1]) >= 0.5
    assert pipelined[0].count(b"HTTP/1.1 204") == 1
    assert b"\r\nconnection: close\r\n" in pipelined[0]
    assert whole[0].startswith(b"HTTP/1.1 204")


def test_a_connection_just_opened_is_answered_though_the_server_ends() -> None:
    """One worker of several ends as soon as it has nothing to do, and may have just accepted."""

    async def empty(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> tuple[bytes, bytes, float]:
        server = uvicorn.Server(
            uvicorn.Config(empty, http=Connection, lifespan="off", log_config=None)
        )
        listener = _listen(Settings(port=0))
        serving = asyncio.create_task(server.serve([listener]))
        address = ("127.0.0.1", listener.getsockname()[1])
        silent, _ = await asyncio.open_connection(*address)
        reader, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(PATIENCE):
            while len(server.server_state.connections) < 2:
                await asyncio.sleep(0.01)
        for connection in list(server.server_state.connections):
            connection.shutdown()  # as the server does once it ends
        server.should_exit = True
        start = time.monotonic()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        nothing = await asyncio.wait_for(silent.read(), PATIENCE)
        await serving
        return answer, nothing, time.monotonic() - start

    answer, nothing, seconds = asyncio.run(ask())
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"\r\nconnection: close\r\n" in answer
    assert nothing == b""
    assert seconds < TAIL_S + 5


def test_answers_that_nobody_reads_are_bounded_and_the_next_is_refused() -> None:
    """Counted until the client has taken them, and whole where it does."""
    size = 24 << 20  # more than the sockets hold
    content = bytes(range(256)) * (size // 256)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(content)(scope, receive, send)

    refused: list[int] = []
    events = Events()
    events.refused = refused.append  # type: ignore[method-assign]
    app = AnswerLimit(large, most=4 * size, largest=size, events=events)

    async def ask() -> None:
        server = uvicorn.Server(
            uvicorn.Config(app, http=Connection, lifespan="off", log_config=None)
        )
        listener = _listen(Settings(port=0))
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for _ in range(2):
                assert (await client.get("/")).content == content  # each is over before the next
            with ExitStack() as stack:
                for _ in range(2):
                    unread = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    unread.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    # Its first bytes come once it is counted.
                    await asyncio.get_running_loop().run_in_executor(None, unread.recv, 1)
                assert not refused
                answer = await client.get("/")
                assert_problem(answer, 429, "overloaded")
                assert answer.headers["retry-after"] == "1"
                assert refused == [0]
            give_up = time.monotonic() + 10
            while (await client.get("/")).status_code != 200:  # those who left make room
                assert time.monotonic() < give_up
        server.should_exit = True
        await serving

    asyncio.run(ask())


@pytest.mark.parametrize("pause", [0, 0.2])
def test_a_client_that_sends_another_request_is_seen_to_leave_all_the_same(pause: float) -> None:
    """And a connection is kept where the next request waits for the answer."""

    async def scenario() -> None:
        seen: list[str] = []
        gone = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"])
            while scope["path"] == "/work" and not gone.is_set():
                message = await receive()
                assert not message.get("body"), "of another request"
                if message["type"] == "http.disconnect":
                    gone.set()
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        config = uvicorn.Config(app, http=Connection, lifespan="off", log_config=None)
        server, listener = uvicorn.Server(config), _listen(Settings(port=0))
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        for _ in range(3):
            writer.write(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.write(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(pause)
        writer.write(
            b"POST /more HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Content-Length: 200000\r\n\r\n" + bytes(200_000)
        )
        await writer.drain()
        writer.close()
        await asyncio.wait_for(gone.wait(), PATIENCE / 10)
        server.should_exit = True
        await serving
        assert seen == ["/kept"] * 3 + ["/work"]

    asyncio.run(scenario())


def test_an_answer_that_nobody_reads_is_let_go_and_one_that_is_read_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "UNSENT_S", 2)
    size = 24 << 20  # more than the sockets hold

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        length = (b"content-length", str(size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def slowly(port: int) -> int:
        """The bytes of the body, read over twice `UNSENT_S` and more."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        read = 0
        while part := await reader.read(1 << 20):
            read += len(part)
            await asyncio.sleep(5 * len(part) / size)
        writer.close()
        return read

    async def ask() -> int:
        config = uvicorn.Config(large, http=Connection, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        listener = _listen(Settings(port=0))
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]))
        with ExitStack() as stack:
            for _ in range(3):
                unread = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                unread.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            read = await slowly(port)
            give_up = time.monotonic() + PATIENCE
            while server.server_state.connections and time.monotonic() < give_up:
                await asyncio.sleep(0.05)
            left = len(server.server_state.connections)
        server.should_exit = True
        await serving
        assert left == 0, "what nobody reads is kept"
        return read

    assert asyncio.run(ask()) == size
