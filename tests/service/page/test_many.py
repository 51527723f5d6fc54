"""Many classes: the page stays in reach, shows what leads, and picks an entry that takes them."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.service.browser import Service, shot
from tests.service.page.visiting import opened, until
from tests.service.process import PATIENCE

CLASSES, SHOTS, LEADING = 24, 3, 8


def glyph(seed: int, shift: int) -> bytes:
    """Random strokes; of one seed always the same, a little further on."""
    points = np.random.default_rng(seed).integers(20, 75, (5, 2)) + shift
    image = Image.new("L", (105, 105), "white")
    ImageDraw.Draw(image).line([tuple(map(int, point)) for point in points], fill="black", width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def link(service: Service) -> str:
    """The page's address of a set of many classes."""
    images = [(seed, shift) for seed in range(CLASSES) for shift in range(SHOTS)]
    made = httpx.post(
        f"{service.base}/v1/support-sets",
        data={"labels": [f"glyph {seed}" for seed, _ in images]},
        files=[("images", (f"{a}-{b}.png", glyph(a, b), "image/png")) for a, b in images],
        timeout=60,
    )
    return f"{service.base}/#set={made.json()['support_set']['id']}"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)])
def test_of_many_classes_the_leading_ones_are_shown(
    browser: Any, service: Service, link: str, width: int, height: int
) -> None:
    page = opened(browser, service, viewport={"width": width, "height": height})
    page.goto(link)
    until(page, "[...document.querySelectorAll('.thumb img')].filter(i => i.naturalWidth).length"
          f" === {CLASSES * SHOTS}")  # fmt: skip
    limits = {
        one["id"]: one["limits"]
        for one in httpx.get(f"{service.base}/v1/models", timeout=PATIENCE).json()["models"]
    }
    query = {"name": "query.png", "mimeType": "image/png", "buffer": glyph(5, 4)}
    page.locator("#query-file").set_input_files([query])
    page.locator("#answers .best").wait_for()
    assert limits[page.locator("#model").input_value()]["max_way"] >= CLASSES
    bars = page.locator("#answers .bars li")
    assert bars.count() == LEADING
    assert bars.first.locator(".label").inner_text() == "glyph 5"
    shares = [
        float(fill.split("width: ")[1].split("%")[0])
        for fill in page.locator("#answers .fill").evaluate_all("e => e.map((f) => f.outerHTML)")
    ]
    assert shares == sorted(shares, reverse=True)
    assert f"{CLASSES - LEADING} more classes" in page.locator("#answers .others").inner_text()
    until(page, f"document.querySelectorAll('#why-support > li').length === {LEADING}")
    assert page.locator("#why-support .label").first.inner_text() == "glyph 5"
    assert "not shown" in page.locator("#why-words").inner_text()
    page.locator("#measure").click()
    page.locator("#measured .confusion").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # The classes scroll by themselves: what comes after them is at most two screens down.
    assert page.locator("#classes").bounding_box()["height"] < height
    shot(page, f"many-{width}", full=True)
    assert page.watch.complaints == []
    page.context.close()
