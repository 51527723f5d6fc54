"""How many answers change when the classes of a task are given other numbers.

    python -m benchmarks.slots maml-omniglot metalstmpp-omniglot [--tasks 300] [--way 5] [--shot 1]

On the test classes of the entry's data, of drawings turned ones too, 15 queries per class. Each
task is asked twice, the second time with its classes numbered in an order drawn at random. Printed
are the share of queries whose answer is then another class, and both accuracies. The share is 0 for
learners that treat all classes alike, which those with weights for each number do not.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models_zoo.cards import ENTRIES, list_cards
from models_zoo.learner import Learner
from models_zoo.weights import load_learner
from training.data.load import load_test
from training.data.sampler import Episode, EpisodeSampler

QUERIES = 15
#: Tasks asked at once.
BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("entries", nargs="+", help="entries that were trained here")
    parser.add_argument("--tasks", type=int, default=300, help="asked in tens")
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    for name in wanted.entries:
        card = list_cards(ENTRIES).get(name)
        if card is None or card.training is None:
            parser.error(f"{name} is no entry that was trained here")
        learner = load_learner(card)
        store = load_test(card.training.dataset, card.training.split, card.input, wanted.data)
        sampler = EpisodeSampler(store, rotations="classes" if card.input.invert else "none")
        generator = torch.Generator().manual_seed(0)
        counts = torch.zeros(4, dtype=torch.int64)
        for _ in range(0, wanted.tasks, BATCH):
            episode = sampler.sample(BATCH, wanted.way, wanted.shot, QUERIES)
            order = torch.rand(BATCH, wanted.way, generator=generator).argsort(1)
            counts += compare(learner, episode, order)
        changed, first, second, asked = counts.tolist()
        sys.stdout.write(
            f"{name:24s} {changed / asked:6.2%} of {asked} answers change; "
            f"accuracy {first / asked:.2%} and {second / asked:.2%}\n"
        )


@torch.no_grad()
def compare(learner: Learner, episode: Episode, order: Tensor) -> Tensor:
    """Queries whose answer changes, those right before and after, and all: `[4]`.

    order   [B, way]  the new number of each class
    """
    support = episode.support
    anew = replace(support, labels=order.gather(1, support.labels))
    before = learner(support, episode.query).logits.argmax(-1)
    after = learner(anew, episode.query).logits.argmax(-1)
    old = order.argsort(1).gather(1, after)  # what these classes were called at first
    right = [(found == episode.targets).sum() for found in (before, old)]
    return torch.stack([(before != old).sum(), *right, torch.tensor(before.numel())])


if __name__ == "__main__":
    main()
