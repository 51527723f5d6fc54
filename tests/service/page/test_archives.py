"""Teaching by a zip with a folder per class: shown while it is sent, and beside all else."""

from __future__ import annotations

from typing import Any

import httpx

from tests.service.browser import Service, shot
from tests.service.page.visiting import (
    QUERIES,
    SAMPLES,
    SUPPORT,
    ask_file,
    card,
    drop_archive,
    give,
    load_sample,
    set_id,
    stored,
    thumbs,
    until,
    wait_count,
    wait_for_one,
)
from tests.service.process import PATIENCE

ARCHIVE = SAMPLES / "support.zip"
SAMPLE = {"cross": 3, "hook": 3, "loop": 3}


def hold(page: Any) -> Any:
    """The first upload is held back, the others pass. -> a function that waits for it."""
    held: list[Any] = []
    page.route("**/examples", lambda route: route.continue_() if held else held.append(route))

    def first() -> Any:
        wait_for_one(page, held)
        return held[0]

    return first


def test_what_is_added_while_a_zip_is_sent_is_kept(page: Any, service: Service) -> None:
    first = hold(page)
    drop_archive(page, ARCHIVE)
    upload = first()
    row = page.locator("#archives .archive")
    assert "support.zip" in row.inner_text()
    assert row.locator("progress").is_visible()
    shot(page, "archive")
    card(page, "Class 1").locator(".name").fill("mine")
    card(page, "Class 1").locator(".name").press("Enter")
    give(page, "Class 2", [QUERIES["cross"]])
    upload.continue_()
    wait_count(thumbs(page, "loop"), 3)
    wait_count(thumbs(page, "Class 2"), 1)
    card(page, "mine").wait_for()
    row.wait_for(state="detached")
    assert stored(page, service) == SAMPLE | {"Class 2": 1}
    assert page.locator("#set-name").input_value() == "support"


def test_a_zip_does_not_pull_back_to_its_set(page: Any, service: Service) -> None:
    load_sample(page)
    url = f"{service.base}/v1/support-sets/{set_id(page)}"
    kept = httpx.get(f"{url}/examples", timeout=PATIENCE).json()["examples"]
    httpx.delete(f"{url}/examples/{kept[0]['id']}", timeout=PATIENCE)
    first = hold(page)
    drop_archive(page, ARCHIVE)
    upload = first()
    page.locator("#new-set").click()
    card(page, "Class 1").wait_for()
    with page.expect_response("**/examples"):
        upload.continue_()
    page.wait_for_timeout(300)
    assert "set=" not in page.url
    assert card(page, "Class 1").is_visible()
    assert {one["examples"] for one in httpx.get(url, timeout=PATIENCE).json()["classes"]} == {3}


def test_a_zip_is_kept_while_the_service_is_gone(page: Any, service: Service) -> None:
    gone: list[Any] = []

    def lose(route: Any) -> None:
        if gone:
            return route.continue_()
        gone.append(route)
        route.abort()

    page.route("**/examples", lose)
    drop_archive(page, ARCHIVE)
    wait_count(thumbs(page, "loop"), 3)
    assert gone
    assert stored(page, service) == SAMPLE


def test_a_zip_can_be_chosen_like_an_image(page: Any, service: Service) -> None:
    give(page, "Class 1", [ARCHIVE, SUPPORT["hook"][0]])
    wait_count(thumbs(page, "loop"), 3)
    assert sum(stored(page, service).values()) == 9  # one of them the very same image
    assert page.locator(".failed").count() == 0


def test_a_zip_and_a_query_beyond_the_services_limit_are_not_even_sent(page: Any) -> None:
    load_sample(page)
    limits = page.evaluate("fetch('v1/limits').then((answer) => answer.json())")
    page.route("**/v1/limits", lambda route: route.fulfill(json=limits | {"body_bytes": 1000}))
    page.reload()
    wait_count(thumbs(page, "loop"), 3)
    page.on("request", lambda r: page.watch.complaints.append(r.url) if r.method == "POST" else 0)
    drop_archive(page, ARCHIVE)
    failed = page.locator("#archives .failed")
    failed.wait_for()
    assert "Too large" in failed.inner_text()
    assert not failed.get_by_role("button", name="Try again").is_visible()
    shot(page, "archive-failed")
    ask_file(page, QUERIES["hook"])
    until(page, "document.getElementById('query-fault').textContent.includes('Too large')")
