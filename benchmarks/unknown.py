"""How often the page's hint "None of these?" is shown, for classes that were taught and one that
was not.

    python -m benchmarks.unknown [--tasks 200] [--zoo DIR] [--data DIR] [ENTRY ...]

Tasks of test classes with one class more than is taught; five queries of each are asked. "Hits" are
the queries of the class that was not taught that are hinted at, "false alarms" the others. "Middle"
is the rule for cards that tell no `confidence_p5`: below the middle between guessing and certainty.
"Card" is the rule for those that do.
"""

from __future__ import annotations

import argparse
from math import log
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models_zoo.cards import ENTRIES, Card, find_card, list_cards
from models_zoo.episode import Support
from training.data.load import load_test
from training.data.sampler import EpisodeSampler
from training.parity import OnnxLearner

TASKS = ((2, 1), (3, 3), (5, 1), (5, 5), (10, 1))
QUERIES = 5
SEED = 7


def confidences(
    learner: OnnxLearner, sampler: EpisodeSampler, way: int, shot: int, tasks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the answers to queries of `way` taught classes, and of one that was not."""
    known, unknown = [], []
    for _ in range(tasks):
        episode = sampler.sample(1, way + 1, shot, QUERIES)
        taught = episode.support.labels[0] < way
        labels = episode.support.labels[:, taught]
        support = Support.of(episode.support.x[:, taught], labels, labels >= 0, way)
        logits = torch.from_numpy(learner.answer(support, episode.query)["logits"][0])
        found = logits.double().softmax(-1).amax(-1).numpy()
        is_known = (episode.targets[0] < way).numpy()
        known.append(found[is_known])
        unknown.append(found[~is_known])
    return np.concatenate(known), np.concatenate(unknown)


def sure_from(card: Card, way: int, shot: int) -> float | None:
    """The page's rule (answers.js): as far from guessing to certainty as `confidence_p5` of the row
    most like the task."""
    rows = [row for row in card.accuracy if row.confidence_p5 is not None]
    like = min(
        rows, key=lambda row: abs(log(row.way / way)) + abs(log(row.shot / shot)), default=None
    )
    if like is None or like.confidence_p5 is None:
        return None
    share = (like.confidence_p5 - 1 / like.way) / (1 - 1 / like.way)
    return 1 / way + share * (1 - 1 / way)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the page hints at none of these.")
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="Default: all.")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--zoo", type=Path, default=ENTRIES)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    table = Table(title=f"{options.tasks} tasks each", title_style="bold")
    for heading in ("Entry", "Task", "Middle: hits", "false alarms", "Card: hits", "false alarms"):
        table.add_column(heading, justify="right" if "s" in heading[-2:] else "left")
    for entry in options.entries or list_cards(options.zoo):
        card = find_card(entry, options.zoo)
        if card.training is None:
            continue
        learner = OnnxLearner.of(card, options.zoo)
        store = load_test(card.training.dataset, card.training.split, card.input, options.data)
        for way, shot in TASKS:
            if way > card.limits.max_way:
                continue
            sampler = EpisodeSampler(store, seed=SEED)
            known, unknown = confidences(learner, sampler, way, shot, options.tasks)
            cells = []
            for least in ((1 + 1 / way) / 2, sure_from(card, way, shot)):
                shares = [] if least is None else [(unknown < least).mean(), (known < least).mean()]
                cells += [f"{share:.1%}" for share in shares] or ["", ""]
            table.add_row(entry, f"{way}-way {shot}-shot", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
