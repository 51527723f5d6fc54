"""Reptile's meta-update (Nichol et al. 2018, algorithm 2) as a loss: the gradient is theta - phi.

Half the squared distance between theta and the weights phi of a task after its steps, phi held
constant, has just this gradient. With plain descent at rate epsilon (recipe: sgd without momentum),

    theta <- theta - epsilon (theta - mean over tasks of phi).

The steps pass through the support set in random minibatches without replacement, again and again
if it is smaller; queries only tell the accuracy of the adapted weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.learner import Learner
from models_zoo.optimization.network import Task
from models_zoo.optimization.reptile import Reptile
from training.data.sampler import Episode
from training.objectives import Objective
from training.objectives.episode import accuracy


class ReptileLoss(Objective):
    """`steps` inner steps of training with `minibatch` examples in each, at the learner's rate."""

    def __init__(self, steps: int, minibatch: int) -> None:
        super().__init__()
        self.steps, self.minibatch = steps, minibatch

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(learner, Reptile), "the reptile objective trains the reptile learner"
        support = episode.support
        order = shuffled(support.mask, self.steps * self.minibatch)
        batches = [part(support, rows) for rows in order.split(self.minibatch, dim=1)]
        adapted = learner.walk(batches)
        start = learner.start(*support.class_mask.shape)
        distance = torch.stack(
            [(start[name] - phi).square().sum() for name, phi in adapted.items()]
        ).sum()
        with torch.no_grad():
            steps = support.labels.new_tensor(self.steps)
            state = learner.finish(adapted, Task.of(batches[-1]), steps)
            logits = learner.predict(state, episode.query).logits
        return distance / 2 / len(order), {"accuracy": accuracy(logits, episode.targets)}


def shuffled(mask: Tensor, length: int) -> Tensor:
    """Random rows of each task's examples `[B, length]`, every one before any comes again."""
    keys = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
    count = mask.sum(1, keepdim=True)
    places = torch.arange(length, device=mask.device) % count
    return keys.argsort(1).gather(1, places)


def part(support: Support, rows: Tensor) -> Support:
    """These examples `[B, n]` of each task, all of them real; classes remain the task's."""
    tasks = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return Support(
        support.x[tasks, rows],
        support.labels[tasks, rows],
        torch.ones_like(rows, dtype=torch.bool),
        support.class_mask,
    )
