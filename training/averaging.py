"""Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights that a run at a
constant rate goes through, which lies deeper in its valley than any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models_zoo.learner import Learner

#: Batches of tasks from which batch norm's statistics are taken.
BATCHES = 50


class WeightAverage:
    """The mean of a learner's weights after every step later than `start`."""

    def __init__(self, learner: Learner, start: int):
        self.start = start
        self.model = AveragedModel(learner)

    def add(self, step: int, learner: Learner) -> None:
        """Count the weights that `step` steps have led to."""
        if step > self.start:
            self.model.update_parameters(learner)

    def learner(self) -> Learner | None:
        """The learner with the mean weights, None before there are any. The statistics of its
        batch norm belong to other weights: see `take_statistics`."""
        mean = cast(Learner, self.model.module)
        return mean if int(self.model.n_averaged) else None


@torch.no_grad()
def take_statistics(learner: Learner, forward: Callable[[int], object]) -> None:
    """Means and variances of batch norm for the weights that `learner` has now.

    forward: passes one training batch, which its number decides, through the learner.
    """
    norms = [m for m in learner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    was_training = learner.training
    learner.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts alike
    for batch in range(BATCHES if norms else 0):
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    learner.train(was_training)
