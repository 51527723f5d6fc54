"""The OpenAPI document, mended where FastAPI's own would make Swagger UI hard to use.

- Files: FastAPI writes OpenAPI 3.1's `contentMediaType`, which Swagger UI shows as text boxes; it
  shows file pickers for `format: binary`.
- Repeated form fields: without `encoding` Swagger UI joins them with commas into one field.
- Optional fields: `anyOf [X, null]` hides X's widget; a form cannot send null anyway.
- Empty examples: where a field has none, Swagger UI fills in and sends its own ("string", 0).
- Names: FastAPI calls a form's schema `Body_<operation>`.
- Faults: FastAPI documents its own validation error; this service answers problem documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.inference.codec import InferenceRequest
from service.problems import MEDIA_TYPE, Problem

Node = dict[str, Any]

#: The descriptions' examples are asked of this address.
PORT = 8000
_BASE = "http://127.0.0.1:{}/"
#: And of this model, where they name one: `model=MODEL`, `/models/MODEL`.
_MODEL = re.compile("(?<=[=/])MODEL")


def install(app: FastAPI, models: list[str], port: int) -> None:
    """Make `app.openapi()` give the mended document. `models` and `port` fill in the examples."""

    def document() -> Node:
        if app.openapi_schema is None:
            app.openapi_schema = build(app, models, port)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def build(app: FastAPI, models: list[str], port: int) -> Node:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        license_info=app.license_info,
        tags=app.openapi_tags,
        routes=app.routes,
        servers=app.servers,
    )
    schemas = document["components"]["schemas"]
    # Read by hand, so FastAPI does not know it.
    template = "#/components/schemas/{model}"
    _, read = models_json_schema([(InferenceRequest, "validation")], ref_template=template)
    schemas.update(read["$defs"])
    for operation in _operations(document):
        text = operation.get("description", "").replace(_BASE.format(PORT), _BASE.format(port))
        if models:
            text = _MODEL.sub(models[0], text)
        operation["description"] = text
        _mend_form(operation, schemas, models)
        _mend_faults(operation)
        for parameter in operation.get("parameters", []):
            if parameter["name"] in ("model", "model_id", "model_name") and models:
                parameter["example"] = models[0]
    for operation in _operations(document):
        _name_form(operation, schemas)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _operations(document: Node) -> Iterator[Node]:
    for path in document["paths"].values():
        yield from path.values()


def _mend_form(operation: Node, schemas: Node, models: list[str]) -> None:
    kinds = ("multipart/form-data", "application/x-www-form-urlencoded")
    content = operation.get("requestBody", {}).get("content", {})
    form = next((content[kind] for kind in kinds if kind in content), None)
    if form is None:
        return
    schema = schemas[form["schema"]["$ref"].rsplit("/", 1)[1]]
    encoding = {}
    for name, field in schema["properties"].items():
        _drop_null(field)
        _mark_binary(field)
        if field.get("type") == "array":
            _mark_binary(field["items"])
            field.pop("default", None)
            field["example"], field["items"]["example"] = [], ""
            encoding[name] = {"style": "form", "explode": True}
        elif "default" not in field and field.get("format") != "binary":
            field["example"] = ""
        if name == "model" and models:
            field["example"] = models[0]
            field["description"] += " Here: " + ", ".join(f"`{model}`" for model in models) + "."
    form["encoding"] = encoding


def _name_form(operation: Node, schemas: Node) -> None:
    """`Body_create_set` -> `CreateSetForm`: generated clients take the name as a class's."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rsplit("/", 1)[-1]
        if not name.startswith("Body_"):
            continue
        clean = name.removeprefix("Body_").title().replace("_", "") + "Form"
        if name in schemas:
            schemas[clean] = schemas.pop(name) | {"title": clean}
        content["schema"]["$ref"] = f"#/components/schemas/{clean}"


def _drop_null(field: Node) -> None:
    """`anyOf [X, null]` -> X."""
    kinds = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
    for kind in kinds[:1]:
        field.update(kind)


def _mark_binary(field: Node) -> None:
    if field.pop("contentMediaType", None) is not None:
        field["format"] = "binary"


def _mend_faults(operation: Node) -> None:
    """Every fault is a problem document under its own media type; say which there are."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    for status, answer in operation["responses"].items():
        if int(status) < 400:
            continue
        kinds = [kind for kind in Problem.__subclasses__() if kind.status == int(status)]
        content: Node = {"schema": schema}
        if kinds:
            answer["description"] = "; ".join(f"`{kind.type}`: {kind.title}" for kind in kinds)
            content["example"] = kinds[0](f"{kinds[0].title}.").document()
        answer["content"] = {MEDIA_TYPE: content}
        if int(status) in (429, 503):
            wait = {"description": "Seconds, where it is known.", "schema": {"type": "integer"}}
            answer["headers"] = {"Retry-After": wait}
