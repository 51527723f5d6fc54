"""What one meta-training step costs under each regimen, beside the plain batch.

    python benchmarks/regimens.py [--recipe maml-omniglot] [--rounds 10] [--threads 1]

The recipe's learner, batch and precision, on made images. The regimens take turns, a step each, and
the medians are compared. Task attention adapts a second batch, and differentiates through its step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import torch

from models_zoo import registry
from training.data.sampler import EpisodeSampler
from training.data.store import PackedStore
from training.objectives import Step, build_objective
from training.recipe import ObjectiveConfig, load_recipe
from training.tuning import keep_memory

REGIMENS = {
    "plain batch": ObjectiveConfig(name="episode"),
    "TAML, adapted losses": ObjectiveConfig(name="inequality", losses="adapted"),
    "TAML, initial losses": ObjectiveConfig(name="inequality", losses="initial"),
    "task attention": ObjectiveConfig(name="task_attention"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="maml-omniglot", help="name or file of a recipe")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()

    keep_memory()
    torch.set_num_threads(wanted.threads)
    recipe = load_recipe(wanted.recipe)
    learner = registry.build(recipe.learner, recipe.config).train()
    config, spec = recipe.episodes, recipe.data.input
    shape = (100, 20, spec.channels, spec.height, spec.width)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    store = PackedStore.pack((str(i), "", images) for i, images in enumerate(pixels))
    sampler = EpisodeSampler(store, slots=config.slots)
    episode = sampler.sample(config.tasks, max(config.ways), max(config.shots), config.queries)
    step = Step(
        autocast=lambda: torch.autocast(
            "cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ),
        rate=recipe.optimizer.lr,
        new=lambda: episode,
        next=lambda: episode,
    )
    objectives = {
        name: build_objective(each, learner, sampler, config.tasks)
        for name, each in REGIMENS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for number in range(wanted.rounds + 1):
        for name, objective in objectives.items():
            learner.zero_grad()
            started = time.perf_counter()
            objective.backward(learner, episode, step)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    plain = statistics.median(seconds["plain batch"])
    sys.stdout.write(f"{recipe.id}: {config.tasks} tasks a step, {wanted.threads} thread(s)\n")
    for name, each in seconds.items():
        median = statistics.median(each)
        sys.stdout.write(f"{name:22s} {1000 * median:8.1f} ms a step {median / plain:5.2f} x\n")


if __name__ == "__main__":
    main()
