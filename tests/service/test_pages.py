"""The page, Swagger UI and the OpenAPI document: complete, and with no outside address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.api.pages import WEB
from service.app import create_app
from service.settings import Settings
from tests.service.asking import ask, encoded, noise, task

OUTSIDE = re.compile(r"""(?:src|href|url)\s*[=(:]\s*["']?(?:https?:)?//""")


def test_the_page_is_html_for_people_and_links_for_programs(client: TestClient) -> None:
    page = client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "Few-shot" in page.text
    links = client.get("/", headers={"accept": "application/json"}).json()["links"]
    for name, path in links.items():
        assert client.get(path).status_code == (405 if name == "predictions" else 200), name


def test_behind_a_prefix_what_it_names_can_be_reached(zoo: Path) -> None:
    app = create_app(Settings(zoo=zoo, device="cpu", threads=1, root_path="/few-shot"))

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/few-shot/")
            scope = scope | {"path": scope["path"].removeprefix("/few-shot")}  # type: ignore[operator]
        await app(scope, receive, send)

    with TestClient(proxy) as client:
        links = client.get("/few-shot/", headers={"Accept": "application/json"}).json()["links"]
        for name in links.keys() - {"predictions"}:
            assert client.get(links[name]).status_code == 200, name
        assert client.get(links["openapi"]).json()["servers"] == [{"url": "/few-shot"}]
        made = client.post(links["support_sets"])
        assert client.get(made.headers["location"]).json() == made.json()["support_set"]
        assert client.get("/few-shot/static/icon.svg").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_only_what_the_service_itself_gives(client: TestClient, path: str) -> None:
    page = client.get(path, headers={"accept": "text/html"})
    assert not OUTSIDE.search(page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page.text)
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get("/" + address).status_code == 200, address


def test_our_own_scripts_and_styles_name_no_outside_address() -> None:
    found = [*WEB.glob("*.*"), *WEB.glob("app/*.*")]
    ours = [path for path in found if path.suffix in (".js", ".css", ".html")]
    assert len(ours) >= 20
    for path in ours:
        assert not OUTSIDE.search(path.read_text("utf-8")), path


def test_swagger_ui_is_vendored_with_its_licence() -> None:
    swagger = WEB / "swagger"
    assert "Apache License" in (swagger / "LICENSE").read_text()
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "NOTICE"):
        assert (swagger / name).stat().st_size > 0


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/v1/models", "/nothing", "/static/style.css"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


# OpenAPI


def test_image_fields_are_file_pickers_and_repeated_fields_are_exploded(
    client: TestClient,
) -> None:
    document = client.get("/openapi.json").json()
    form = document["paths"]["/v1/predictions"]["post"]["requestBody"]["content"]
    assert list(form) == ["multipart/form-data"]
    form = form["multipart/form-data"]
    schemas = document["components"]["schemas"]
    fields = schemas[form["schema"]["$ref"].split("/")[-1]]
    file = {"type": "string", "format": "binary"}
    for name in ("support_images", "query_images"):
        assert fields["properties"][name]["type"] == "array"
        assert file.items() <= fields["properties"][name]["items"].items()
    assert file.items() <= fields["properties"]["support_archive"].items()
    repeated = {"style": "form", "explode": True}
    assert form["encoding"] == dict.fromkeys(
        ("support_images", "support_labels", "query_images"), repeated
    )
    assert set(fields["required"]) == {"model", "query_images"}
    for path, names in {
        "/v1/support-sets": ("images", "archive"),
        "/v1/support-sets/{set_id}/examples": ("images", "archive"),
        "/v1/support-sets/{set_id}/predictions": ("query_images",),
    }.items():
        form = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
        shown = schemas[form["schema"]["$ref"].split("/")[-1]]["properties"]
        for name in names:
            assert file.items() <= shown[name].get("items", shown[name]).items()
    assert fields["properties"]["model"]["example"] in ("attentive", "descent", "mean")
    assert "contentMediaType" not in str(document)
    body = document["paths"]["/v1/support-sets/{set_id}/evaluations"]["post"]["requestBody"]
    [form] = body["content"].values()
    models = schemas[form["schema"]["$ref"].split("/")[-1]]["properties"]["models"]
    assert models["example"] == []  # else Swagger UI asks for a model called "string"


def test_faults_are_documented_as_problems_and_names_are_clean(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in ids)
    assert all(re.fullmatch("[A-Z][A-Za-z]+", name) for name in document["components"]["schemas"])
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert list(answer["content"]) == ["application/problem+json"]
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for reference in re.findall(r"'#/components/schemas/(\w+)'", str(document)):
        assert reference in schemas


def test_the_example_answer_has_the_shape_of_a_real_one(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    example = document["components"]["schemas"]["Predictions"]["example"]
    real = ask(
        client, task(shots=1), [encoded(noise(9))], model="attentive", attention="overlay"
    ).json()

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value).__name__

    assert real.pop("support_set_ref") is None  # FastAPI leaves nulls out of examples
    del real["predictions"][0]["uncertainty"]  # which the example's model does not give
    assert shape(example) == shape(real)


def test_the_example_commands_name_a_model_and_files_that_exist(client: TestClient) -> None:
    root = Path(__file__).parents[2]
    document = client.get("/openapi.json").json()
    text = document["paths"]["/v1/predictions"]["post"]["description"]
    files = re.findall(r"@(\S+)", text)
    assert len(files) >= 6
    for name in files:
        assert (root / name).is_file(), name
    assert set(re.findall(r"model=(\S+)", text)) <= {"attentive", "descent", "mean"}


def test_limits_and_cards_are_answered(client: TestClient) -> None:
    limits = client.get("/v1/limits").json()
    assert limits["body_bytes"] == 2 << 20
    assert "PNG" in limits["image_formats"]
    cards = {card["id"]: card for card in client.get("/v1/models").json()["models"]}
    assert set(cards) == {"attentive", "descent", "mean"}
    assert client.get("/v1/models/descent").json() == cards["descent"]
    assert cards["descent"]["adaptation"]["max_steps"] == 50


# The page's own files


def test_every_module_that_is_imported_is_there_and_served(client: TestClient) -> None:
    modules = {path.name: path.read_text("utf-8") for path in (WEB / "app").glob("*.js")}
    imported = {
        name for text in modules.values() for name in re.findall(r'from "\./([\w.-]+)"', text)
    }
    assert imported | {"main.js"} == set(modules)
    for name in modules:
        answer = client.get(f"/static/app/{name}")
        assert answer.headers["content-type"].startswith("text/javascript")


def test_the_sample_task_is_the_projects_own() -> None:
    samples = Path(__file__).parents[2] / "samples"
    page = {path.name: path.read_bytes() for path in (WEB / "sample").iterdir()}
    drawn = [samples / "support.zip", *(samples / "queries").glob("*.png")]
    assert page == {path.name: path.read_bytes() for path in drawn}


def test_cameras_are_for_the_page_alone(client: TestClient) -> None:
    policy = client.get("/").headers["permissions-policy"]
    assert "camera=(self)" in policy
    assert "microphone=()" in policy
