"""Choosing an entry: measured on the visitor's own examples, or by its card."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx

from tests.service.browser import Service, shot
from tests.service.page.visiting import (
    SUPPORT,
    card,
    give,
    load_sample,
    rename,
    until,
    wait_count,
    wait_for_one,
    with_cards,
)
from tests.service.process import PATIENCE


def test_leaving_one_out_measures_every_entry_and_shows_confusions(page: Any) -> None:
    load_sample(page)
    # The page's own answer: of two models that are as good, the quicker is advised.
    with page.expect_response("**/evaluations") as answered:
        page.locator("#measure").click()
    answer = answered.value.json()
    page.locator("#measured .confusion").wait_for()
    rows = page.locator("#measured .accuracies tbody tr")
    assert rows.count() == 6
    more = page.locator("#all-measured")
    assert more.inner_text() == f"Show all {len(answer['models'])} entries"
    more.click()
    assert rows.count() == len(answer["models"]) == page.locator("#model > option").count()
    wanted = next(one for one in answer["models"] if one["model"] == "stanet-cifar100")
    right = wanted["accuracy"]
    row = rows.filter(has_text="STANet on CIFAR-100")
    assert f"{right['correct']} of {right['count']}" in row.inner_text()
    row.get_by_role("button", name="Confusions").click()
    cells = page.locator("#measured .confusion tbody td").all_inner_texts()
    assert [int(text or 0) for text in cells] == [n for line in wanted["confusion"] for n in line]
    for sentence in answer["advice"]["text"]:
        assert sentence in page.locator("#measured").inner_text()
    shot(page, "measured", full=True)
    more.click()
    wait_count(rows, 6)
    card(page, "loop").get_by_role("button", name="Delete example 1 of loop").click()
    page.locator("#measured-old").wait_for()


def test_measuring_leaves_the_keyboard_to_what_the_person_does_meanwhile(page: Any) -> None:
    load_sample(page)
    held: list[Any] = []
    page.route("**/evaluations", lambda route: held.append(route))
    focused = "document.activeElement.id || document.activeElement.className"

    def measure() -> Any:
        page.locator("#measure").focus()
        page.keyboard.press("Enter")
        wait_for_one(page, held)
        return held.pop()

    route = measure()
    page.locator("#set-name").fill("gly")
    with page.expect_response("**/evaluations"):
        route.continue_()
    page.locator("#measured .confusion").wait_for()
    until(page, "document.getElementById('toast').textContent === 'Measured'")
    assert page.evaluate(focused) == "set-name"
    measure().continue_()
    until(page, "document.activeElement.id === 'measured'")


def test_what_was_measured_is_outdated_by_other_examples_alone(page: Any) -> None:
    load_sample(page)
    page.locator("#measure").click()
    page.locator("#measured .confusion").wait_for()
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        page.locator("#set-name").fill("Mine")
        page.locator("#set-name").press("Enter")
    page.locator("#add-class").click()
    card(page, "Class 4").wait_for()
    old = page.locator("#measured-old")
    assert not old.is_visible()
    rename(page, "hook", "haken")
    old.wait_for()
    rename(page, "haken", "hook")
    old.wait_for(state="hidden")


def test_what_is_as_good_may_be_kept_and_another_is_used_from_the_table(page: Any) -> None:
    load_sample(page)
    used = "stanet-omniglot"

    def answer(route: Any) -> None:
        """Of three models, two are as good; the page uses the one that is not advised."""
        found = route.fetch().json()
        found["models"] = [
            one | {"accuracy": one["accuracy"] | {"correct": right, "value": right / 9}}
            for one in found["models"]
            for right in [{used: 9, "mmnet-omniglot": 9, "mann-omniglot": 5}.get(one["model"])]
            if right
        ]
        found["advice"]["model"] = "mmnet-omniglot"
        route.fulfill(json=found)

    page.route("**/evaluations", answer)
    page.locator("#measure").click()
    rows = page.locator("#measured .accuracies tbody tr")
    wait_count(rows, 3)
    assert page.locator("#all-measured").count() == 0
    titles = rows.locator("th").all_inner_texts()
    assert titles == ["MM-Net on Omniglot", "STANet on Omniglot", "MANN on Omniglot"]
    keep = page.locator("#keep")
    assert keep.inner_text() == "Keep STANet on Omniglot, which answers now: none got more right."
    rows.last.get_by_role("button", name="Use MANN").click()
    until(page, "document.getElementById('model').value === 'mann-omniglot'")
    keep.wait_for(state="hidden")
    assert rows.last.get_by_role("button", name="In use").get_attribute("aria-pressed") == "true"


def test_without_a_second_example_of_any_class_the_page_says_what_measuring_needs(
    page: Any,
) -> None:
    give(page, "Class 1", SUPPORT["hook"][:1])
    give(page, "Class 2", SUPPORT["loop"][:1])
    needs = page.locator("#measure-needs")
    needs.wait_for()
    assert "add a second example" in needs.inner_text()
    assert page.locator("#measure").is_disabled()
    give(page, "Class 2", SUPPORT["loop"][1:2])
    needs.wait_for(state="hidden")
    assert page.locator("#measure").is_enabled()


def tenth(number: float) -> str:
    """As JavaScript's toFixed(1) writes it: the larger of two equally near tenths (0.25: 0.3)."""
    return str(Decimal(number).quantize(Decimal("0.1"), ROUND_HALF_UP))


