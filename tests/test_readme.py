"""The README's examples can be followed: its recipe is one, and its files are there."""

from __future__ import annotations

import re
from pathlib import Path

from training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_recipe_for_your_own_folder_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, "utf-8")
        assert load_recipe(path).data.dataset == "folder"


def test_every_file_the_readme_names_is_there() -> None:
    shown = re.findall(r"(?<![\w/])(?:samples|training|service|tests|docs)/[\w./*-]*\w", README)
    assert len(shown) > 5
    assert [name for name in shown if not list(ROOT.glob(name))] == []
