"""What the cards say as Markdown tables: the README's, and those of docs/results beside the papers.

    python -m benchmarks.results readme
    python -m benchmarks.results zoo | optimization | photos

The numbers of the papers and our floors stand here; all others are read from the cards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from models_zoo.cards import ENTRIES, Accuracy, Card, Training, list_cards

#: Way and shot; of a sequence of so many images of each class, the presentation too.
Task = tuple[int, int] | tuple[int, int, int]

#: Percent, turned classes on Omniglot: (a) as STANet's paper reports it, (b) as MM-Net's does, (c)
#: as Task Attended Meta-Learning measured it again; without a letter, the paper's own. Those of
#: MetaOptNet, ALPaCA, Gidaris and Komodakis, and Qiao et al. have nothing on Omniglot's classes.
PUBLISHED: dict[str, dict[Task, str]] = {
    "siamese-omniglot": {(5, 1): "97.3 (b)", (5, 5): "98.4 (b)", (20, 1): "88.2 (b)"},
    "matching-omniglot": {(5, 1): "98.1 (b)", (5, 5): "98.9 (b)", (20, 1): "93.8 (b)"},
    "matching-fce-omniglot": {(5, 1): "98.1 (b)", (5, 5): "98.9 (b)", (20, 1): "93.8 (b)"},
    "relation-omniglot": {(5, 1): "99.6 ± 0.2", (5, 5): "99.8 ± 0.1", (20, 1): "97.6 ± 0.2"},
    "prototypical-omniglot": {
        (5, 1): "98.8; 97.4 (a)",
        (5, 5): "99.7; 99.3 (a)",
        (20, 1): "96.0",
    },
    "gnn-omniglot": {(5, 1): "99.2 (a)", (5, 5): "99.7 (a)"},
    "snail-omniglot": {(5, 1): "98.96 ± 0.20 (a)", (5, 5): "99.75 ± 0.11 (a)"},
    "metanet-omniglot": {(5, 1): "98.95 (b)", (20, 1): "97.00 (b)"},
    "mann-omniglot": {(5, 6, 2): "82.8 (b)", (5, 6, 5): "94.9 (b)"},
    "siamese-memory-omniglot": {(5, 1): "98.4 (b)", (5, 5): "99.6 (b)", (20, 1): "95.0 (b)"},
    "stanet-omniglot": {(5, 1): "98.69 ± 0.22", (5, 5): "99.59 ± 0.33"},
    "mmnet-omniglot": {
        (5, 1): "99.28 ± 0.08",
        (5, 5): "99.77 ± 0.04",
        (20, 1): "97.16 ± 0.10",
    },
    "maml-omniglot": {
        (5, 1): "98.7 ± 0.4, transductive (b)",
        (5, 5): "99.9 ± 0.1, transductive (b)",
        (20, 1): "95.8 ± 0.3, transductive (b)",
    },
    "metalstm-omniglot": {(20, 1): "90.63 ± 0.83 (c)", (20, 5): "97.11 ± 0.24 (c)"},
    "metalstmpp-omniglot": {(20, 1): "96.50 ± 0.42 (c)", (20, 5): "98.41 ± 0.31 (c)"},
    "stanet-cifar100": {(5, 1): "66.11 ± 0.42", (5, 5): "78.54 ± 0.51"},
}
FLOORS: dict[str, dict[Task, float]] = {
    "siamese-omniglot": {(5, 1): 96, (20, 1): 88},
    "matching-omniglot": {(5, 1): 97.5, (20, 1): 92},
    "matching-fce-omniglot": {(5, 1): 97.5, (20, 1): 92},
    "relation-omniglot": {(5, 1): 97.5, (20, 1): 92},
    "prototypical-omniglot": {(5, 1): 98.3, (20, 1): 94.5},
    "gnn-omniglot": {(5, 1): 97.5, (20, 1): 92},
    "dynamic-omniglot": {(5, 1): 97.5, (20, 1): 92},
    "activations-omniglot": {(5, 1): 97, (20, 1): 90},
    "snail-omniglot": {(5, 1): 97, (20, 1): 92},
    "metanet-omniglot": {(5, 1): 97, (20, 1): 92},
    "mann-omniglot": {(5, 6, 2): 80, (5, 6, 5): 92},
    "siamese-memory-omniglot": {(5, 1): 97, (20, 1): 92},
    "metaoptnet-ridge-omniglot": {(5, 1): 98, (20, 1): 94},
    "metaoptnet-svm-omniglot": {(5, 1): 98, (20, 1): 94},
    "alpaca-omniglot": {(5, 1): 97, (20, 1): 91},
    "stanet-omniglot": {(5, 1): 98.0},
    "mmnet-omniglot": {(5, 1): 98.8, (5, 5): 99.5, (20, 1): 96.3},
    "maml-omniglot": {(5, 1): 96.0},
    "fomaml-omniglot": {(5, 1): 96},
    "reptile-omniglot": {(5, 1): 95},
    "metasgd-omniglot": {(5, 1): 97},
    "metalstmpp-omniglot": {(5, 1): 95},
    "stanet-cifar100": {(5, 1): 60, (5, 5): 75},
}
COLUMNS: tuple[Task, ...] = ((5, 1), (5, 5), (20, 1))
#: Of each class, as the pages say of all rows but those that tell another number.
QUERIES = 15


def task_key(row: Accuracy) -> Task:
    task = row.way, row.shot
    return task if row.presentation is None else (*task, row.presentation)


def readme(cards: Iterable[Card]) -> str:
    """A line for each entry: its three usual tasks, by the papers' protocol."""
    header = ("Entry", "Test classes", *(f"{way}-way {shot}-shot" for way, shot in COLUMNS))
    lines = []
    for card in cards:
        rows = [row for row in card.accuracy if row.standard]
        found = {task_key(row): score(row) + unusual(row) for row in rows}
        if rows:
            cells = (found.get(task, "") for task in COLUMNS)
            lines.append((f"`{card.id}`", classes_of(rows[0]), *cells))
    return markdown(header, lines)


