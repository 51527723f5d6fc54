"""Reptile: move the initial weights towards where a task's steps lead.

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms" (2018). For every task phi is
theta after k steps of gradient descent on minibatches, and then

    theta <- theta + epsilon (mean over tasks of phi - theta)                       (their alg. 2)

so no query set is needed and nothing is differentiated but the steps themselves; that update is
`training.objectives.reptile`. The steps are Adam's without momentum (beta1 = 0), as in the authors'
code, where the second moments live on from task to task.

Here the moments of training are part of the model. A task starts from them, and what its own steps
make of them is forgotten with it: so an answer never depends on who was served before, and tasks
of a batch do not touch each other. In training, the mean over the batch's tasks is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.optimization.inner_loop import InnerLoop
from models_zoo.optimization.network import Task, Weights

#: Adam's, but for its 1e-8, which the optimiser of ONNX graphs takes for 0 and drops.
BETA2, TINY = 0.999, 1e-7
FADED, MOMENT = "faded", "moment "


class Reptile(InnerLoop):
    """Adam's steps, without momentum, from moments learned in training.

    The arguments are `InnerLoop`'s; `inner_lr` is Adam's rate (5-way Omniglot: 1e-3, 50 steps).
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        steps: int = 50,
        inner_lr: float = 1e-3,
    ) -> None:
        super().__init__(channels, image_size, hidden, max_way, steps, inner_lr)
        self.faded: Tensor
        self.register_buffer(FADED, torch.ones(()))  # beta2^t, after t steps of training
        for name, value in self.initial.items():
            self.register_buffer(f"moment_{name}", torch.zeros_like(value))

    def begin(self, weights: Weights) -> Weights:
        """The weights, and for each its second moment; and beta2^t."""
        way = weights["head"].shape[-1]
        moments = {
            MOMENT + name: self.cut(name, self.get_buffer(f"moment_{name}"), way).expand_as(value)
            for name, value in weights.items()
        }
        return weights | moments | {FADED: self.faded}

    def step(self, carry: Weights, task: Task, rate: Tensor, number: Tensor) -> Weights:
        """v <- beta2 v + (1 - beta2) g^2;   phi <- phi - rate g / (sqrt(v / (1 - beta2^t)) + eps).

        Kingma and Ba, "Adam" (2015), algorithm 1, with beta1 = 0. The gradient is a constant.
        """
        with torch.no_grad():
            gradient = self.network.slope(carry, task).gradient
        faded = carry[FADED] * BETA2
        after = {FADED: faded}
        for name, g in gradient.items():
            moment = BETA2 * carry[MOMENT + name] + (1 - BETA2) * g.square()
            scale = (moment / (1 - faded)).sqrt() + TINY
            after[MOMENT + name] = moment
            after[name] = carry[name] - rate * g / scale
        return after

    @torch.no_grad()
    def walk(self, batches: Iterable[Support]) -> Weights:
        """Step over minibatches of the same tasks; what became of theta, `[B, ...]` each.

        In training, the model's moments become those of its tasks, on average.
        """
        rate = self.initial["head"].new_tensor(self.inner_lr)
        number, carry = rate.new_zeros((), dtype=torch.int64), Weights()
        for support in batches:
            carry = carry or self.begin(self.start(*support.class_mask.shape))
            carry = self.step(carry, Task.of(support), rate, number)
        if self.training:
            self.faded.copy_(carry[FADED])
            for name in self.initial:
                moment = carry[MOMENT + name].mean(0)
                self.get_buffer(f"moment_{name}")[:, : moment.shape[1]] = moment
        return {name: carry[name] for name in self.initial}
