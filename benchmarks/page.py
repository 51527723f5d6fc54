"""From an image dropped on the page to the confidence bars, in a real headless Chromium.

    python -m benchmarks.page [--drops 30] [--threads 1] [ENTRY ...]

The page's own sample is taught, three classes of three drawings, and its queries are dropped in
turn. The clock runs in the page: from the drop event, over the upload, the answer with its
attention, and the drawing of everything, to the frame after the one with the bars in it. They then
grow to their lengths in 120 ms, as style.css has it. "First" is the first drop after an entry was
chosen, which it learns the support set for. Needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import base64
import shutil
from statistics import median, quantiles
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks.load import ROOT, serving
from models_zoo.cards import list_cards

QUERIES = [ROOT / "samples" / "queries" / f"{name}.png" for name in ("cross", "hook", "loop")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: A new query makes the answers on the screen stale, if there are any, until they are of it.
DROP = """data => new Promise((resolve) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "query.png", { type: "image/png" }));
  const answers = document.getElementById("answers");
  const best = () => answers.querySelector(".best");
  let asked = !best();
  const watch = new MutationObserver(() => {
    const stale = answers.classList.contains("stale");
    asked ||= stale;
    if (!asked || stale || !best()) return;
    watch.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
  });
  watch.observe(answers, { attributes: true, childList: true, subtree: true });
  const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer });
  const start = performance.now();
  document.getElementById("ask").dispatchEvent(drop);
})"""


def measure(page: Any, entry: str, drops: int) -> tuple[float, list[float]]:
    """Milliseconds of the first drop after `entry` was chosen, and of each of the next ones."""
    queries = [base64.b64encode(path.read_bytes()).decode() for path in QUERIES]
    page.locator("#ask-clear").click()
    page.locator("#model").select_option(entry)
    first, *rest = [page.evaluate(DROP, queries[i % len(queries)]) for i in range(drops + 1)]
    return first, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="Default: all.")
    parser.add_argument("--drops", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error("no Chromium on this machine")
    table = Table(title=f"ms from drop to bars, {options.drops} drops each", title_style="bold")
    for heading in ("Entry", "First", "Median", "95th percentile", "Longest"):
        table.add_column(heading, justify="left" if heading == "Entry" else "right")
    with (
        serving(device="cpu", threads=options.threads) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium,
    ):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#sample").click()
        page.locator("#answers .best").wait_for()
        for entry in options.entries or list_cards():
            first, rest = measure(page, entry, options.drops)
            figures = first, median(rest), quantiles(rest, n=20, method="inclusive")[-1], max(rest)
            table.add_row(entry, *(f"{figure:.0f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