def beside_papers(cards: Iterable[Card]) -> str:
    """A line for each accuracy, beside the papers' and our floor, and with its command."""
    header = ("Entry", "Test classes", "Task", "Ours", "Paper", "Floor", "Command")
    lines = []
    for card in cards:
        for row in card.accuracy:
            task = task_key(row)
            known = row.standard
            floor = FLOORS.get(card.id, {}).get(task) if known else None
            lines.append(
                (
                    f"`{card.id}`",
                    classes_of(row),
                    task_of(row),
                    score(row),
                    PUBLISHED.get(card.id, {}).get(task, "") if known else "",
                    "" if floor is None else verdict(row, floor),
                    f"`{row.command}`",
                )
            )
    return markdown(header, lines)


def costs(cards: Iterable[Card]) -> str:
    """A line for each entry: what it has, what its training took, and how long an answer takes."""
    header = ("Entry", "Parameters", "Training", "Task", "Encode", "Adapt", "Predict")
    lines = []
    for card in cards:
        run = card.training
        spent = f"{took(run)}, {run.minutes:.0f} min" if run else ""
        first = (f"`{card.id}`", f"{card.parameters:,}", spent)
        for speed in card.speed:
            times = (speed.encode_ms, speed.adapt_ms, speed.predict_ms)
            queries = speed.way * speed.queries_per_class
            task = f"{speed.way}-way {speed.shot}-shot, {queries} queries"
            lines.append((*first, task, *(f"{ms:.2f} ms" for ms in times)))
        if not card.speed:
            lines.append((*first, "", "", "", ""))
    return markdown(header, lines)


def took(run: Training) -> str:
    kept = f" (kept: {run.steps:,})" if run.steps != run.run_steps else ""
    return f"{run.run_steps:,} steps{kept}"


def classes_of(row: Accuracy) -> str:
    turned = ", also turned" if row.rotations == "classes" else ""
    transductive = ", transductive" if row.transductive else ""
    return f"{row.dataset}, {row.split}{turned}{transductive}"


def task_of(row: Accuracy) -> str:
    if row.presentation is not None:
        return f"{row.way}-way, presentation {row.presentation} of {row.shot}"
    return f"{row.way}-way {row.shot}-shot{unusual(row)}"


def unusual(row: Accuracy) -> str:
    """How many queries of each class were asked, if not as many as of all others."""
    return "" if row.queries_per_class == QUERIES else f", {row.queries_per_class} queries"


def score(row: Accuracy) -> str:
    return f"{row.mean:.2%} ± {row.ci95:.2%}"


def verdict(row: Accuracy, floor: float) -> str:
    missing = floor - row.mean * 100
    return f"{floor:g}" if missing <= 0 else f"{floor:g}, missed by {missing:.2f}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def pages(root: Path = ENTRIES) -> dict[str, str]:
    """Every table, by the page it stands on."""
    cards = list_cards(root).values()
    trained = [card for card in cards if card.training is not None]
    drawn = [card for card in trained if card.training and card.training.dataset == "omniglot"]
    chosen = {
        "zoo": [card for card in drawn if card.family != "optimization"],
        "optimization": [card for card in drawn if card.family == "optimization"],
        "photos": [card for card in trained if card not in drawn],
    }
    tables = {page: f"{beside_papers(of)}\n\n{costs(of)}" for page, of in chosen.items()}
    return {"readme": readme(trained)} | tables


def main() -> None:
    known = pages()
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(f"usage: python -m benchmarks.results {' | '.join(known)}")
    sys.stdout.write(known[sys.argv[1]] + "\n")


if __name__ == "__main__":
    main()
