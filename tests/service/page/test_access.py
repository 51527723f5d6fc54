"""A page for everyone: axe, narrow screens, the keyboard alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.service.browser import Service, shot
from tests.service.page.visiting import (
    QUERIES,
    ask_file,
    card,
    give,
    load_sample,
    opened,
    rename,
    set_id,
    until,
    wait_count,
)

#: An entry whose title is wider than a phone.
LONG = "Few-shot learning without forgetting on Omniglot"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, service: Service, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # The test's script is not the page's: its policy would forbid it.
    page = opened(browser, service, color_scheme=scheme, bypass_csp=True)

    def serious() -> list[str]:
        response = axe.run(page).response
        assert len(response["passes"]) > 20  # it has looked
        found = response["violations"]
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    assert serious() == []
    shot(page, f"empty-{scheme}", full=True)
    load_sample(page)
    page.locator("#other").select_option("prototypical-omniglot")
    card(page, "loop").get_by_role("button", name="Draw").click()
    page.locator("#measure").click()
    page.locator("#measured .confusion").wait_for()
    give(page, "hook", [Path(__file__)])
    card(page, "hook").locator(".thumb.failed").wait_for()
    shot(page, f"full-{scheme}", full=True)
    assert serious() == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_counts_of_confusions_can_be_read_on_any_shade(
    browser: Any, service: Service, scheme: str
) -> None:
    """axe cannot tell: it knows no mixed colours."""

    page = opened(browser, service, color_scheme=scheme)
    load_sample(page)
    accuracy = {"correct": 43, "count": 126, "value": 0.34, "low": 0.26, "high": 0.43}
    confusion = [[20, 18, 11], [15, 13, 13], [6, 20, 10]]
    answer = {
        "support_set_ref": f"{set_id(page)}@1",
        "classes": ["cross", "hook", "loop"],
        "left_out": 126,
        "skipped": [],
        "models": [{"model": "stanet-omniglot", "accuracy": accuracy, "confusion": confusion}],
        "advice": {"model": "stanet-omniglot", "text": []},
    }
    page.route("**/evaluations", lambda route: route.fulfill(json=answer))
    page.locator("#measure").click()
    cells = page.locator("#measured .confusion tbody td")
    wait_count(cells, 9)
    shot(page, f"confusions-{scheme}", full=True)
    seen = cells.evaluate_all(
        """cells => cells.map((cell) => getComputedStyle(cell))
          .map(({ color, backgroundColor }) => [color, backgroundColor])"""
    )
    for ink, ground in seen:
        dark, light = sorted((luminance(ink), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
    page.context.close()


def luminance(colour: str) -> float:
    """Of what a browser computed: `rgb(0 to 255)` or `color(srgb 0 to 1)`. As WCAG defines it."""
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)]
    scale = 255 if colour.startswith("rgb") else 1
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (part / scale for part in parts)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_fits_a_screen_of_360_pixels(browser: Any, service: Service) -> None:
    page = opened(browser, service, viewport={"width": 360, "height": 740}, has_touch=True)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    load_sample(page)
    page.locator("#other").select_option(label=LONG)
    page.locator("#why-models").get_by_role("button", name=LONG).wait_for()
    card(page, "hook").get_by_role("button", name="Draw").click()
    page.locator("#measure").click()
    page.locator("#measured .confusion").wait_for()
    assert page.evaluate(wide) == 360
    outside = """() => [...document.querySelectorAll("body *")].filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width > 0 && box.right > 361 && !element.closest(".scroll, pre, .off-screen");
    }).map((element) => element.outerHTML.slice(0, 100))"""
    assert page.evaluate(outside) == []
    shot(page, "narrow", full=True)
    # Lines to the rows below come down beside the pictures of the first.
    crossed = """() => {
      const boxes = [...document.querySelectorAll("#why-support :is(canvas, .group-name > *)")]
        .map((item) => item.getBoundingClientRect());
      const figure = document.getElementById("why-figure").getBoundingClientRect();
      return [...document.querySelectorAll("#why-lines path")].flatMap((path) => {
        const length = path.getTotalLength();
        return Array.from({ length: 200 }, (_, i) => path.getPointAtLength(length * i / 200))
          .filter(({ x, y }) => boxes.some((box) => x + figure.left > box.left + 2
            && x + figure.left < box.right - 2 && y + figure.top > box.top + 2
            && y + figure.top < box.bottom - 2));
      }).length;
    }"""
    until(page, "document.querySelectorAll('#why-lines path').length === 9")
    heights = page.locator("#why-support canvas").evaluate_all("all => all.map((c) => c.offsetTop)")
    assert len(set(heights)) == 3
    assert page.evaluate(crossed) == 0
    # All of the table of accuracies is in sight, its buttons too.
    scrolls = page.locator("#measured .scroll").first
    assert scrolls.evaluate("one => one.scrollWidth - one.clientWidth") == 0
    page.evaluate("document.getElementById('toast').textContent = 'word '.repeat(40)")
    assert page.locator("#toast").bounding_box()["width"] > 300
    assert page.watch.complaints == []
    page.context.close()


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page: Any) -> None:
    load_sample(page)
    nameless = """() => [...document.querySelectorAll("button, a, input, select")].filter((one) =>
      !one.hidden && one.offsetParent && !(one.getAttribute("aria-label") || one.textContent.trim()
        || one.labels?.length)).map((one) => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"sample", "add-class", "model", "ask-draw", "layer", "measure", "take-onnx"} <= reached


