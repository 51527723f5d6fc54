"""Whether a map of where a model looked tells what its answer rests on: hide it, and ask again.

    python -m benchmarks.hiding maml-omniglot stanet-omniglot [--tasks 100] [--places 5]

On the test classes of the entry's data, 5-way 1-shot: in each query `--places` of the map's places
are painted over with paper, the warmest, the coldest, or any, always of those with ink. Printed is
how much the answer's probability falls on average. A map that tells what the answer rests on makes
it fall more than any places do, and those more than the coldest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from models_zoo import registry
from models_zoo.cards import ENTRIES, list_cards
from models_zoo.learner import Learner
from models_zoo.weights import WEIGHTS
from training.data.load import load_test
from training.data.sampler import Episode, EpisodeSampler

#: Of a place's brightness (ink is bright to the models), from which on there is something to hide.
INK = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("entries", nargs="+", help="entries for drawings, with a map of the query")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--places", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in wanted.entries:
        card = list_cards(ENTRIES).get(name)
        if card is None or not (card.training and card.attention.query and card.input.invert):
            parser.error(f"{name} is no entry for drawings with a map of the query")
        learner = registry.build(card.learner, card.config).eval()
        learner.load_state_dict(load_file(ENTRIES / name / WEIGHTS))
        store = load_test(card.training.dataset, card.training.split, card.input, wanted.data)
        sampler = EpisodeSampler(store, rotations="classes")
        rates = torch.tensor(card.adaptation.rates) if card.adaptation else None
        falls = torch.stack(
            [
                fall(learner, sampler.sample(1, 5, 1, 5), rates, wanted.places)
                for _ in range(wanted.tasks)
            ]
        ).mean(0)
        for layer, (warm, random, cold) in enumerate(falls.tolist(), start=1):
            sys.stdout.write(
                f"{name:20s} layer {layer}: warmest {warm:6.3f}   any {random:6.3f}   "
                f"coldest {cold:6.3f}\n"
            )


@torch.no_grad()
def fall(learner: Learner, episode: Episode, rates: Tensor | None, places: int) -> Tensor:
    """Mean fall of the answers' probabilities for every layer: `[layers, 3]`."""
    support, query = learner.encoded(episode.support, episode.query)
    state = learner.adapt(support, rates)
    found = learner.predict(state, query)
    assert found.query_attention is not None
    best = found.logits.argmax(-1, keepdim=True)
    before = found.probabilities.gather(-1, best)
    *_, h, w = found.query_attention.shape
    side = episode.query.shape[-1] // w
    brightness = F.avg_pool2d(episode.query.mean(2), side)
    rows: list[list[Tensor]] = []
    for weights in found.query_attention.unbind(1):
        rows.append([])
        for score in (weights, torch.rand_like(weights), -weights):
            inked = score.masked_fill(brightness <= INK, -1e9).flatten(2)
            hidden = torch.zeros_like(inked).scatter(-1, inked.topk(places).indices, 1.0)
            cover = hidden.unflatten(-1, (h, w)).unsqueeze(2)
            cover = cover.repeat_interleave(side, -1).repeat_interleave(side, -2)
            painted = learner.encode_batch(episode.query * (1 - cover))
            after = learner.predict(state, painted).probabilities.gather(-1, best)
            rows[-1].append((before - after).mean())
    return torch.tensor(rows)


if __name__ == "__main__":
    main()
