"""How many 5-way 1-shot episodes with 15 queries per class the sampler draws in a second.

    python benchmarks/sampler.py [--data FOLDER] [--device cuda]

With Omniglot in FOLDER its training classes are sampled (28 px, rotations as classes, as the
shipped recipes do); without, made images of the same number and size. The floor is 5,000.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models_zoo.cards import InputSpec
from training.data.load import load_splits
from training.data.sampler import EpisodeSampler
from training.data.store import PackedStore
from training.recipe import DataConfig
from training.tuning import keep_memory

SPEC = InputSpec(channels=1, height=28, width=28, fit="pad", invert=True)


def made() -> PackedStore:
    """1028 classes of 20 images, as many as Vinyals' split trains on."""
    pixels = np.random.default_rng(0).integers(0, 256, (1028, 20, 1, 28, 28), dtype=np.uint8)
    return PackedStore.pack((str(i), "", images) for i, images in enumerate(pixels))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds the Omniglot zips")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    wanted = parser.parse_args()

    keep_memory()
    if wanted.data:
        config = DataConfig(dataset="omniglot", split="vinyals", input=SPEC)
        store, name = load_splits(config, wanted.data)["train"], "omniglot"
    else:
        store, name = made(), "made images"
    sampler = EpisodeSampler(store, rotations="classes", device=wanted.device)
    for tasks in (1, 4, 16, 64):
        sampler.sample(tasks, 5, 1, 15)
        started, drawn = time.perf_counter(), 0
        while time.perf_counter() - started < wanted.seconds:
            sampler.sample(tasks, 5, 1, 15)
            drawn += tasks
        if wanted.device != "cpu":
            torch.cuda.synchronize()
        rate = drawn / (time.perf_counter() - started)
        sys.stdout.write(f"{name}, {tasks:3d} tasks a batch: {rate:9,.0f} episodes/s\n")


if __name__ == "__main__":
    main()
