"""What a visitor of the page does and sees, in steps that wait until they are done."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.service.browser import PATIENCE_MS, Service, Watch

SAMPLES = Path(__file__).parents[3] / "samples"
SUPPORT = {
    name: sorted((SAMPLES / "support" / name).glob("*.png")) for name in ("cross", "hook", "loop")
}
QUERIES = {name: SAMPLES / "queries" / f"{name}.png" for name in SUPPORT}


def opened(browser: Any, service: Service, **options: Any) -> Any:
    """A page of a context of its own, which remembers nothing of other tests."""
    options = {"viewport": {"width": 1280, "height": 900}} | options
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.watch = Watch(service.base)
    page.watch.over(page)
    page.goto(service.base)
    page.wait_for_selector("#entries li")
    return page


def with_cards(page: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Open it anew, every card of the zoo changed on its way to the page."""

    def answer(route: Any) -> None:
        found = route.fetch().json()
        for one in found["models"]:
            change(one)
        route.fulfill(json=found)

    page.route("**/v1/models", answer)
    page.reload()
    page.wait_for_selector("#entries li")


def card(page: Any, label: str) -> Any:
    """The card of a class."""
    return page.locator("#classes > li").filter(
        has=page.locator(f'ul.thumbs[aria-label="Examples of {label}"]')
    )


def thumbs(page: Any, label: str) -> Any:
    """Its stored examples, not those on their way."""
    return card(page, label).locator(".thumb:not(.sending)")


def rename(page: Any, old: str, new: str, becomes: str = "") -> None:
    card(page, old).locator(".name").fill(new)
    card(page, old).locator(".name").press("Enter")
    card(page, becomes or new).wait_for()


def give(page: Any, label: str, files: list[Path]) -> None:
    card(page, label).locator('input[type="file"]').set_input_files(files)


def drop_archive(page: Any, file: Path) -> None:
    """On no class, but beside them."""
    drop = """({ name, data }) => {
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type: "application/zip" }));
      document.getElementById("teach").dispatchEvent(
        new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, {"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()})


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Wait until it is true. Playwright's own way evaluates text, which the policy forbids."""
    give_up = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < give_up, expression
        page.wait_for_timeout(100)


def wait_count(locator: Any, count: int) -> None:
    if count:
        locator.nth(count - 1).wait_for(state="attached")
    locator.nth(count).wait_for(state="detached")


def ask_file(page: Any, path: Path) -> None:
    page.locator("#query-file").set_input_files(path)


def wait_best(page: Any, label: str) -> None:
    until(
        page,
        """label => { const best = document.querySelector("#answers .best .label");
                      return best && best.textContent === label; }""",
        arg=label,
    )


def load_sample(page: Any) -> None:
    page.locator("#sample").click()
    wait_best(page, "hook")
    until(page, "document.querySelectorAll('#why-support canvas').length === 9")


def set_id(page: Any) -> str:
    until(page, "location.hash.includes('set=')")
    found: str = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('set')")
    return found


def stored(page: Any, service: Service) -> dict[str, int]:
    """The set as the server has it."""
    answer = httpx.get(f"{service.base}/v1/support-sets/{set_id(page)}", timeout=60).json()
    return {one["label"]: one["examples"] for one in answer["classes"]}


def stroke(page: Any, canvas: Any, points: list[tuple[float, float]]) -> None:
    """Draw with the mouse; points in a unit square."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def ring(shift: float = 0.0) -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 24 for i in range(25)]
    return [(0.5 + shift + 0.3 * math.cos(a), 0.5 + 0.3 * math.sin(a)) for a in turns]


def slash(shift: float = 0.0) -> list[tuple[float, float]]:
    return [(0.25 + shift, 0.8), (0.5 + shift, 0.45), (0.75 + shift, 0.15)]


def pixels(canvas: Any) -> np.ndarray[Any, Any]:
    data = canvas.evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))


def images(names: list[str]) -> list[dict[str, str]]:
    """For the page to make files of."""
    return [
        {"name": name, "data": base64.b64encode((SAMPLES / name).read_bytes()).decode()}
        for name in names
    ]


MAKE_TRANSFER = """
  const transfer = new DataTransfer();
  for (const { name, data } of files) {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name.split("/").pop(), { type: "image/png" }));
  }
"""


def wait_for_one(page: Any, found: list[Any]) -> None:
    """Until a route has put a request there."""
    for _ in range(PATIENCE_MS // 50):
        if found:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page did not send the request")
