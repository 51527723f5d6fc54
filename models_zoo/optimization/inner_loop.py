"""The loop that gradient-based learners share: S steps from learned weights, then frozen.

A learner says what one step does, to `carry`: the weights, and whatever else a step hands to the
next. Training and PyTorch run the steps one after another; in an ONNX graph they are one Scan over
the learning rates, since their number is known only at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models_zoo.episode import Prediction, Support, TaskState, columns, mask_absent
from models_zoo.learner import Learner
from models_zoo.optimization.network import (
    SLOTTED,
    Layer,
    Network,
    Statistics,
    Task,
    Weights,
)
from models_zoo.optimization.network import head as head_of

#: Below what any trained network's places add; only guards the division.
TINY = 1e-12


class InnerLoop(Learner):
    """Weights `initial`, adapted by steps.

    channels, image_size   of the (square) images
    hidden                 channels D of every layer
    max_way                slots of the head; a task uses the slots its `class_mask` names
    steps, inner_lr        number of steps and their rate, when `adapt` is not told otherwise
    """

    encodes = False
    attention_layers = 1

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        steps: int = 1,
        inner_lr: float = 1.0,
    ) -> None:
        super().__init__()
        if min(channels, hidden) < 1 or steps < 0:
            raise ValueError("channels and hidden are at least 1, steps at least 0")
        self.max_way = max_way
        self.backbone_name = f"conv4-{hidden}, stride 2, no pooling"
        self.steps, self.inner_lr = steps, inner_lr
        self.network = Network(channels, image_size, hidden)
        self.initial = nn.ParameterDict(self.network.fresh(max_way))

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Support images `[B, N, C, H, W]`, inner rates `[S]` -> the adapted network.

        One step for each element of `inner_lr` (default: `default_inner_lr`).
        Returns `kernel{l}` [B, 9*C, D] and `bias{l}` [B, 1, D] with the normalisation folded in,
        `head`, `offset` and `class_mask`. Raises `ValueError` for more classes than `max_way`.
        """
        self.check_way(support)
        task = Task.of(support)
        if inner_lr is None:
            inner_lr = self.default_inner_lr()
        carry = self.begin(self.start(*support.class_mask.shape))
        number = torch.zeros((), dtype=torch.int64, device=inner_lr.device)
        if torch.compiler.is_exporting():
            number, carry = self._scan(number, carry, task, inner_lr)
        else:
            for rate in inner_lr.unbind():
                carry, number = self.step(carry, task, rate, number), counted(number, rate)
        return self.finish(carry, task, number)

    def default_inner_lr(self) -> Tensor:
        return self.initial["head"].new_full((self.steps,), self.inner_lr)

    def take_steps(self, steps: int, inner_lr: float) -> None:
        self.steps, self.inner_lr = steps, inner_lr

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Query images `[B, Q, C, H, W]` -> logits `[B, Q, way]`, and where they come from.

        Without the latter in training, where nobody reads it and it is a tenth of a step's time.
        """
        trail = self.network.follow(state, query)
        logits = mask_absent(head_of(trail[-1][1], state), state["class_mask"])
        if self.training:
            return Prediction(logits)
        return Prediction(logits, query_attention=self.grounds(state, trail, logits))

    @torch.no_grad()
    def grounds(
        self, state: TaskState, trail: Sequence[tuple[Tensor, Tensor]], logits: Tensor
    ) -> Tensor:
        """How much each place of the queries speaks for the answer, `[B, 1, Q, h, w]`, in all 1.

        Gradient times activation (HiResCAM; Draelos and Carin 2020), at maps of a quarter of the
        image's side, of what the likeliest class's logit is above the mean of the task's classes:
        what a place adds to it, where that is positive; the same for all where none does. In this
        network these sums and the biases make up the logits exactly.
        """
        present = state["class_mask"].unsqueeze(1).to(logits.dtype)
        slots = torch.arange(logits.shape[-1], device=logits.device)
        best = (logits.argmax(-1, keepdim=True) == slots).to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            d = (best - present / present.sum(-1, keepdim=True)) @ state["head"].mT
        shares = self.network.relevance(state, trail, d).relu()
        total = shares.sum((2, 3), keepdim=True)
        even = 1 / (shares.shape[2] * shares.shape[3])
        return torch.where(total > 0, shares / total.clamp(min=TINY), even).unsqueeze(1)

    def start(self, tasks: int, way: int) -> Weights:
        """theta, once for every task; the head cut to the slots in use."""
        return {
            name: self.cut(name, value, way).expand(tasks, -1, -1)
            for name, value in self.initial.items()
        }

    def begin(self, weights: Weights) -> Weights:
        """What the first step is given."""
        return weights

    def step(self, carry: Weights, task: Task, rate: Tensor, number: Tensor) -> Weights:
        """One update of every task's weights; `rate` and `number` (from 0) are scalars."""
        raise NotImplementedError

    def finish(self, carry: Weights, task: Task, number: Tensor) -> TaskState:
        """The network after `number` steps, as `predict` wants it."""
        layers = self.network.forward(carry, task, self.statistics(number))[1]
        self.observe(layers, number)
        return self.network.freeze(carry, layers) | {"class_mask": task.class_mask}

    def statistics(self, number: Tensor) -> Statistics | None:
        """What the layers are normalised by after `number` steps, if not by the support set."""
        return None

    def observe(self, layers: list[Layer], number: Tensor) -> None:
        """Told the layers of each forward pass over the support set."""

    @staticmethod
    def cut(name: str, value: Tensor, way: int) -> Tensor:
        """A tensor of the shape of weight `name`, without the columns of slots not in use."""
        return columns(value, way) if name in SLOTTED else value

    def _scan(
        self, number: Tensor, carry: Weights, task: Task, inner_lr: Tensor
    ) -> tuple[Tensor, Weights]:
        """The same steps as one graph operator."""
        from torch._higher_order_ops.scan import scan

        def step(
            before: tuple[Tensor, Weights], rate: Tensor
        ) -> tuple[tuple[Tensor, Weights], Tensor]:
            number, carry = before
            after = self.step(carry, task, rate, number)
            # In the order in which they came, else the scan takes one for another.
            return (counted(number, rate), {name: after[name] for name in carry}), rate.clone()

        copied = {name: value.clone() for name, value in carry.items()}
        after: tuple[Tensor, Weights] = scan(step, (number, copied), inner_lr)[0]
        return after


def counted(number: Tensor, rate: Tensor) -> Tensor:
    """The steps taken, with one more; one step at rate 0 is how a graph is asked for none."""
    return number + (rate != 0)
