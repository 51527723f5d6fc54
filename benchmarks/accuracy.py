"""The accuracies on the shipped cards as a Markdown table: what the README shows.

python benchmarks/accuracy.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from models_zoo.cards import ENTRIES, Accuracy, list_cards

HEADER = ("Entry", "Test classes", "Task", "Accuracy ± 95% CI")


def classes_of(row: Accuracy) -> str:
    turned = ", also turned" if row.rotations == "classes" else ""
    return f"{row.dataset}, {row.split}{turned}"


def table(root: Path = ENTRIES) -> str:
    """One line for each accuracy of each card, as its protocol and `mean ± ci`."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for card in list_cards(root).values():
        for row in card.accuracy:
            task = f"{row.way}-way {row.shot}-shot"
            score = f"{row.mean:.2%} ± {row.ci95:.2%}"
            lines.append((f"`{card.id}`", classes_of(row), task, score))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
