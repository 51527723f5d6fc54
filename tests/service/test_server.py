"""A real server process: it starts, its printed example works, and PyTorch stays out."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.asking import assert_problem

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The printed welcome and the base address."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--zoo", str(zoo), "--port", "0"]
    environment = os.environ | {"FEWSHOT_MAX_BODY_MB": "1", "FEWSHOT_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd="/", env=environment, stdout=output, stderr=output)
        try:
            yield _wait(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()


def _wait(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        text = log.read_text()
        if found := re.search(r"Page\s+(http://\S+/)", text):
            try:
                if httpx.get(found[1] + "readyz").status_code == 200:
                    return text, found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_the_printed_example_works_when_pasted(server: tuple[str, str]) -> None:
    welcome, base = server
    assert f"{base}docs" in welcome
    command = welcome[welcome.index("curl") :].split("\n\n")[0]
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert '"classes":["cross","hook","loop"]' in done.stdout, done.stderr


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
    assert httpx.get(server[1] + "readyz").status_code == 200


def test_a_client_that_leaves_in_the_middle_harms_nothing(server: tuple[str, str]) -> None:
    address = httpx.URL(server[1])
    for _ in range(5):
        with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
    assert httpx.get(server[1] + "livez").status_code == 200


def test_a_taken_port_is_one_clear_line(server: tuple[str, str], zoo: Path) -> None:
    port = str(httpx.URL(server[1]).port)
    command = [sys.executable, str(ROOT / "fewshot.py"), "serve", "--zoo", str(zoo), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"fewshot: cannot listen on 127\.0\.0\.1:\d+: .*in use\n", done.stderr)


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
