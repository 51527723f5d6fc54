"""The README's examples can be followed: its recipe is one, and its files are there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.results import beside_papers, pages, readme, score
from models_zoo.cards import ENTRIES, find_card
from tests.service.process import serving
from training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_recipes_it_trains_are_valid() -> None:
    named = re.findall(r"(training/recipes/[\w-]+\.yaml)", README)
    named += re.findall(r"fewshot train ([\w-]+)(?=[` ])", README)
    assert len(named) >= 2
    for name in named:
        load_recipe(ROOT / name if "/" in name else name)


def test_every_file_the_readme_names_is_there() -> None:
    shown = re.findall(r"(?<![\w/])(?:samples|training|service|tests|docs)/[\w./*-]*\w", README)
    assert len(shown) > 5
    assert [name for name in shown if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize("page", ["readme", "zoo", "optimization", "photos"])
def test_its_tables_and_those_of_the_results_are_what_the_cards_say(page: str) -> None:
    table = pages()[page]
    assert table.count("\n") >= 3
    text = README if page == "readme" else (ROOT / f"docs/results/{page}.md").read_text("utf-8")
    assert f"\n{table}\n" in text, f"paste what `python -m benchmarks.results {page}` prints"


def test_an_accuracy_over_another_number_of_queries_says_so() -> None:
    card = find_card("prototypical-omniglot", ENTRIES)
    for queries, told in ((15, " |"), (5, ", 5 queries |")):
        row = card.accuracy[0].model_copy(update={"queries_per_class": queries})
        changed = card.model_copy(update={"accuracy": (row,)})
        assert f"{score(row)}{told}" in readme([changed])
        assert f"5-way 1-shot{told}" in beside_papers([changed])


def test_its_curl_commands_answer_what_it_says(tmp_path: Path) -> None:
    blocks = [b for b in re.findall(r"(?:^    .*\n|^\n)+", README, re.MULTILINE) if "curl" in b]
    with serving(ENTRIES, tmp_path, "--data-dir", tmp_path) as server:
        answers = []
        shell = "set -e\n"
        for block in blocks:
            command = re.split(r"^    \{", block, flags=re.MULTILINE)[0]  # without the answer shown
            command = command.replace("http://127.0.0.1:8000", server.base)
            command = command.replace("-o classifier", f"-o {tmp_path}/classifier")
            command = command.replace("curl ", "curl --silent --show-error --fail-with-body ")
            shell += command.strip() + "\necho\n"
        done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        decoder, text = json.JSONDecoder(), done.stdout.strip()
        while text:
            answer, end = decoder.raw_decode(text)
            answers.append(answer)
            text = text[end:].strip()
    stateless, stored, added, judged = answers
    shown = json.loads(README[README.index("    {\n") : README.index("\n    }\n") + 7])
    assert stateless.keys() == shown.keys()
    assert stateless["model_ref"] == shown["model_ref"]
    assert stateless["predictions"][0]["label"] == stored["predictions"][0]["label"] == "hook"
    assert stored["model_ref"] == shown["model_ref"]
    assert added["results"][0]["status"] == "created"
    assert added["support_set"]["revision"] == 2
    assert judged["advice"]["text"] and judged["left_out"] == 10
    assert (tmp_path / "classifier.onnx").stat().st_size > 100_000
