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
TASKS, QUERIES = 60, 5


@pytest.mark.parametrize(
    ("entry", "row"), ROWS, ids=[f"{entry}-{row.rotations}" for entry, row in ROWS]
)
def test_sixty_tasks_agree_with_the_card(entry: str, row: Accuracy) -> None:
    root = real_root(row.dataset)
    options = {
        "--way": row.way,
        "--shot": row.shot,
        "--queries": QUERIES,
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
    # The card's interval is of 1,000 tasks of 15 queries; four standard errors of 60 of 5.
    spread = row.ci95 / 1.96 * (row.tasks / TASKS) ** 0.5 * (row.queries_per_class / QUERIES) ** 0.5
    assert abs(found["mean"] - row.mean) < 4 * spread + 0.005
