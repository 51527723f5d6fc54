"""What the page shows of an answer: attention, two entries side by side, none of these."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.browser import Service, shot
from tests.service.page.visiting import (
    QUERIES,
    SUPPORT,
    ask_file,
    give,
    load_sample,
    pixels,
    set_id,
    thumbs,
    until,
    wait_best,
    wait_count,
    with_cards,
)


def of_layer(layers: list[Any], layer: int) -> np.ndarray[Any, Any]:
    """From 1; 0 is the mean."""
    return np.array(layers[layer - 1] if layer else np.mean(layers, 0))


def test_why_shows_where_it_looked_and_which_examples_counted(page: Any, service: Service) -> None:
    load_sample(page)
    until(page, "document.querySelectorAll('#why-lines path').length === 9")
    asked = httpx.post(
        f"{service.base}/v1/support-sets/{set_id(page)}/predictions",
        data={"model": "stanet-omniglot", "attention": "maps"},
        files={"query_images": QUERIES["hook"].read_bytes()},
        timeout=60,
    ).json()["predictions"][0]["attention"]
    slider = page.locator("#layer")
    assert (slider.get_attribute("max"), slider.input_value()) == ("3", "0")
    told = page.locator("#why-words")
    for layer in (0, 1, 2, 3):
        slider.fill(str(layer))
        until(
            page,
            "text => document.getElementById('layer-shown').textContent === text",
            arg=f"{layer} of 3" if layer else "mean of 3",
        )
        assert ("more of this layer" in told.inner_text()) == bool(layer)
        weights = of_layer([[one["weight"] for one in row] for row in asked["task"]], layer)
        seen = page.locator("#why-support .looked > li").evaluate_all(
            "items => items.map((item) => Number(item.dataset.weight))"
        )
        assert seen == pytest.approx(weights, abs=1e-5)
        # Thicker lines to what counted more; drawn from the thinnest to the thickest.
        widths = page.locator("#why-lines path").evaluate_all(
            "lines => lines.map((line) => Number(line.getAttribute('stroke-width')))"
        )
        assert widths == sorted(widths)
        assert widths[-1] == pytest.approx(9.75)
        # Warmest where the map is highest.
        found, heat = of_layer(asked["query"], layer), pixels(page.locator("#why-query"))
        plain = np.asarray(Image.open(QUERIES["hook"]).convert("RGB").resize(heat.shape[1::-1]))
        warmth = (plain.astype(float) - heat)[..., 2]
        rows, columns = heat.shape[0] // 7, heat.shape[1] // 7
        blocks = warmth[: rows * 7, : columns * 7].reshape(7, rows, 7, columns).mean((1, 3))
        paper = plain[: rows * 7, : columns * 7].reshape(7, rows, 7, columns, 3).mean((1, 3, 4))
        blank = paper > 250  # elsewhere the ink hides colour
        assert np.corrcoef(blocks[blank], found[blank])[0, 1] > 0.8
        shot(page, f"why-layer-{layer}", full=layer == 3)


def test_attention_to_another_class_than_the_answer_is_not_taken_for_it(page: Any) -> None:
    def answer(route: Any) -> None:
        found = route.fetch().json()
        for one in found["predictions"]:
            for place, row in enumerate(one["attention"]["task"]):
                for example in row:
                    example["weight"] = 0.0
                # The middle layer looks at a cross (0 to 2), the others at a hook (3 to 5).
                row[1 if place == 1 else 4]["weight"] = 1.0
        route.fulfill(json=found)

    page.route("**/predictions", answer)
    load_sample(page)
    shares = page.locator("#why-support .share")
    assert shares.all_inner_texts() == ["attention 33%", "attention 67%", "attention 0%"]
    told = page.locator("#why-words")
    assert "shares of attention, which alone does not explain" in told.inner_text()
    assert "most went to" not in told.inner_text()
    page.locator("#layer").fill("2")
    until(page, "document.getElementById('layer-shown').textContent === '2 of 3'")
    assert shares.all_inner_texts() == ["attention 100%", "attention 0%", "attention 0%"]
    assert "Here most went to “cross”; the answer is “hook” all the same." in told.inner_text()


def test_two_entries_answer_the_same_query_side_by_side(page: Any, service: Service) -> None:
    load_sample(page)
    page.locator("#other").select_option("maml-omniglot")
    until(page, "document.querySelectorAll('#answers .answer .bars li').length === 6")
    titles = page.locator("#answers h3").all_inner_texts()
    assert [title.split(" on ")[0] for title in titles] == ["STANet", "MAML"]
    page.locator("#why-models").get_by_role("button", name="MAML").click()
    # It has a map of the query, and neither weights nor maps of the examples.
    until(page, "document.querySelectorAll('#why-lines path').length === 0")
    assert page.locator("#why-words").inner_text() == "Warm colours show where it looked."
    heat = pixels(page.locator("#why-query")).astype(int)
    assert (heat.max(-1) - heat.min(-1)).max() > 100  # the drawing itself has no colours
    shot(page, "compare", full=True)
    page.locator("#all-entries").click()
    entry = page.locator("#entries > li", has_text="MM-Net")
    entry.get_by_role("button", name="Use").click()
    wait_best(page, "hook")
    assert "model=mmnet-omniglot" in page.url


def test_an_entry_without_attention_says_so(page: Any) -> None:
    def card(one: dict[str, Any]) -> None:
        one["attention"] = {"layers": 0, "task": False, "query": None, "support": None}

    def answer(route: Any) -> None:
        found = route.fetch().json()
        for one in found["predictions"]:
            one["attention"] = None
        route.fulfill(json=found)

    page.route("**/predictions", answer)
    with_cards(page, card)
    page.locator("#sample").click()
    wait_best(page, "hook")
    until(page, "document.getElementById('why-none').textContent.includes('no attention')")


def test_a_query_that_no_class_stands_out_for_is_hinted_at(page: Any, service: Service) -> None:
    load_sample(page)
    assert not page.locator(".none-of-these").is_visible()
    page.locator("#new-set").click()
    for n in (0, 1):  # two classes of the very same glyph
        give(page, f"Class {n + 1}", [SUPPORT["hook"][n]])
        wait_count(thumbs(page, f"Class {n + 1}"), 1)
    ask_file(page, QUERIES["hook"])
    page.locator(".none-of-these").wait_for()
    assert "None of these?" in page.locator(".none-of-these").inner_text()
    shot(page, "none-of-these")


def test_the_hint_goes_by_what_the_entry_s_card_says(page: Any) -> None:
    def change(one: dict[str, Any]) -> None:
        rows = [dict(one["accuracy"][0]) for _ in range(2)]
        # The sample has three classes of three: the second row is the one most like it.
        for row, (way, examples, least) in zip(rows, ((20, 1, 0.0), (5, 5, 1.0)), strict=True):
            row |= {"way": way, "shot": examples, "confidence_p5": least}
        if one["id"] == "prototypical-omniglot":
            rows[1]["confidence_p5"] = 0.0
        one["accuracy"] = rows

    with_cards(page, change)
    load_sample(page)
    assert page.locator("#answers .best .value").inner_text() == "100%"
    page.locator(".none-of-these").wait_for()
    page.locator("#model").select_option("prototypical-omniglot")
    page.locator(".none-of-these").wait_for(state="hidden")
    wait_best(page, "hook")
