"""What goes wrong on the way: bad files, a service that is gone, sets that are gone, keys."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from service.store.keys import Scope
from service.store.store import Store
from tests.service.browser import PATIENCE_MS, Service, Watch, running, shot
from tests.service.page.visiting import (
    QUERIES,
    SAMPLES,
    SUPPORT,
    ask_file,
    card,
    give,
    load_sample,
    opened,
    rename,
    set_id,
    stored,
    thumbs,
    until,
    wait_best,
    wait_count,
    wait_for_one,
)
from tests.service.process import PATIENCE


def test_garbage_is_refused_beside_the_file_and_sinks_nothing_else(
    page: Any, service: Service, tmp_path: Path
) -> None:
    text, cut = tmp_path / "notes.png", tmp_path / "cut.png"
    text.write_text("not an image")
    cut.write_bytes(SUPPORT["hook"][0].read_bytes()[:200])
    give(page, "Class 1", [text, SUPPORT["hook"][0], cut])
    wait_count(thumbs(page, "Class 1"), 1)
    failed = card(page, "Class 1").locator(".thumb.failed")
    wait_count(failed, 2)
    said = {one.locator(".file").inner_text(): one.inner_text() for one in failed.all()}
    assert "not an image" in said["notes.png"]
    assert "truncated or damaged" in said["cut.png"]
    give(page, "Class 2", [text])  # nothing good among them
    wait_count(card(page, "Class 2").locator(".thumb.failed"), 1)
    give(page, "Class 2", [SUPPORT["hook"][0]])  # the other class has this very image
    noted = card(page, "Class 2").locator(".thumb.noted")
    noted.wait_for()
    assert "already an example of “Class 1”" in noted.inner_text()
    give(page, "Class 2", [SUPPORT["loop"][0]])
    wait_count(thumbs(page, "Class 2"), 1)
    assert stored(page, service) == {"Class 1": 1, "Class 2": 1}
    ask_file(page, text)
    page.locator("#query-fault").wait_for()
    assert "not an image" in page.locator("#query-fault").inner_text()
    assert page.locator("#answers > *").count() == 0
    assert page.locator("#take-query").is_disabled()
    for snippet in ("curl", "python"):
        told = page.locator(f"#{snippet}").inner_text()
        assert "query.png" in told
        assert "notes.png" not in told
    shot(page, "garbage")
    failed.first.get_by_role("button", name="Dismiss").click()
    wait_count(failed, 1)
    ask_file(page, QUERIES["loop"])
    wait_best(page, "Class 2")
    assert not page.locator("#query-fault").is_visible()


def test_more_than_an_entry_takes_is_said_in_words(page: Any) -> None:
    page.locator("#folders").set_input_files(SAMPLES / "support")
    wait_count(thumbs(page, "loop"), 3)
    for n in range(4, 7):
        page.locator("#add-class").click()
        give(page, f"Class {n}", [QUERIES["hook" if n == 4 else "loop" if n == 5 else "cross"]])
        wait_count(thumbs(page, f"Class {n}"), 1)
    page.locator("#model").select_option("maml-omniglot")
    ask_file(page, SUPPORT["hook"][0])
    fault = page.locator("#answers .fault")
    fault.wait_for()
    assert "More classes than the model takes" in fault.inner_text()


def test_the_service_gone_and_back(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        page = opened(browser, service)
        load_sample(page)
        service.stop()
        give(page, "loop", [QUERIES["loop"]])
        page.locator("#offline").wait_for()
        ask_file(page, QUERIES["cross"])
        assert card(page, "loop").locator(".sending").count() == 1
        wait_count(page.locator("#answers .answer"), 0)  # no old answer beside the new query
        shot(page, "gone")
        service.start()
        page.locator("#offline").wait_for(state="hidden")
        wait_count(thumbs(page, "loop"), 4)
        wait_best(page, "cross")
        assert stored(page, service) == {"cross": 3, "hook": 3, "loop": 4}
        assert page.watch.complaints == []
        page.context.close()


def test_what_was_deleted_or_renamed_while_the_service_was_gone_stays_so(
    browser: Any, tmp_path: Path
) -> None:
    with running(tmp_path / "data") as service:
        page = opened(browser, service)
        load_sample(page)
        for n in (4, 5):
            page.locator("#add-class").click()
            card(page, f"Class {n}").wait_for()
        service.stop()
        give(page, "Class 4", [QUERIES["loop"]])
        page.locator("#offline").wait_for()
        give(page, "Class 5", [QUERIES["cross"]])
        rename(page, "Class 5", "plus")
        card(page, "Class 4").get_by_role("button", name="Delete the class Class 4").click()
        wait_count(page.locator(".sending"), 1)
        service.start()
        page.locator("#offline").wait_for(state="hidden")
        wait_count(thumbs(page, "plus"), 1)
        wait_count(page.locator(".sending"), 0)
        counts = {"cross": 3, "hook": 3, "loop": 3, "plus": 1}
        give_up = time.monotonic() + 10
        while stored(page, service) != counts:  # what had been on its way is taken back
            assert time.monotonic() < give_up, stored(page, service)
            page.wait_for_timeout(100)
        page.context.close()


@pytest.mark.parametrize("status", [429, 503])
def test_what_was_done_and_could_not_be_confirmed_is_not_done_again(
    page: Any, service: Service, status: int
) -> None:
    """With 503 a database may have committed what it could not confirm; with 429 nothing was done,
    and the edit is sent again."""
    load_sample(page)
    sent: list[str] = []

    def unconfirmed(route: Any) -> None:
        method, body = route.request.method, route.request.post_data or ""
        if not (method == "DELETE" or (method == "PATCH" and "labels" in body)):
            return route.continue_()
        sent.append(method)
        if sent.count(method) > 1:
            return route.continue_()
        if status == 503:
            route.fetch()
        problem = {"status": status, "title": "Not now"}
        route.fulfill(status=status, headers={"Retry-After": "0"}, json=problem)

    page.route("**/v1/support-sets/**", unconfirmed)
    thumbs(page, "loop").first.hover()
    card(page, "loop").get_by_role("button", name="Delete example 1 of loop").click()
    wait_count(thumbs(page, "loop"), 2)
    card(page, "hook").locator(".name").fill("haken")
    card(page, "hook").locator(".name").press("Enter")
    wait_count(thumbs(page, "haken"), 3)
    assert sent == (["DELETE", "PATCH"] if status == 503 else ["DELETE"] * 2 + ["PATCH"] * 2)
    assert stored(page, service) == {"cross": 3, "haken": 3, "loop": 2}


def test_what_others_do_to_the_set_meanwhile_is_shown_and_kept(page: Any, service: Service) -> None:
    load_sample(page)
    url = f"{service.base}/v1/support-sets/{set_id(page)}"
    metadata = httpx.get(url, timeout=PATIENCE).json()["metadata"] | {"team": "north"}
    httpx.patch(url, json={"metadata": metadata}, timeout=PATIENCE).raise_for_status()
    files = {"images": ("new.png", QUERIES["cross"].read_bytes())}
    httpx.post(
        f"{url}/examples", files=files, data={"labels": "cross"}, timeout=PATIENCE
    ).raise_for_status()
    page.locator("#add-class").click()
    wait_count(thumbs(page, "cross"), 4)
    until(page, "document.querySelectorAll('#classes > li').length === 4")
    kept = httpx.get(url, timeout=PATIENCE).json()["metadata"]
    assert kept["team"] == "north"
    assert kept["page"]["classes"] == ["cross", "hook", "loop", "Class 4"]
    files = {"images": ("other.png", QUERIES["hook"].read_bytes())}
    httpx.post(
        f"{url}/examples", files=files, data={"labels": "hook"}, timeout=PATIENCE
    ).raise_for_status()
    give(page, "loop", [QUERIES["loop"]])
    wait_count(thumbs(page, "hook"), 4)
    wait_count(thumbs(page, "loop"), 4)


def test_what_is_under_way_when_another_set_is_begun_stays_with_its_own(
    page: Any, service: Service
) -> None:
    give(page, "Class 1", [SUPPORT["hook"][0]])
    wait_count(thumbs(page, "Class 1"), 1)
    held: list[Any] = []
    # The first is held back, the others pass.
    page.route("**/examples", lambda route: route.continue_() if held else held.append(route))
    give(page, "Class 1", SUPPORT["hook"][1:])
    wait_count(card(page, "Class 1").locator(".sending progress"), 2)
    wait_for_one(page, held)
    first = set_id(page)
    page.locator("#new-set").click()
    wait_count(page.locator(".thumb"), 0)
    with page.expect_response("**/examples"):
        held[0].continue_()
    give(page, "Class 2", [SUPPORT["loop"][0]])
    wait_count(thumbs(page, "Class 2"), 1)
    assert set_id(page) != first
    assert stored(page, service) == {"Class 2": 1}
    wait_count(page.locator(".thumb"), 1)
    before = httpx.get(f"{service.base}/v1/support-sets/{first}", timeout=PATIENCE).json()
    assert before["classes"] == [{"label": "Class 1", "examples": 3}]


def with_an_upload_held(page: Any) -> tuple[str, str, Any]:
    """The sample's set, one of a class that has an image, and the request that brings it two more,
    which does not get through yet."""
    load_sample(page)
    other = set_id(page)
    page.locator("#new-set").click()
    give(page, "Class 1", [SUPPORT["hook"][0]])
    wait_count(thumbs(page, "Class 1"), 1)
    own = set_id(page)
    held: list[Any] = []
    page.route("**/examples", lambda route: held.append(route))
    give(page, "Class 1", SUPPORT["hook"][1:])
    wait_for_one(page, held)
    return other, own, held[0]


def test_what_waits_for_an_upload_is_done_to_its_own_set_or_not_at_all(
    page: Any, service: Service
) -> None:
    other, own, held = with_an_upload_held(page)
    page.locator("#set-name").fill("own")
    page.locator("#set-name").press("Enter")
    card(page, "Class 1").locator(".name").fill("hook")
    card(page, "Class 1").locator(".name").press("Enter")
    page.evaluate("history.go(-2)")
    wait_count(thumbs(page, "loop"), 3)
    held.continue_()
    until(page, "document.getElementById('toast').textContent.includes('not made')")

    def known(of: str) -> tuple[str, list[str]]:
        found = httpx.get(f"{service.base}/v1/support-sets/{of}", timeout=PATIENCE).json()
        return found["name"], [one["label"] for one in found["classes"]]

    assert known(other) == ("Sample: three glyphs", ["cross", "hook", "loop"])
    assert known(own) == ("own", ["Class 1"])


def test_a_set_is_deleted_while_an_upload_to_it_is_under_way(page: Any, service: Service) -> None:
    other, own, held = with_an_upload_held(page)
    deletions: list[Any] = []

    def delete(route: Any) -> None:
        if route.request.method != "DELETE":
            return route.fallback()
        deletions.append(route)

    page.route("**/v1/support-sets/*", delete)
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#delete-set").click()
    wait_for_one(page, deletions)
    assert page.locator("#delete-set").is_disabled()
    page.evaluate("history.go(-2)")
    wait_count(thumbs(page, "loop"), 3)
    assert page.locator("#delete-set").is_enabled()
    deletions[0].continue_()
    until(page, "document.getElementById('toast').textContent === 'The support set was deleted'")
    with page.expect_response("**/examples"):
        held.continue_()
    assert set_id(page) == other
    url = f"{service.base}/v1/support-sets"
    assert [httpx.get(f"{url}/{one}", timeout=PATIENCE).status_code for one in (own, other)] == [
        404,
        200,
    ]


#: For the page before it starts: what `window.broken` matches breaks off amid its answer, once.
BREAK = """
  const { fetch } = window;
  window.fetch = async (address, options) => {
    const answer = await fetch(address, options);
    if (!window.broken || !String(address).includes(window.broken)) return answer;
    window.broken = null;
    let first = true;
    return new Response(new ReadableStream({ pull(to) {
      if (first) to.enqueue(new TextEncoder().encode('{"models": ['));
      else to.error(new TypeError("network error"));
      first = false;
    } }), { status: answer.status, headers: answer.headers });
  };
