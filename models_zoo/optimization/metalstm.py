"""MetaLSTM: an LSTM as the optimiser, its cell state the weights of the network.

Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning" (ICLR 2017). The MetaLSTM++ of
Aimen et al. 2021, section 3.2, is this learner trained with many tasks in each meta-update in place
of one. For every weight by itself, with the same LSTM for all of them,

    h, c  = LSTM([gradient, loss], h, c)                       (first layer, 20 wide)
    i     = W_I [h, theta, i] + b_I                            (learning rate, before its sigmoid)
    f     = W_F [h, theta, f] + b_F                            (forgetting, before its sigmoid)
    theta <- sigmoid(f) theta - sigmoid(i) gradient            (their eq. 2 and 3)

and theta starts from the learned initial cell state. As in the authors' code the gates recur on
what they were before the sigmoid, gradients and losses are constants (no second order), and both
are preprocessed. Layers are normalised by the statistics of the support set, in training too.
The authors' network pools and has 32 channels of its own kind; here it is that of all learners of
this family.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models_zoo.optimization.inner_loop import InnerLoop
from models_zoo.optimization.network import Task, Weights

#: p of the preprocessing (Andrychowicz et al. 2016, appendix A).
P = 10.0
#: What the carry holds beside every weight: gates before their sigmoid, and the first layer.
INPUT, FORGET, HIDDEN, CELL = "input ", "forget ", "hidden ", "cell "


def preprocess(x: Tensor) -> Tensor:
    """`[...]` -> `[2, ...]`: (log|x| / p, sign x) where |x| >= e^-p, else (-1, e^p x)."""
    size = x.abs()
    large = size >= math.exp(-P)
    magnitude = torch.where(large, size.clamp(min=math.exp(-P)).log() / P, -1.0)
    return torch.stack([magnitude, torch.where(large, x.sign(), math.exp(P) * x)])


class MetaLSTM(InnerLoop):
    """A learned optimiser for many tasks at once.

    lstm           size of the first layer (Ravi: 20)
    input_bias     b_I starts uniform between these (Ravi: -5 to -4, a rate of about 0.01)
    forget_bias    b_F likewise (Ravi: 4 to 5, weights are kept)
    inner_lr       a factor on the learned rate sigmoid(i); what a caller asks of a served model is
                   relative to what was learned

    The other arguments are `InnerLoop`'s.
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 32,
        max_way: int = 5,
        steps: int = 5,
        inner_lr: float = 1.0,
        lstm: int = 20,
        input_bias: tuple[float, float] = (-5.0, -4.0),
        forget_bias: tuple[float, float] = (4.0, 5.0),
    ) -> None:
        super().__init__(channels, image_size, hidden, max_way, steps, inner_lr)
        self.lstm = lstm

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-0.01, 0.01))

        # [gradient, loss, h] -> the first layer's gates i, f, g, o
        self.first, self.first_bias = (
            weight(4 + lstm, 4 * lstm),
            nn.Parameter(torch.zeros(4 * lstm)),
        )
        self.to_input, self.to_forget = weight(lstm + 2), weight(lstm + 2)  # h, theta, own gate
        self.input_bias = nn.Parameter(torch.empty(()).uniform_(*input_bias))
        self.forget_bias = nn.Parameter(torch.empty(()).uniform_(*forget_bias))

    def begin(self, weights: Weights) -> Weights:
        """The weights, gates of 0, and the first layer's h and c, `[lstm, B, rows, columns]`."""
        carry = dict(weights)
        for name, value in weights.items():
            empty = torch.zeros_like(value)
            wide = empty.expand(self.lstm, -1, -1, -1)
            carry |= {INPUT + name: empty, FORGET + name: empty}
            carry |= {HIDDEN + name: wide, CELL + name: wide}
        return carry

    def step(self, carry: Weights, task: Task, rate: Tensor, number: Tensor) -> Weights:
        with torch.no_grad():
            slope = self.network.slope(carry, task)
        after: Weights = {}
        with torch.autocast(slope.loss.device.type, enabled=False):
            told = preprocess(slope.loss)[..., None, None]
            for name, theta in carry.items():
                if name not in slope.gradient:
                    continue
                gradient = slope.gradient[name].to(theta.dtype)
                inputs = [preprocess(gradient), told.expand(-1, *gradient.shape)]
                hidden, cell = self.first_layer(inputs, carry[HIDDEN + name], carry[CELL + name])
                i = self.gate(self.to_input, hidden, theta, carry[INPUT + name]) + self.input_bias
                f = self.gate(self.to_forget, hidden, theta, carry[FORGET + name])
                f = f + self.forget_bias
                # A graph is asked for no step by one at rate 0: it forgets nothing either.
                kept = torch.where(rate == 0, 1.0, f.sigmoid())
                after[name] = kept * theta - rate * i.sigmoid() * gradient
                after |= {INPUT + name: i, FORGET + name: f}
                after |= {HIDDEN + name: hidden, CELL + name: cell}
        return after

    def first_layer(
        self, inputs: list[Tensor], hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hochreiter and Schmidhuber's cell over inputs `[4, ...]` in parts; h and c `[lstm, ...]`.

        What belongs to a weight stands in a column: the gates are then blocks of rows, which is
        more than twice as fast.
        """
        given = torch.cat([*inputs, hidden])
        gates = torch.addmm(self.first_bias.unsqueeze(1), self.first.mT, given.flatten(1))
        i, f, g, o = gates.unflatten(1, given.shape[1:]).chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    @staticmethod
    def gate(weight: Tensor, hidden: Tensor, theta: Tensor, before: Tensor) -> Tensor:
        """W [h, theta, gate before], of one output: `[B, rows, columns]`."""
        read = (weight[:-2] @ hidden.flatten(1)).view_as(theta)
        return read + weight[-2] * theta + weight[-1] * before
