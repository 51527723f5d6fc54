"""On the real images the shipped entries are as good as their cards say: a look at 60 tasks."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fewshot import app
from models_zoo.cards import ENTRIES, Accuracy, load_card
from tests.training.conftest import real_root

ROWS = [
    (path.parent.name, row)
    for path in sorted(ENTRIES.glob("*/card.json"))
    for row in load_card(path.parent).accuracy
    if (row.way, row.shot) == (5, 1)
]
TASKS = 60


@pytest.mark.parametrize(
    ("entry", "row"), ROWS, ids=[f"{entry}-{row.rotations}" for entry, row in ROWS]
)
def test_sixty_tasks_agree_with_the_card(entry: str, row: Accuracy) -> None:
    """Other tasks than the card's, asked as many queries. It tells a damaged model; of the two
    protocols, a point apart, test_commands.py tells which is asked."""
    root = real_root(row.dataset)
    options = {
        "--way": row.way,
        "--shot": row.shot,
        "--queries": row.queries_per_class,
        "--tasks": TASKS,
        "--rotations": row.rotations,
        "--seed": 1,
        "--runtime": "torch",
        "--data": root,
    }
    given = [str(part) for pair in options.items() for part in pair]
    given += ["--apart"] if "--apart" in row.command else []
    done = CliRunner().invoke(app, ["evaluate", entry, "--json", *given])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    # Both are means of tasks: the card's standard error, and what it is for as few as these.
    error = row.ci95 / 1.96 * (1 + row.tasks / TASKS) ** 0.5
    assert abs(found["mean"] - row.mean) < 3 * error
