"""MAML: learn the initial weights from which a few gradient steps suffice.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (ICML
2017). For every task

    phi <- phi - alpha grad L(phi, support),   phi_0 = theta,   S times        (adapt)
    y    = f(query; phi)                                                       (predict)

and theta is learned through the queries' loss: with the gradient's own derivative (second
order) or holding the gradient constant (first order, FOMAML). f and its gradient are `network`'s.

Options from Antoniou, Edwards and Storkey, "How to train your MAML" (ICLR 2019): a learned rate for
every weight tensor, for every step, and batch-norm statistics for every step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.optimization.inner_loop import InnerLoop
from models_zoo.optimization.network import LAYERS, Layer, Statistics, Task, Weights

#: How much of a running statistic one training step replaces, as in PyTorch's batch norm.
MOMENTUM = 0.1


class MAML(InnerLoop):
    """Model-agnostic meta-learning with a task axis.

    first_order      hold the gradient constant in the meta-update
    learn_rates      learn a factor on alpha for every weight tensor
    per_step_rates   ... and for every step: as many as `steps`, the last for what goes beyond
    statistics       what normalises a layer. "support": the statistics of the task's support
                     images under the weights of the moment, hence anew in every step; nothing is
                     carried over from other tasks. "per_step", MAML++'s: so in training, while
                     running averages over all tasks are kept for each step (and for after the
                     last); in evaluation those of the step are used, as constants.

    The other arguments are `InnerLoop`'s. The inner loss is the *mean* cross-entropy over a task's
    examples: Finn's code sums it, so its 0.4 for 5 examples is 2.0 here.
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        steps: int = 1,
        inner_lr: float = 1.0,
        first_order: bool = False,
        learn_rates: bool = True,
        per_step_rates: bool = False,
        statistics: Literal["support", "per_step"] = "support",
    ) -> None:
        super().__init__(channels, image_size, hidden, max_way, steps, inner_lr)
        if per_step_rates and not (learn_rates and steps):
            raise ValueError("per_step_rates wants learn_rates and at least one step")
        self.first_order, self.per_step = first_order, statistics == "per_step"
        shape = (steps,) if per_step_rates else ()
        self.log_rates = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(shape), requires_grad=learn_rates)
                for name in self.initial
            }
        )
        if self.per_step:
            for layer in range(LAYERS):
                self.register_buffer(f"mean{layer}", torch.zeros(steps + 1, hidden))
                self.register_buffer(f"variance{layer}", torch.ones(steps + 1, hidden))

    def step(self, carry: Weights, task: Task, rate: Tensor, number: Tensor) -> Weights:
        """phi <- phi - alpha grad L(phi, support)   (Finn et al. 2017, eq. 1)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_order):
            slope = self.network.slope(carry, task, self.statistics(number))
        self.observe(slope.layers, number)
        return {
            name: value - rate * self.factor(name, task.way, number) * slope.gradient[name]
            for name, value in carry.items()
        }

    def factor(self, name: str, way: int, number: Tensor) -> Tensor:
        """What the rate of a weight tensor is multiplied by in a step, for `way` classes."""
        return row(self.log_rates[name], number).exp()

    def statistics(self, number: Tensor) -> Statistics | None:
        if self.training or not self.per_step:
            return None
        return [
            (row(self.get_buffer(f"mean{i}"), number), row(self.get_buffer(f"variance{i}"), number))
            for i in range(LAYERS)
        ]

    @torch.no_grad()
    def observe(self, layers: list[Layer], number: Tensor) -> None:
        if not (self.training and self.per_step):
            return
        for i, layer in enumerate(layers):
            for kept, seen in (("mean", layer.mean), ("variance", layer.variance)):
                average = self.get_buffer(f"{kept}{i}")[int(number)]
                average.lerp_(seen.mean((0, 1)), MOMENTUM)


def row(table: Tensor, number: Tensor) -> Tensor:
    """Row `number` of a table with a row for each step, the last for those beyond; `[1, ...]`.

    A scalar stands for every step.
    """
    if not table.ndim:
        return table
    return table.index_select(0, number.clamp(max=table.shape[0] - 1).reshape(1))
