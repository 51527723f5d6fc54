"""The OpenAPI document: valid, and fit to make a client from."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from models_zoo.cards import ENTRIES
from tests.service.process import ROOT, serving


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_a_validator_passes_it(document: dict[str, Any]) -> None:
    validate(document)


def test_names_make_clean_methods_and_classes(document: dict[str, Any]) -> None:
    operations = [o for path in document["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) > 8
    assert [name for name in ids if not re.fullmatch("[a-z]+(_[a-z]+){0,3}", name)] == []
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if not re.fullmatch("([A-Z][a-z]+)+", name)] == []
    assert [name for name in schemas if name.startswith(("Body", "HTTP"))] == []
    assert all(operation["tags"] for operation in operations)


def test_every_schema_is_used_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    named = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert named == set(document["components"]["schemas"])


def test_the_examples_of_what_is_done_with_a_set_work_when_pasted(tmp_path: Path) -> None:
    """From the repository's root, as they say."""
    with serving(ENTRIES, tmp_path, "--data-dir", tmp_path) as server:
        paths = httpx.get(f"{server.base}/openapi.json", timeout=60).json()["paths"]
        told = {}
        for path, method in (
            ("evaluations", "post"), ("classifier.onnx", "get"), ("predictions", "post")
        ):  # fmt: skip
            description = paths[f"/v1/support-sets/{{set_id}}/{path}"][method]["description"]
            command = "\n".join(re.findall("^    (.*)$", description, re.MULTILINE))
            command = command.replace("http://127.0.0.1:8000", server.base)
            command = command.replace("-o classifier.onnx", f"--fail -o {tmp_path}/classifier.onnx")
            done = subprocess.run(
                ["bash", "-ec", command], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, command + done.stderr
            told[path] = done.stdout
    assert json.loads(told["evaluations"])["advice"]["model"]
    assert json.loads(told["predictions"])["predictions"][0]["label"] == "hook"
    onnx.checker.check_model((tmp_path / "classifier.onnx").read_bytes())
