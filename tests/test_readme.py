"""The README's examples can be followed: its recipe is one, and its files are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_its_accuracies_are_those_on_the_cards() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "accuracy.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.count("\n") > 5
    assert printed in README