def test_the_entries_are_shown_with_the_facts_of_their_cards(page: Any, service: Service) -> None:
    cards = httpx.get(f"{service.base}/v1/models", timeout=PATIENCE).json()["models"]
    page.locator("#all-entries").click()
    for one in cards:
        text = (
            page.locator("#entries > li")
            .filter(has=page.get_by_role("heading", name=one["title"], exact=True))
            .inner_text()
        )
        assert one["paper"]["title"] in text
        assert str(one["paper"]["year"]) in text
        for row in one["accuracy"]:
            assert f"{row['way']}-way {row['shot']}-shot" in text
            assert f"{tenth(100 * row['mean'])} ± {tenth(100 * row['ci95'])}%" in text


def test_the_best_that_take_the_examples_are_shown_first_and_all_on_demand(
    page: Any, service: Service
) -> None:
    load_sample(page)
    page.locator("#model").select_option("ta-maml-omniglot")
    cards = httpx.get(f"{service.base}/v1/models", timeout=PATIENCE).json()["models"]
    right = {
        one["title"]: max(
            row["mean"]
            for row in one["accuracy"]
            if (row["way"], row["shot"], row["transductive"]) == (5, 1, False)
        )
        for one in cards
    }
    drawings = [one["title"] for one in cards if one["input"]["channels"] == 1]
    photos = [one["title"] for one in cards if one["input"]["channels"] == 3]
    ranking = sorted(drawings, key=lambda title: -right[title])
    ranking += sorted(photos, key=lambda title: -right[title])
    titles = page.locator("#entries h3")
    used = "Task-attended MAML on Omniglot"
    assert titles.all_inner_texts() == [*ranking[:5], used]
    more = page.locator("#all-entries")
    assert more.inner_text() == f"Show all {len(cards)} entries"
    more.click()
    assert titles.all_inner_texts() == ranking
    more.click()
    assert titles.all_inner_texts() == [*ranking[:5], used]


def test_the_speed_on_a_card_is_shown_and_none_is_made_up(page: Any) -> None:
    row = {
        "way": 5,
        "shot": 1,
        "queries_per_class": 15,
        "runs": 31,
        "encode_ms": 8.04,
        "adapt_ms": 0.2,
        "predict_ms": 1.1,
        "hardware": "a CPU, 1 thread",
        "command": "fewshot models time mmnet-omniglot",
    }

    def change(one: dict[str, Any]) -> None:
        one["speed"] = [row] if one["id"] == "mmnet-omniglot" else []

    with_cards(page, change)
    page.locator("#all-entries").click()
    told = page.locator("#entries .speed")
    assert told.count() == 1
    assert told.inner_text() == "About 9.3 ms for 5 classes of 1 example and 75 queries"
    entry = page.locator("#entries > li").filter(has=page.locator(".speed"))
    assert "MM-Net" in entry.inner_text()
