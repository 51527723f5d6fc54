"""Taking away: the classifier, the examples, the code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from PIL import Image

from models_zoo.cards import find_card
from models_zoo.preprocess import to_pixels
from tests.service.browser import Service
from tests.service.page.visiting import (
    QUERIES,
    SUPPORT,
    drop_archive,
    load_sample,
    rename,
    stored,
    thumbs,
    until,
    wait_count,
)


def test_the_classifier_runs_without_the_service(page: Any, tmp_path: Path) -> None:
    load_sample(page)
    shown = page.locator("#answers .value").all_inner_texts()
    with page.expect_download() as waiting:
        page.locator("#take-onnx").click()
    file = tmp_path / "classifier.onnx"
    waiting.value.save_as(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    spec = find_card("stanet-omniglot").input
    with Image.open(QUERIES["hook"]) as image:
        found = session.run(None, {"images": to_pixels(image, spec)[None]})[0][0]
    assert labels == ["cross", "hook", "loop"]
    assert labels[int(found.argmax())] == "hook"
    assert [float(text.rstrip("%")) for text in shown] == pytest.approx(100 * found, abs=0.6)


def test_the_examples_come_as_a_zip_that_teaches_again(
    page: Any, service: Service, tmp_path: Path
) -> None:
    load_sample(page)
    rename(page, "loop", "Schleife/ö")
    until(
        page,
        "[...document.querySelectorAll('#classes img')].every((image) => image.naturalWidth)",
    )
    with page.expect_download() as waiting:
        page.locator("#take-zip").click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert sorted({name.split("/")[0] for name in names}) == ["Schleife_ö", "cross", "hook"]
        whole = {archive.read(name) for name in names}
    assert whole == {path.read_bytes() for paths in SUPPORT.values() for path in paths}
    page.locator("#new-set").click()
    drop_archive(page, file)
    wait_count(thumbs(page, "Schleife_ö"), 3)
    assert stored(page, service) == {"Schleife_ö": 3, "cross": 3, "hook": 3}


def test_the_code_that_is_offered_runs(page: Any, service: Service, tmp_path: Path) -> None:
    load_sample(page)
    with page.expect_download() as waiting:
        page.locator("#take-query").click()
    waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
    program = page.locator("#python").inner_text()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[-1] == "hook"
    if shutil.which("curl"):
        command = page.locator("#curl").inner_text()
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert json.loads(done.stdout)["predictions"][0]["label"] == "hook", done.stderr
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the Python program").click()
    until(page, "document.getElementById('toast').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == program
