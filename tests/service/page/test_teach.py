"""Teaching by files, folders, drops, pastes, pen and camera; and the asking that goes with each."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.service.browser import Service, shot
from tests.service.page.visiting import (
    MAKE_TRANSFER,
    QUERIES,
    SAMPLES,
    SUPPORT,
    ask_file,
    card,
    give,
    images,
    load_sample,
    opened,
    rename,
    ring,
    set_id,
    slash,
    stored,
    stroke,
    thumbs,
    until,
    wait_best,
    wait_count,
)
from tests.service.process import PATIENCE


def test_taught_by_files_then_asked_renamed_deleted_and_found_again(
    page: Any, browser: Any, service: Service
) -> None:
    rename(page, "Class 1", "haken")
    rename(page, "Class 2", "cross")
    page.locator("#add-class").click()
    rename(page, "Class 3", "loop")
    assert "set=" not in page.url  # nothing is kept before there is something to keep
    for label, source in (("haken", "hook"), ("cross", "cross"), ("loop", "loop")):
        give(page, label, SUPPORT[source][:2])
        wait_count(thumbs(page, label), 2)
    assert stored(page, service) == {"haken": 2, "cross": 2, "loop": 2}
    assert page.locator("#model").input_value() == "stanet-omniglot"  # they are drawings
    for name, label in (("hook", "haken"), ("loop", "loop"), ("cross", "cross")):
        ask_file(page, QUERIES[name])
        wait_best(page, label)
    until(page, "document.getElementById('spoken').textContent.startsWith('cross, ')")
    shot(page, "teach-files-light", full=True)

    rename(page, "haken", "hook")  # a class with examples
    until(page, "document.querySelector('#answers .bars .label').textContent === 'hook'")
    assert stored(page, service) == {"hook": 2, "cross": 2, "loop": 2}
    card(page, "cross").locator(".name").fill("loop")
    card(page, "cross").locator(".name").press("Enter")
    fault = card(page, "cross").locator(".head + .fault")
    fault.wait_for()
    assert "already" in fault.inner_text()
    card(page, "cross").locator(".name").press("Escape")
    fault.wait_for(state="hidden")

    thumbs(page, "loop").first.hover()
    card(page, "loop").get_by_role("button", name="Delete example 1 of loop").click()
    wait_count(thumbs(page, "loop"), 1)
    assert stored(page, service) == {"hook": 2, "cross": 2, "loop": 1}
    page.once("dialog", lambda dialog: dialog.accept())
    card(page, "cross").get_by_role("button", name="Delete the class cross").click()
    card(page, "cross").wait_for(state="detached")
    assert stored(page, service) == {"hook": 2, "loop": 1}

    page.reload()
    wait_count(thumbs(page, "hook"), 2)
    wait_count(thumbs(page, "loop"), 1)
    other = opened(browser, service)
    other.goto(page.url)
    wait_count(thumbs(other, "hook"), 2)
    until(other, "[...document.querySelectorAll('.thumb img')].every(i => i.naturalWidth)")
    ask_file(other, QUERIES["loop"])
    wait_best(other, "loop")
    # What the other browser does is seen here once this one is looked at.
    give(other, "loop", SUPPORT["loop"][2:])
    wait_count(thumbs(other, "loop"), 2)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    wait_count(thumbs(page, "loop"), 2)
    assert other.watch.complaints == []
    other.context.close()


def test_a_folder_per_class_teaches_them_all(page: Any, service: Service) -> None:
    page.locator("#folders").set_input_files(SAMPLES / "support")
    for label in SUPPORT:
        wait_count(thumbs(page, label), 3)
    assert stored(page, service) == {"cross": 3, "hook": 3, "loop": 3}
    wait_count(page.locator("#classes > li"), 3)  # the empty ones made room


def test_names_are_written_as_the_service_writes_them(
    page: Any, service: Service, tmp_path: Path
) -> None:
    """Else what comes back would be taken for another class, and be sent again for ever."""
    for name, source in (("Cafe\u0301", "hook"), (" loop", "loop")):
        folder = tmp_path / "all" / name
        folder.mkdir(parents=True)
        shutil.copy(SUPPORT[source][0], folder)
    page.locator("#folders").set_input_files(tmp_path / "all")
    for label in ("Caf\u00e9", "loop"):
        wait_count(thumbs(page, label), 1)
    assert stored(page, service) == {"Caf\u00e9": 1, "loop": 1}
    rename(page, "loop", "Cafe\u0301s", "Caf\u00e9s")
    assert stored(page, service) == {"Caf\u00e9": 1, "Caf\u00e9s": 1}


def test_a_name_that_the_service_spells_otherwise_is_taken_over(page: Any) -> None:
    sent: list[str] = []

    def respell(route: Any) -> None:
        sent.append(route.request.method)
        found = httpx.get(route.request.url.removesuffix("/examples"), timeout=PATIENCE).json()
        example = {"id": "exa_1", "label": "Klasse 1", "filename": "1.png"}
        results = [{"status": "created", "example": example}]
        route.fulfill(status=201, json={"support_set": found, "results": results})

    page.route("**/examples", respell)
    give(page, "Class 1", [SUPPORT["hook"][0]])
    wait_count(thumbs(page, "Klasse 1"), 1)
    page.wait_for_timeout(300)
    assert sent == ["POST"]


def test_folders_and_their_files_come_by_name(page: Any) -> None:
    """Whatever order the browser gives them in."""
    order = page.evaluate(
        """async () => {
          const { fromFolderInput } = await import("./static/app/sources.js");
          const file = (path) => ({ name: path.split("/").at(-1), webkitRelativePath: path });
          const given = ["all/b10/1.png", "all/b2/10.png", "all/b2/9.png", "all/A/x.png"];
          const found = fromFolderInput(given.map(file));
          return [...found].map(([label, files]) => [label, files.map((one) => one.name)]);
        }"""
    )
    assert order == [["A", ["x.png"]], ["b2", ["9.png", "10.png"]], ["b10", ["1.png"]]]


def test_a_folder_per_class_can_be_dropped(page: Any, service: Service) -> None:
    """A real drop of real folders, as from a file manager: scripts cannot make one."""
    box = page.locator("#teach").bounding_box()
    session = page.context.new_cdp_session(page)
    files = [str(SAMPLES / "support" / "hook"), str(SAMPLES / "support" / "loop")]
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + 5,
                "y": box["y"] + 5,
                "data": {"items": [], "files": files, "dragOperationsMask": 1},
            },
        )
    for label in ("hook", "loop"):
        wait_count(thumbs(page, label), 3)
    assert stored(page, service) == {"hook": 3, "loop": 3}


def test_images_are_dropped_and_pasted_where_they_belong(page: Any, service: Service) -> None:
    drop = (
        "({ target, files }) => {"
        + MAKE_TRANSFER
        + """
      const element = document.querySelector(target);
      for (const kind of ["dragenter", "dragover", "drop"]) {
        element.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true,
                                                    cancelable: true }));
      }
    }"""
    )
    paste = (
        "({ files }) => {"
        + MAKE_TRANSFER
        + """
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer,
                                                           cancelable: true }));
    }"""
    )
    first = images(["support/hook/1.png", "support/hook/2.png"])
    page.evaluate(drop, {"target": "#classes > li:nth-child(1)", "files": first})
    wait_count(thumbs(page, "Class 1"), 2)
    card(page, "Class 2").get_by_role("button", name="Files").focus()
    page.evaluate(paste, {"files": images(["support/loop/1.png"])})
    wait_count(thumbs(page, "Class 2"), 1)
    assert stored(page, service) == {"Class 1": 2, "Class 2": 1}
    page.locator("#ask-files").focus()
    page.evaluate(paste, {"files": images(["queries/loop.png"])})
    wait_best(page, "Class 2")
    page.evaluate(drop, {"target": "#ask", "files": images(["queries/hook.png"])})
    wait_best(page, "Class 1")


def test_taught_and_asked_by_drawing(page: Any, service: Service) -> None:
    rename(page, "Class 1", "ring")
    rename(page, "Class 2", "slash")
    for label, shape in (("ring", ring), ("slash", slash)):
        card(page, label).get_by_role("button", name="Draw").click()
        canvas = card(page, label).locator("canvas.pad")
        for n, shift in enumerate((0.0, 0.05)):
            stroke(page, canvas, shape(shift))
            if n == 0:
                shot(page, f"teach-drawing-{label}")
            card(page, label).get_by_role("button", name="Add").click()
            wait_count(thumbs(page, label), n + 1)
        card(page, label).get_by_role("button", name="Draw").click()
    assert stored(page, service) == {"ring": 2, "slash": 2}
    examples = f"{service.base}/v1/support-sets/{set_id(page)}/examples"
    one = httpx.get(examples, timeout=PATIENCE).json()["examples"][0]
    drawn = Image.open(
        io.BytesIO(httpx.get(f"{examples}/{one['id']}/image", timeout=PATIENCE).content)
    )
    ink = np.asarray(drawn.convert("L")) < 128
    assert drawn.size == (210, 210)
    assert 0.03 < ink.mean() < 0.12  # a pen's stroke, as in Omniglot

    page.locator("#ask-draw").click()
    canvas = page.locator("#stage-tool canvas.pad")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in ring(-0.04)]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    wait_best(page, "ring")  # while the pen is still down
    page.mouse.up()
    shot(page, "ask-drawing", full=True)
    page.locator("#stage-tool").get_by_role("button", name="Clear").click()
    wait_count(page.locator("#answers .bars li"), 0)
    stroke(page, canvas, slash(0.03))
    wait_best(page, "slash")


def test_the_keyboard_alone_can_draw(page: Any, service: Service) -> None:
    card(page, "Class 1").get_by_role("button", name="Draw").focus()
    page.keyboard.press("Enter")
    card(page, "Class 1").locator("canvas.pad").focus()
    page.keyboard.press("Space")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    card(page, "Class 1").get_by_role("button", name="Add").focus()
    page.keyboard.press("Enter")
    wait_count(thumbs(page, "Class 1"), 1)
    # Focus is back on the paper, and a deleted example leaves it within the class.
    assert page.evaluate("document.activeElement.className") == "pad"
    thumbs(page, "Class 1").first.locator("button").focus()
    page.keyboard.press("Enter")
    wait_count(thumbs(page, "Class 1"), 0)
    until(page, "document.activeElement.closest('.class') !== null")


def test_taught_and_asked_by_a_camera(page: Any, service: Service) -> None:
    for label in ("Class 1", "Class 2"):
        card(page, label).get_by_role("button", name="Camera").click()
        record = card(page, label).get_by_role("button", name="Hold to record")
        until(page, "button => !button.disabled", arg=record.element_handle())
        record.scroll_into_view_if_needed()
        record.hover()
        page.mouse.down()
        thumbs(page, label).nth(2).wait_for()
        shot(page, f"teach-camera-{label[-1]}")
        page.mouse.up()
        wait_count(card(page, label).locator(".sending:not(.noted)"), 0)
        recorded = thumbs(page, label).count()
        assert 3 <= recorded < 40
        card(page, label).get_by_role("button", name="Camera").click()
    assert all(n >= 3 for n in stored(page, service).values())
    assert page.locator("#model").input_value() == "stanet-cifar100"  # in colour
    page.locator("#ask-camera").click()
    page.wait_for_selector("#answers .bars li")
    first = page.locator("#answers .value").all_inner_texts()
    until(
        page,
        """first => [...document.querySelectorAll("#answers .value")].map((e) => e.innerText)
                     .join() !== first.join()""",
        arg=first,
    )  # live: the made-up camera's picture moves
    shot(page, "ask-camera", full=True)
    page.locator("#ask-camera").click()


def test_the_sample_keeps_its_queries_whatever_it_is_called(page: Any, service: Service) -> None:
    load_sample(page)
    page.locator("#set-name").fill("Mine")
    for act in (
        lambda: page.locator("#set-name").press("Enter"),
        lambda: page.locator("#add-class").click(),  # which writes the metadata anew
    ):
        with page.expect_response(lambda answer: answer.request.method == "PATCH"):
            act()
    page.reload()
    wait_count(page.locator("#classes > li"), 4)
    page.get_by_role("button", name="Ask about the sample drawing loop").click()
    wait_best(page, "loop")
    page.locator("#new-set").click()
    page.locator("#samples").wait_for(state="hidden")
