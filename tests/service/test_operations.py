"""What an operator relies on: metrics of all workers, ids in logs and answers, closed CORS."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import Settings
from tests.service.asking import ask, ask_set, assert_problem, encoded, make_set, noise, task
from tests.service.process import PATIENCE, ROOT, serving, worker_ids


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Metric name and sorted labels -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    """The sum over all samples of this name that have these labels."""
    wanted = labels.items()
    return sum(v for (n, have), v in samples(text).items() if n == name and wanted <= set(have))


@pytest.fixture
def alone(settings: Settings) -> TestClient:
    """A client of an application whose counters start at zero."""
    return TestClient(create_app(settings))


def test_requests_are_counted_by_template_and_metrics_do_not_count_themselves(
    alone: TestClient,
) -> None:
    with alone as client:
        for name in ("mean", "attentive", "no-such"):
            client.get(f"/v1/models/{name}")
        client.get("/v2/models/mean/ready")  # a router in a router
        client.get("/nowhere/7")
        client.get("/nowhere/8")
        client.request("BREW", "/livez")
        client.head("/docs")  # documented nowhere
        client.get("/metrics")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    text, total = answer.text, "fewshot_http_requests_total"
    assert value(text, total, route="/v1/models/{model_id}", method="GET", status="200") == 2
    assert value(text, total, route="/v1/models/{model_id}", status="404") == 1
    assert value(text, total, route="/v2/models/{model_name}/ready", status="200") == 1
    assert value(text, total, route="none", status="404") == 2
    assert value(text, total, method="other", status="405") == 1
    assert value(text, total, route="/docs", method="HEAD", status="200") == 1
    assert value(text, total) == 8
    count = "fewshot_http_request_duration_seconds_count"
    assert value(text, count) == 8
    assert value(text, "fewshot_http_requests_in_progress") == 0
    assert value(text, "fewshot_build_info") == 1
    assert "no-such" not in text
    assert "nowhere" not in text


def test_every_stage_of_an_answer_is_measured(alone: TestClient) -> None:
    query = [encoded(noise(1))]
    with alone as client:
        answer = ask(client, task(), query)
        made = make_set(client, task()).json()["support_set"]["id"]
        assert ask_set(client, made, query).status_code == 200
        text = client.get("/metrics").text
    stages = set(answer.json()["timing_ms"])
    assert stages == {"decode", "queue", "encode", "adapt", "predict"}
    for stage in stages:
        labels = {"model": "mean", "stage": stage}
        assert value(text, "fewshot_stage_duration_seconds_count", **labels) == 2, stage


def test_a_request_id_is_kept_where_sane_and_made_where_not(client: TestClient) -> None:
    header = "X-Request-Id"
    assert client.get("/livez", headers={header: "job-7.b_c"}).headers[header] == "job-7.b_c"
    made = {
        client.get("/livez", headers={header: given.encode("latin1")}).headers[header]
        for given in (
            "",
            "a" * 65,
            "-x",
            "a b",
            'x"; Set-Cookie: a=b',
            "ä".encode().decode("latin1"),
        )
    }
    assert len(made) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", identity) for identity in made)
    document = assert_problem(
        client.get("/v1/models/none", headers={header: "job-8"}), 404, "unknown-model"
    )
    assert document["request_id"] == "job-8"


def test_cors_is_closed_unless_opened(settings: Settings, client: TestClient) -> None:
    page = {"Origin": "https://shop.example"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=page).headers
    open_to = settings.model_copy(update={"cors_origins": ("https://shop.example",)})
    preflight = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,if-none-match,x-api-key",
    }
    with TestClient(create_app(open_to)) as other:
        allowed = other.get("/v1/models", headers=page).headers
        assert allowed["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-credentials" not in allowed
        exposed = set(allowed["access-control-expose-headers"].split(", "))
        assert {"ETag", "Idempotency-Replayed", "Content-Disposition"} <= exposed
        assert other.options("/v1/predictions", headers=preflight).status_code == 200
        elsewhere = {"Origin": "https://evil.example"}
        refused = other.get("/v1/models", headers=elsewhere).headers
        assert "access-control-allow-origin" not in refused


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in (
        "/",
        "/docs",
        "/v1/models",
        "/v1/models/none",
        "/nowhere",
        "/metrics",
        "/static/x",
    ):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    assert client.get("/v1/models").headers["cache-control"] == "no-store"


def test_warnings_are_lines_of_the_log_too() -> None:
    script = """
import logging.config, warnings
from service import logs
from service.settings import Settings
logging.config.dictConfig(logs.configuration(Settings(log_format="json")))
warnings.warn("two\\nlines")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = json.loads(done.stderr)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "two\nlines" in line["message"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_pillow_warns_of_in_an_image_is_not_logged(
    zoo: Path, tmp_path: Path, workers: int
) -> None:
    """Else an upload could write megabytes to the log."""
    plain = io.BytesIO()
    Image.new("L", (16, 16)).save(plain, "TIFF")
    data = plain.getvalue()
    place = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, place)[0]
    beyond = b"".join(struct.pack("<HHII", 33_000 + tag, 2, 1000, 10**8) for tag in range(9))
    directory = struct.pack("<H", count + 9) + data[place + 2 : place + 2 + 12 * count] + beyond
    strange = data[:4] + struct.pack("<I", len(data)) + data[8:] + directory + bytes(4)
    with pytest.warns(UserWarning, match="Tag data"):
        Image.open(io.BytesIO(strange)).load()

    with serving(zoo, tmp_path, "--workers", workers, "--log-format", "json") as server:
        files = {"images": ("a.tif", strange)}
        form = {"labels": "a"}
        made = httpx.post(
            server.base + "/v1/support-sets", data=form, files=files, timeout=PATIENCE
        )
        assert made.status_code == 201, made.text
    assert "Tag data" not in server.log.read_text()