"""


def test_an_answer_that_breaks_off_is_asked_for_again(page: Any) -> None:
    page.add_init_script(BREAK + "window.broken = 'v1/models';")
    page.reload()
    page.wait_for_selector("#entries li")
    load_sample(page)
    page.evaluate("() => { window.broken = '/predictions'; }")
    ask_file(page, QUERIES["cross"])
    wait_best(page, "cross")
    assert page.locator("#answers.stale").count() == 0
    page.evaluate("() => { window.broken = '/evaluations'; }")
    page.locator("#measure").click()
    until(page, "document.getElementById('toast').textContent.includes('does not answer')")
    page.locator("#offline").wait_for(state="hidden")


def test_a_connection_that_is_silent_is_given_up(page: Any) -> None:
    load_sample(page)
    page.clock.install()
    held: list[Any] = []
    page.route("**/predictions", lambda r: r.continue_() if held else held.append(r))
    ask_file(page, QUERIES["cross"])
    wait_for_one(page, held)
    page.clock.fast_forward("03:00")
    wait_best(page, "cross")


def test_what_could_not_be_answered_for_now_can_be_asked_again(page: Any) -> None:
    load_sample(page)
    busy = {"status": 503, "title": "The service has too much to do"}
    page.route("**/predictions", lambda route: route.fulfill(status=503, json=busy))
    ask_file(page, QUERIES["cross"])
    again = page.get_by_role("button", name="Ask again")
    again.wait_for()
    shot(page, "ask-again")
    page.unroute("**/predictions")
    again.click()
    wait_best(page, "cross")
    assert not again.is_visible()


def test_a_connection_that_is_slow_is_sent_less_at_once(
    page: Any, service: Service, tmp_path: Path
) -> None:
    """And is told which file is too much for it."""
    files = []
    for n in range(5):
        files.append(tmp_path / f"{n}.png")
        padding = bytes(1_500_000 if n == 4 else 300_000)
        files[-1].write_bytes(SUPPORT["hook"][0].read_bytes() + bytes([n]) + padding)
    sent: list[list[str]] = []

    def slow(route: Any) -> None:
        body = route.request.post_data_buffer
        sent.append([path.name for path in files if path.name.encode() in body])
        if len(sent[-1]) <= 2 and "4.png" not in sent[-1]:
            return route.continue_()
        problem = {"status": 408, "title": "The request body did not arrive in time"}
        route.fulfill(status=408, json=problem)

    page.route("**/examples", slow)
    give(page, "Class 1", files)
    failed = card(page, "Class 1").locator(".thumb.failed")
    failed.wait_for()
    assert "the connection is too slow for this file" in failed.inner_text()
    names = [path.name for path in files]
    assert sent == [names[:4], names[:2], names[2:4], names[4:]]
    assert stored(page, service) == {"Class 1": 4}


def test_a_name_that_cannot_be_printed_holds_up_its_own_images_only(
    page: Any, service: Service, tmp_path: Path
) -> None:
    for name, source in (("ho\u202eok", "hook"), ("loop", "loop")):
        folder = tmp_path / "all" / name
        folder.mkdir(parents=True)
        shutil.copy(SUPPORT[source][0], folder)
    page.locator("#folders").set_input_files(tmp_path / "all")
    wait_count(thumbs(page, "loop"), 1)
    assert stored(page, service) == {"loop": 1}
    bad = page.locator("#classes > li").first
    assert "cannot be printed" in bad.locator(".head + .fault").inner_text()
    shot(page, "unprintable")
    bad.locator(".name").fill("hook")
    bad.locator(".name").press("Enter")
    wait_count(thumbs(page, "hook"), 1)
    assert not bad.locator(".head + .fault").is_visible()
    assert stored(page, service) == {"hook": 1, "loop": 1}


def test_a_label_that_the_service_refuses_sinks_no_other(page: Any, service: Service) -> None:
    held: list[Any] = []
    page.route("**/examples", lambda r: r.continue_() if len(held) > 1 else held.append(r))
    give(page, "Class 1", [SUPPORT["cross"][0]])
    wait_for_one(page, held)
    give(page, "Class 1", [SUPPORT["hook"][0]])
    give(page, "Class 2", [SUPPORT["loop"][0]])
    held[0].continue_()
    while len(held) < 2:
        page.wait_for_timeout(50)
    kind = "urn:fewshot:problem:invalid-label"
    problem = {"status": 422, "type": kind, "title": "A label is bad", "detail": "", "index": 1}
    held[1].fulfill(status=422, json=problem)
    wait_count(card(page, "Class 2").locator(".thumb.failed"), 1)
    wait_count(card(page, "Class 1").locator(".thumb:not(.sending)"), 2)
    card(page, "Class 2").get_by_role("button", name="Try again").click()
    wait_count(thumbs(page, "Class 2"), 1)
    assert stored(page, service) == {"Class 1": 2, "Class 2": 1}


def test_a_sample_that_is_refused_leaves_the_set_on_the_page(page: Any) -> None:
    give(page, "Class 1", [SUPPORT["hook"][0]])
    wait_count(thumbs(page, "Class 1"), 1)
    own = set_id(page)
    problem = {"status": 409, "title": "No more support sets may be kept"}
    page.route("**/v1/support-sets", lambda route: route.fulfill(status=409, json=problem))
    page.locator("#sample").click()
    until(page, "document.getElementById('toast').textContent.includes('No more')")
    assert set_id(page) == own
    assert thumbs(page, "Class 1").count() == 1


@pytest.mark.parametrize("noticed_by", ["asking", "adding"])
def test_a_set_that_was_deleted_meanwhile_is_said_and_can_be_sent_again(
    page: Any, service: Service, noticed_by: str
) -> None:
    load_sample(page)
    lost = set_id(page)
    httpx.delete(f"{service.base}/v1/support-sets/{lost}", timeout=PATIENCE).raise_for_status()
    counts = {"cross": 3, "hook": 3, "loop": 3}
    if noticed_by == "asking":
        ask_file(page, QUERIES["cross"])
    else:
        give(page, "loop", [QUERIES["loop"]])
        counts["loop"] = 4
    banner = page.locator("#lost")
    banner.wait_for()
    shot(page, f"lost-{noticed_by}")
    banner.get_by_role("button", name="Send its images again").click()
    for label, n in counts.items():
        wait_count(thumbs(page, label), n)
    assert not banner.is_visible()
    assert set_id(page) != lost
    assert stored(page, service) == counts
    assert page.locator("#set-name").input_value() == "Sample: three glyphs"
    assert page.locator("#samples").is_visible()
    httpx.delete(
        f"{service.base}/v1/support-sets/{set_id(page)}", timeout=PATIENCE
    ).raise_for_status()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    banner.get_by_role("button", name="Begin a new set").click()
    wait_count(page.locator(".thumb"), 0)
    assert not banner.is_visible()


def test_images_that_could_not_be_loaded_are_loaded_later(page: Any) -> None:
    load_sample(page)
    asked: list[str] = []
    statuses = [429] * 30 + [500] * 6  # more of them than one request is sent again

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > len(statuses):
            return route.continue_()
        status = statuses[len(asked) - 1]
        problem = {"status": status, "title": "Not now"}
        route.fulfill(status=status, headers={"Retry-After": "0"}, json=problem)

    page.route("**/examples/*/image", refuse)
    page.reload()
    loaded = "[...document.querySelectorAll('.thumb img')].filter((i) => i.naturalWidth).length"
    until(page, f"{loaded} === 3")
    wait_count(page.locator(".thumb img[alt*='cannot be shown']"), 6)
    shot(page, "missing")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    until(page, f"{loaded} === 9")
    wait_count(page.locator(".thumb img[alt*='cannot be shown']"), 0)


def test_a_file_beyond_the_services_limit_is_not_even_sent(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(33 << 20)
    page.on("request", lambda r: page.watch.complaints.append(r.url) if r.method == "POST" else 0)
    give(page, "Class 1", [large])
    failed = card(page, "Class 1").locator(".thumb.failed")
    failed.wait_for()
    assert "at most 33 MB" in failed.inner_text()


def test_a_set_that_is_gone_is_said_and_left(page: Any, service: Service) -> None:
    page.goto("about:blank")  # else only the address would change, and the page stay as it is
    page.goto(f"{service.base}/#set=set_{'0' * 24}")
    until(page, "document.getElementById('toast').textContent.includes('no such support set')")
    assert "set=" not in page.url
    assert page.locator("#classes > li").count() == 2


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "data", auth="required") as service:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(service.base)
        page.locator("#key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        until(page, "document.getElementById('key-words').textContent.includes('not know')")
        shot(page, "key")
        page.locator("#key").fill(new_key(service))
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#entries li")
        load_sample(page)
        assert "FEWSHOT_API_KEY" in page.locator("#curl").inner_text()
        page.reload()
        wait_count(thumbs(page, "hook"), 3)
        until(page, "[...document.querySelectorAll('.thumb img')].every((i) => i.naturalWidth)")
        assert not page.locator("#key-dialog").is_visible()
        page.context.close()


def test_a_key_that_no_header_holds_is_taken_for_an_unknown_one(
    browser: Any, tmp_path: Path
) -> None:
    """And not for a service that is gone."""
    with running(tmp_path / "data", auth="required") as service:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.watch = Watch(service.base)
        page.watch.over(page)
        page.goto(service.base)
        words = "document.getElementById('key-words').textContent.includes('not know')"
        page.locator("#key").fill("fewshot_••• ключ")
        page.get_by_role("button", name="Use it").click()
        until(page, words)
        page.reload()
        until(page, words)
        assert not page.locator("#offline").is_visible()
        page.locator("#key").fill(new_key(service))
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#entries li")
        assert page.watch.complaints == []
        page.context.close()


def test_a_key_that_is_given_late_starts_the_page_after_all(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "data", auth="required") as service:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(service.base)
        dialog = page.locator("#key-dialog")
        cancel = dialog.get_by_role("button", name="Cancel")
        cancel.click()
        banner = page.locator("#no-key")
        banner.wait_for()
        assert "needs an API key" in banner.inner_text()
        page.locator("#sample").click()
        cancel.click()
        until(
            page, "document.getElementById('toast').textContent === 'This service needs an API key'"
        )
        wait_count(page.locator("#classes > li"), 2)  # as before
        shot(page, "no-key")
        page.locator("#sample").click()
        page.locator("#key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        until(page, "document.getElementById('key-words').textContent.includes('not know')")
        page.locator("#key").fill(new_key(service))
        page.get_by_role("button", name="Use it").click()
        wait_best(page, "hook")
        assert not banner.is_visible()
        assert page.locator("#model").input_value() == "stanet-omniglot"
        page.wait_for_selector("#entries li")
        page.context.close()


def test_the_notice_of_a_missing_key_asks_for_it(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "data", auth="required") as service:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(service.base)
        page.locator("#key-dialog").get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Give a key").click()
        page.locator("#key").fill(new_key(service))
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#entries li")
        assert not page.locator("#no-key").is_visible()
        page.context.close()


def new_key(service: Service) -> str:
    store = Store(Settings(data_dir=service.data))
    return store.keys.create("page", [Scope.read, Scope.write])[1]
