"""Accuracy over many tasks: mean and 95% confidence interval, never transductive by accident."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models_zoo.learner import Learner
from models_zoo.model_based.sequence import occasions
from training.data.sampler import Episode, EpisodeSampler


@dataclass(frozen=True)
class Score:
    """Mean accuracy over tasks and half the width of its 95% confidence interval; the confidence
    that 5% of all answers did not reach; and the accuracy of every task."""

    mean: float
    ci95: float
    tasks: int
    confidence_p5: float
    each: tuple[float, ...] = ()

    def above(self, other: Score) -> tuple[float, float]:
        """Mean difference to a score on the same tasks, and half its 95% confidence interval.

        Task by task, since what is hard for one is mostly hard for the other: the interval is then
        narrower than that of two scores on tasks of their own.
        """
        return mean_and_ci95([a - b for a, b in zip(self.each, other.each, strict=True)])


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% confidence interval (0 for one value)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), 1.96 * spread / len(values) ** 0.5


def rounded_down(confidence: float) -> float:
    """To a millionth, and never 1: every answer would lie below a line at 1."""
    return min(math.floor(confidence * 1e6), 999_999) / 1e6


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
    inner_lr: Sequence[float] | None = None,
    presentation: int | None = None,
    apart: bool = False,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
) -> Score:
    """Accuracy of `way`-way `shot`-shot tasks with `queries` queries per class.

    `inner_lr` holds the rates of the gradient steps, one per step, for learners that take them.
    With `presentation` k no queries are drawn: the support set is shown as a sequence, and counted
    is the answer to the k-th image of every class, given the labelled images before it.
    `apart` asks every query by itself, so that a transductive learner has no others to learn from.
    The learner, which lives on `device`, is put into evaluation mode and back. A sampler on the CPU
    draws the same tasks whatever the device. Raises `DataError` when the data do not suffice.
    """
    rates = None if inner_lr is None else torch.tensor(inner_lr, device=device)
    was_training = learner.training
    learner.eval()
    accuracies: list[float] = []
    confidences: list[Tensor] = []
    try:
        while len(accuracies) < tasks:
            size = min(batch, tasks - len(accuracies))
            episode = sampler.sample(size, way, shot, 0 if presentation else queries).to(device)
            with torch.no_grad():
                if presentation:
                    labels, mask = episode.support.labels, episode.support.mask
                    logits = learner.presented(episode.support)
                    asked = occasions(labels, mask) == presentation - 1
                    found = ((logits.argmax(-1) == labels) & asked).double().sum(1) / way
                    logits = logits[asked]
                else:
                    logits = ask(learner, episode, rates, apart)
                    found = (logits.argmax(-1) == episode.targets).double().mean(1)
            accuracies.extend(found.tolist())
            confidences.append(logits.double().softmax(-1).amax(-1).flatten().cpu())
            on_batch(size)
    finally:
        learner.train(was_training)
    least = float(np.quantile(torch.cat(confidences).numpy(), 0.05))
    return Score(*mean_and_ci95(accuracies), tasks, least, tuple(accuracies))


def ask(learner: Learner, episode: Episode, rates: Tensor | None, apart: bool) -> Tensor:
    """Logits `[B, Q, way]` of an episode's queries, each by itself if they are kept `apart`."""
    if not apart:
        return learner(episode.support, episode.query, rates).logits
    support, query = learner.encoded(episode.support, episode.query)
    state = learner.adapt(support, rates)
    return torch.cat([learner.predict(state, part).logits for part in query.split(1, dim=1)], 1)
