"""The OpenAPI document: valid, and fit to make a client from."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate


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


def test_what_every_request_may_be_refused_for_is_documented(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        if not path.startswith(("/v1/", "/v2/models/")):
            continue
        if path == "/v1/limits":  # which asks for no key
            continue
        for method, operation in operations.items():
            expected = {"401", "403", "429", "503"}  # of keys, their limits, the service's end
            expected |= {"408", "413"} if "requestBody" in operation else set()
            assert expected <= set(operation["responses"]), (method, path)