def test_every_answer_is_spoken_and_every_fault(page: Any) -> None:
    load_sample(page)
    until(page, "document.getElementById('spoken').textContent")  # of the sample's own question
    page.evaluate(
        """() => {
          window.heard = [];
          const place = document.getElementById("spoken");
          new MutationObserver(() => place.textContent && heard.push(place.textContent))
            .observe(place, { childList: true });
        }"""
    )

    def answer(route: Any) -> None:
        route.fulfill(json=route.fetch().json() | {"predictions": same["predictions"]})

    with page.expect_response("**/predictions") as answered:
        ask_file(page, QUERIES["cross"])
    same = answered.value.json()
    until(page, "heard.length === 1")
    page.route("**/predictions", answer)
    ask_file(page, QUERIES["loop"])
    until(page, "heard.length === 2")
    assert page.evaluate("heard[0] === heard[1]")
    problem = {"status": 422, "title": "Too many classes", "detail": "it takes 2"}
    page.unroute("**/predictions")
    page.route("**/predictions", lambda route: route.fulfill(status=422, json=problem))
    ask_file(page, QUERIES["hook"])
    until(page, "heard.at(-1) === 'Too many classes: it takes 2'")


def test_the_controls_of_a_class_say_which_it_is(page: Any) -> None:
    load_sample(page)
    names = """() => [...document.querySelectorAll("#classes :is(input.name, .sources button)")]
      .map((one) => one.getAttribute("aria-label"))"""
    said = page.evaluate(names)
    assert said[:4] == ["Name of class 1", "Files for cross", "Draw for cross", "Camera for cross"]
    assert len(set(said)) == len(said) == 12
    rename(page, "cross", "plus")
    assert page.evaluate(names)[1] == "Files for plus"


def test_a_name_that_was_refused_stays_as_long_as_its_fault(page: Any) -> None:
    load_sample(page)
    name, fault = (card(page, "cross").locator(each) for each in (".name", ".head + .fault"))
    for fate in ("another", "gone"):
        name.fill("hook")
        name.press("Enter")
        fault.wait_for()
        page.locator("#add-class").click()
        page.locator("#ask-files").focus()
        wait_count(page.locator("#classes > li"), 4 if fate == "another" else 5)
        assert fault.is_visible()
        assert name.input_value() == "hook"
        assert name.get_attribute("aria-invalid") == "true"
        if fate == "another":
            name.fill("cross")
            name.press("Enter")
        else:
            rename(page, "hook", "haken")
        fault.wait_for(state="hidden")
        assert name.input_value() == "cross"
        assert name.get_attribute("aria-invalid") == "false"


def test_the_keyboard_goes_to_the_classes_of_a_new_set(page: Any) -> None:
    load_sample(page)
    page.locator("#new-set").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'teach'")
    load_sample(page)
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#delete-set").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'teach'")