def test_json_logs_name_the_request_and_hold_no_secrets(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, "--log-format", "json") as server:
        secret = {"Authorization": "Bearer very-secret", "X-Request-Id": "trace-me"}
        path = "/v1/models/none%0a%22forged?token=very-secret"
        # A key that is none: refused before any route is asked.
        assert httpx.get(server.base + path, headers=secret, timeout=PATIENCE).status_code == 401
    records = [json.loads(line) for line in server.log.read_text().splitlines()]  # nothing else
    (welcome,) = [r for r in records if r["message"] == "serving"]
    assert server.base.startswith(welcome["address"])
    assert welcome["models"] == sorted(path.name for path in zoo.iterdir())
    assert welcome["database"].endswith("fewshot.sqlite3")
    (access,) = [r for r in records if r.get("request_id") == "trace-me"]
    assert access["route"] == "/v1/models/{model_id}"
    assert (access["method"], access["status"], access["level"]) == ("GET", 401, "info")
    assert access["duration_ms"] > 0
    assert access["path"] == "/v1/models/none%0A%22forged"
    assert "very-secret" not in server.log.read_text()


def test_workers_share_the_port_and_add_up_their_metrics(zoo: Path, tmp_path: Path) -> None:
    """Two processes; one is killed and comes back; what it counted stays counted."""
    with serving(
        zoo, tmp_path, "--workers", 2, "--log-format", "json", "--log-level", "info"
    ) as server:
        first = worker_ids(server.process.pid, 2)

        def counted() -> float:
            text = httpx.get(server.base + "/metrics", timeout=PATIENCE).text
            return value(text, "fewshot_http_requests_total", route="/v1/models")

        def settled(count: int) -> None:
            """A worker counts what it has sent, and another one may be asked in between."""
            give_up = time.monotonic() + PATIENCE
            while counted() != count:
                assert time.monotonic() < give_up

        sent = 0
        while served(server.log) < first:  # a connection each, until both were asked
            assert httpx.get(server.base + "/v1/models", timeout=PATIENCE).status_code == 200
            sent += 1
            assert sent < 2000
        settled(sent)
        assert {counted() for _ in range(6)} == {sent}
        os.kill(min(first), signal.SIGKILL)
        second = worker_ids(server.process.pid, 2, without=min(first))
        assert len(second - first) == 1
        assert httpx.get(server.base + "/v1/models", timeout=PATIENCE).status_code == 200
        settled(sent + 1)
        text = httpx.get(server.base + "/metrics", timeout=PATIENCE).text
        assert value(text, "fewshot_http_requests_in_progress") == 0
        assert value(text, "fewshot_build_info") == 1
        give_up = time.monotonic() + PATIENCE
        while value(text, "fewshot_worker_restarts_total") != 1:  # the new one imports
            assert time.monotonic() < give_up
            text = httpx.get(server.base + "/metrics", timeout=PATIENCE).text
    records = [json.loads(line) for line in server.log.read_text().splitlines()]
    warnings = [r["message"] for r in records if r["level"] == "warning"]
    (warning,) = [message for message in warnings if message.startswith("worker ")]
    assert warning == f"worker {min(first)} died (SIGKILL) and is started again"
    assert not [pid for pid in first | second if Path(f"/proc/{pid}").exists()]


def test_the_documented_backup_copies_the_database_or_fails(tmp_path: Path) -> None:
    (line,) = re.findall(
        r"python -c \"(import sqlite3; .+)\"", (ROOT / "docs" / "operations.md").read_text("utf-8")
    )
    for place in ("data", "backup"):
        (tmp_path / place).mkdir()
        assert f"/{place}/" in line
        line = line.replace(f"/{place}/", f"{tmp_path / place}/")
    file, copy = tmp_path / "data" / "fewshot.sqlite3", tmp_path / "backup" / "copy.sqlite3"
    wrong = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert not file.exists() and not copy.exists()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE kept AS SELECT 5 AS number")
        subprocess.run([sys.executable, "-c", line], check=True)
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("SELECT number FROM kept").fetchall() == [(5,)]


def test_signals_that_would_replace_or_end_a_worker_do_not(zoo: Path, tmp_path: Path) -> None:
    """While it finishes it would refuse what another one could take."""
    with serving(zoo, tmp_path, "--workers", 2) as server:
        workers = worker_ids(server.process.pid, 2)
        for number in (signal.SIGTTOU, signal.SIGTTIN):
            server.process.send_signal(number)
            time.sleep(1)  # a supervisor looks every half a second
        assert worker_ids(server.process.pid, 2) == workers


def test_a_full_folder_for_temporary_files_ends_no_worker(
    zoo: Path, full_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory, where the metrics would be")
    folder = tmp_path_factory.mktemp("server")
    with serving(zoo, folder, "--workers", 2, TMPDIR=str(full_disk)) as server:
        workers = worker_ids(server.process.pid, 2)
        free = os.statvfs(full_disk)
        (full_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):  # each is counted anew
            for path in ("/v1/models", "/v1/support-sets", "/v1/predictions", "/metrics"):
                for _ in range(4):  # for both workers
                    httpx.request(method, server.base + path, timeout=PATIENCE)
        assert worker_ids(server.process.pid, 2) == workers


def served(log: Path) -> set[int]:
    """The processes that answered a request for the models."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["pid"] for line in lines if line.get("route") == "/v1/models"}
