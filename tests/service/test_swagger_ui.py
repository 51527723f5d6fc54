"""Swagger UI in a real browser: file pickers, and a task sent from them. No network is used."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service.app import create_app
from service.settings import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SAMPLES = Path(__file__).parents[2] / "samples"
#: Set to a folder to keep the screenshots; FEWSHOT_TEST_ZOO takes another zoo than the tests' own.
SHOTS = os.environ.get("FEWSHOT_TEST_SCREENSHOTS")


@pytest.fixture(scope="module")
def base(zoo: Path) -> Iterator[str]:
    where = Path(os.environ["FEWSHOT_TEST_ZOO"]) if "FEWSHOT_TEST_ZOO" in os.environ else zoo
    app = create_app(Settings(zoo=where, device="cpu", threads=1))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 30
    while not server.started and time.monotonic() < give_up:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(params=["light", "dark"])
def page(base: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that fails the test on any complaint or request to elsewhere."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
        page = browser.new_page(
            viewport={"width": 1200, "height": 1000}, color_scheme=request.param
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((base, "data:", "blob:")) else complaints.append(r.url)
            ),
        )
        page.scheme = request.param
        yield page
        browser.close()
    assert complaints == []


def shot(page: Any, name: str, at: Any = None) -> None:
    """Keep a picture of what is seen, scrolled to `at`."""
    if SHOTS:
        if at is not None:
            at.evaluate("element => element.scrollIntoView()")
        page.screenshot(path=f"{SHOTS}/{name}-{page.scheme}.png")


def test_a_task_can_be_sent_from_swagger_ui(page: Any, base: str) -> None:
    page.goto(f"{base}/docs")
    operation = page.locator("#operations-predictions-predict")
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()

    row = {name: operation.locator(f'[data-property-name="{name}"]') for name in (
        "model", "support_images", "support_labels", "query_images", "support_archive", "attention"
    )}  # fmt: skip
    for label in ("cross", "hook", "loop"):
        row["support_images"].get_by_role("button", name="Add").click()
        image = row["support_images"].locator('input[type="file"]').last
        image.set_input_files(SAMPLES / "support" / label / "1.png")
        row["support_labels"].get_by_role("button", name="Add").click()
        row["support_labels"].locator('input[type="text"]').last.fill(label)
    for label in ("loop", "cross"):
        row["query_images"].get_by_role("button", name="Add").click()
        image = row["query_images"].locator('input[type="file"]').last
        image.set_input_files(SAMPLES / "queries" / f"{label}.png")
    assert row["support_archive"].locator('input[type="file"]').count() == 1
    row["attention"].locator("select").select_option("overlay")
    shot(page, "pickers", operation.locator(".opblock-section-request-body"))

    with page.expect_response("**/v1/predictions") as waiting:
        operation.get_by_role("button", name="Execute").click()
    response = waiting.value
    assert response.status == 200, response.text()
    answer = response.json()
    assert answer["classes"] == ["cross", "hook", "loop"]
    assert [p["filename"] for p in answer["predictions"]] == ["loop.png", "cross.png"]
    assert [p["label"] for p in answer["predictions"]] == ["loop", "cross"]
    operation.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    page.wait_for_timeout(500)
    shot(page, "answer", operation.locator(".responses-inner"))
