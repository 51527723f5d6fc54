"""Traces arrive at a collector over the network; without one nothing of it is loaded."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typer.testing import CliRunner

from fewshot import app
from tests.service.asking import encoded, noise
from tests.service.process import PATIENCE, ROOT, serving


class Collector(ThreadingHTTPServer):
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.names: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.names |= {
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_request_and_its_stages_are_spans_under_the_caller_s(zoo: Path, tmp_path: Path) -> None:
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{collector.server_port}"
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    files = [("support_images", (f"{i}.png", encoded(noise(i)))) for i in range(2)]
    files.append(("query_images", ("q.png", encoded(noise(9)))))
    with serving(zoo, tmp_path, "--otlp-endpoint", address, "--data-dir", tmp_path) as server:
        answer = httpx.post(
            server.base + "/v1/predictions",
            data={"model": "mean", "support_labels": ["a", "b"]},
            files=files,
            headers={"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "seven"},
            timeout=PATIENCE,
        )
        assert answer.status_code == 200
        httpx.get(server.base + "/metrics", timeout=PATIENCE)
    collector.shutdown()  # the server has sent all it had before it ended
    collector.server_close()
    by_name = {span.name: span for span in collector.spans if span.trace_id.hex() == trace}
    request = by_name.pop("POST /v1/predictions")
    assert request.parent_span_id.hex() == parent
    assert request.kind == Span.SPAN_KIND_SERVER
    facts = {a.key: a.value.string_value or a.value.int_value for a in request.attributes}
    assert facts["http.response.status_code"] == 200
    assert facts["fewshot.request_id"] == "seven"
    assert set(by_name) == {"decode", "queue", "encode", "adapt", "predict"}
    slack = 50_000_000  # the clocks of spans and of stages are two
    for span in by_name.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano - slack <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano + slack
    starts = [by_name[n].start_time_unix_nano for n in ("decode", "queue", "encode", "predict")]
    assert starts == sorted(starts)
    assert collector.names == {"fewshot"}
    assert not [span.name for span in collector.spans if "metrics" in span.name]


def test_nothing_of_it_is_imported_without_a_collector(zoo: Path) -> None:
    program = (
        "import sys\n"
        "from fastapi.testclient import TestClient\n"
        "from service.app import create_app\n"
        "from service.settings import Settings\n"
        "with TestClient(create_app(Settings(zoo=sys.argv[1], device='cpu'))) as client:\n"
        "    assert client.get('/readyz').status_code == 200\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', "
        "'opentelemetry.exporter'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(zoo)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.serve.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["serve", "--otlp-endpoint", "http://127.0.0.1:9"])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "otel extra" in done.stderr
