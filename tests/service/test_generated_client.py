"""A client that a public generator makes from the OpenAPI document asks the service."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.asking import encoded, noise
from tests.service.process import serving


@pytest.fixture(scope="module")
def generated(client: TestClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the package `made`."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(client.get("/openapi.json").json()))
    generator = Path(sys.executable).with_name("openapi-python-client")
    options = ["--path", "openapi.json", "--output-path", "made", "--meta", "none"]
    done = subprocess.run(
        [generator, "generate", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # A stored image comes under whatever type it has, which this generator has no words for.
    assert said.count("WARNING") == 1, said
    assert "image/*" in said
    return folder


def test_it_registers_a_set_and_asks_it(
    generated: Path, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(generated))

    def made(module: str) -> Any:
        return import_module(f"made.{module}")

    def image(seed: int) -> Any:
        return made("types").File(io.BytesIO(encoded(noise(seed))), f"{seed}.png", "image/png")

    models, sets = made("models"), "api.support_sets"
    with serving(zoo, tmp_path, "--data-dir", tmp_path / "data") as server:
        asked = made("client").Client(base_url=server.base)
        form = models.CreateSupportSetForm(images=[image(1), image(2)], labels=["a", "b"])
        answer = made(f"{sets}.create_support_set").sync(client=asked, body=form)
        assert [row.status for row in answer.results] == ["created", "created"]

        form = models.PredictSupportSetForm(model="mean", query_images=[image(2), image(1)])
        found = made(f"{sets}.predict_support_set").sync(
            answer.support_set.id, client=asked, body=form
        )
        assert [prediction.label for prediction in found.predictions] == ["b", "a"]

        form = models.PredictForm(
            model="mean",
            support_images=[image(1), image(2)],
            support_labels=["a", "b"],
            query_images=[image(1)],
        )
        found = made("api.predictions.predict").sync(client=asked, body=form)
        assert [prediction.label for prediction in found.predictions] == ["a"]
        form = models.CreateSupportSetForm(name="precious", metadata='{"a": 1}')
        answer = made(f"{sets}.create_support_set").sync(client=asked, body=form)
        patch = models.SupportSetPatch(ttl=3600)
        assert patch.to_dict() == {"ttl": 3600}  # what is left out stays
        found = made(f"{sets}.patch_support_set").sync(
            answer.support_set.id, client=asked, body=patch
        )
        assert (found.name, found.metadata.to_dict(), found.ttl) == ("precious", {"a": 1}, 3600)

        gone = made("api.models.get_model").sync("none", client=asked)
        assert isinstance(gone, models.ProblemDocument)
        assert gone.status == 404
