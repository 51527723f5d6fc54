"""Meta-SGD: learn the initial weights, and a rate and direction for every single one of them.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017); Aimen et
al. 2021, section 3.2. One step is meant to suffice:

    phi = theta - alpha o grad L(theta, support),   theta and alpha learned         (their eq. 1)

Everything else, the network and the steps over a batch of tasks, is MAML's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models_zoo.optimization.maml import MAML


class MetaSGD(MAML):
    """MAML with alpha as large as theta.

    low, high   alpha starts uniform between them (the paper's 0.005 to 0.1)
    inner_lr    a factor on alpha, 10 by our choice: the paper has none. What a caller asks of a
                served model is relative to what was learned

    The other arguments are `MAML`'s. An alpha may turn negative, as in the paper.
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        steps: int = 1,
        inner_lr: float = 10.0,
        first_order: bool = False,
        low: float = 0.005,
        high: float = 0.1,
    ) -> None:
        super().__init__(channels, image_size, hidden, max_way, steps, inner_lr, first_order)
        del self.log_rates
        self.rates = nn.ParameterDict(
            {
                name: torch.empty_like(value).uniform_(low, high)
                for name, value in self.initial.items()
            }
        )

    def factor(self, name: str, way: int, number: Tensor) -> Tensor:
        return self.cut(name, self.rates[name], way)
