"""Accuracy over many tasks: mean and 95% confidence interval, never transductive by accident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from models_zoo.learner import Learner
from training.data.sampler import EpisodeSampler


@dataclass(frozen=True)
class Score:
    """Mean accuracy over tasks and half the width of its 95% confidence interval."""

    mean: float
    ci95: float
    tasks: int


@torch.inference_mode(False)
def evaluate(
    learner: Learner,
    sampler: EpisodeSampler,
    *,
    tasks: int,
    way: int,
    shot: int,
    queries: int,
    batch: int = 20,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Score:
    """Accuracy of `way`-way `shot`-shot tasks with `queries` queries per class.

    The learner is put into evaluation mode and back. Raises `DataError` when the data do not
    suffice.
    """
    was_training = learner.training
    learner.eval()
    accuracies: list[float] = []
    try:
        while len(accuracies) < tasks:
            size = min(batch, tasks - len(accuracies))
            episode = sampler.sample(size, way, shot, queries)
            with torch.no_grad():
                logits = learner(episode.support, episode.query).logits
            right = (logits.argmax(-1) == episode.targets).double().mean(1)
            accuracies.extend(right.tolist())
            on_batch(size)
    finally:
        learner.train(was_training)
    values = torch.tensor(accuracies, dtype=torch.float64)
    spread = float(values.std()) if tasks > 1 else 0.0
    return Score(float(values.mean()), 1.96 * spread / tasks**0.5, tasks)
