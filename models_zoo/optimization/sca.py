"""Self-critique and adapt: after the labelled examples, learn from the unlabelled queries too.

Antoniou and Storkey, "Learning to Learn by Self-Critique" (NeurIPS 2019). MAML's steps on the
support set give theta_N; then a critic C that sees no label judges what the network makes of the
queries, and its gradient is followed I times:

    theta <- theta - beta grad_theta C(F(query; theta)),   theta_0 = theta_N

The queries' labels enter through the outer loss alone, which trains theta, the rates and C.

Transductive by nature: an answer depends on the other queries asked with it. So queries are never
padded and never joined with those of others (see `Learner.transductive`).

Choices, where the paper leaves them or we differ:
- F of a query: for each class its probability, and the probability it would have by the distance of
  the query's features from the class's support examples, which is what the "embedding context of
  the support" in "Learn how to Learn" is here. Both are bounded, so that an odd query cannot carry
  the network far off.
- The classes are put in order of their probability, so that their numbering does not matter.
- C judges each query by itself and the verdicts are averaged, so that the queries' order and number
  do not matter and one query alone is a case like any other (the paper: the whole set at once).
- Softplus in place of ReLU: C is used through its gradient, to which a ReLU's biases are nothing.
- What the critic's steps change are the kernels and biases of the frozen network, with the support
  set's normalisation folded in, and the head.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.episode import Prediction, TaskState, mask_absent
from models_zoo.optimization.maml import MAML
from models_zoo.optimization.network import LAYERS, Task, Weights, head

#: Probability by the head, and by distance.
CHANNELS = 2


class Critic(nn.Module):
    """Dilated 1-D convolutions of two places, densely connected, over the classes; two on top.

    Its derivative is written out, so that it may be a part of an ONNX graph.
    """

    def __init__(self, length: int, layers: int = 3, filters: int = 8, units: int = 32) -> None:
        super().__init__()
        widths = [CHANNELS + filters * layer for layer in range(layers + 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, filters, 2, dilation=2**i) for i, width in enumerate(widths[:-1])
        )
        self.units = nn.Linear(widths[-1] * length, units)
        self.score = nn.Linear(units, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`[M, CHANNELS, length]` -> scores `[M]`, and what came before each softplus."""
        before = []
        for i, convolution in enumerate(self.convolutions):
            before.append(convolution(F.pad(x, (2**i, 0))))
            x = torch.cat([x, F.softplus(before[-1])], 1)
        before.append(self.units(x.flatten(1)))
        return self.score(F.softplus(before[-1])).squeeze(1), before

    def slope(self, x: Tensor) -> Tensor:
        """Derivative of each score by its input: `[M, CHANNELS, length]`."""
        *before, last = self(x)[1]
        d = (last.sigmoid() * self.score.weight) @ self.units.weight
        d = d.unflatten(1, (-1, x.shape[2]))
        for i in reversed(range(len(before))):
            convolution = self.convolutions[i]
            assert isinstance(convolution, nn.Conv1d)
            inner = d[:, : convolution.in_channels]
            outer = d[:, convolution.in_channels :] * before[i].sigmoid()
            back = F.conv_transpose1d(outer, convolution.weight, dilation=2**i)
            d = inner + back[..., 2**i :]
        return d


class SCA(MAML):
    """MAML, then `critic_steps` steps of a learned critic over the queries.

    critic_lr   the rate of the critic's steps, times a learned factor for every tensor

    The other arguments are `MAML`'s, of second order.
    """

    transductive: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        steps: int = 1,
        inner_lr: float = 1.0,
        critic_steps: int = 1,
        critic_lr: float = 1.0,
    ) -> None:
        super().__init__(channels, image_size, hidden, max_way, steps, inner_lr)
        self.slots, self.critic_steps, self.critic_lr = max_way, critic_steps, critic_lr
        self.critic = Critic(max_way)
        names = [f"{kind}{layer}" for kind in ("kernel", "bias") for layer in range(LAYERS)]
        self.critic_rates = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in (*names, "head", "offset")}
        )

    def finish(self, carry: Weights, task: Task, number: Tensor) -> TaskState:
        """MAML's state and the mean features of each class's examples, `prototypes` [B, way, D]."""
        maps, layers = self.network.forward(carry, task)
        member = task.target / task.target.sum(1, keepdim=True).clamp(min=1e-9)
        return self.network.freeze(carry, layers) | {
            "class_mask": task.class_mask,
            "prototypes": member.mT @ maps.mean((2, 3)).to(member.dtype),
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Query images `[B, Q, C, H, W]`, all of them real -> logits `[B, Q, way]`."""
        for _ in range(self.critic_steps):
            gradient = self.critique(state, query)
            state = state | {
                name: state[name] - self.critic_lr * self.critic_rates[name].exp() * slope
                for name, slope in gradient.items()
            }
        return super().predict(state, query)

    def critique(self, state: TaskState, query: Tensor) -> Weights:
        """Gradient of C, averaged over each task's queries, by the frozen network's weights."""
        trail = self.network.follow(state, query)
        maps = trail[-1][1]
        with torch.autocast(query.device.type, enabled=False):
            features = maps.mean((2, 3)).to(state["head"].dtype)
            by_logits, by_features = self.judge(state, features, head(maps, state))
            d = (by_features + by_logits @ state["head"].mT) / query.shape[1]
            by_logits = by_logits / query.shape[1]
        gradient = self.network.retrace(state, trail, d)
        gradient["head"] = features.mT @ by_logits
        gradient["offset"] = by_logits.sum(1, keepdim=True)
        return gradient

    def judge(self, state: TaskState, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, Q, D]` and logits `[B, Q, way]` of the queries -> the derivative of each
        query's score by its logits `[B, Q, way]` and by its features `[B, Q, D]`."""
        present = state["class_mask"].unsqueeze(1)
        apart = (features.unsqueeze(2) - state["prototypes"].unsqueeze(1)) * present.unsqueeze(-1)
        scale = 1 / math.sqrt(features.shape[-1])
        p = mask_absent(logits, state["class_mask"]).softmax(-1)
        q = mask_absent(-scale * apart.square().sum(-1), state["class_mask"]).softmax(-1)
        seen = torch.stack([p, q], 2)  # [B, Q, CHANNELS, way]

        order = p.masked_fill(~present, -1.0).argsort(-1, descending=True)
        x = self.widen(seen.gather(-1, order.unsqueeze(2).expand_as(seen)))
        d = self.critic.slope(x.flatten(0, 1)).unflatten(0, logits.shape[:2])
        d = d.gather(-1, order.argsort(-1).unsqueeze(2).expand_as(seen))
        # Through both softmaxes, and for the second through the squared distances.
        by_logits, by_nearness = (seen * (d - (d * seen).sum(-1, keepdim=True))).unbind(2)
        return by_logits, -2 * scale * (by_nearness.unsqueeze(-1) * apart).sum(2)

    def widen(self, values: Tensor) -> Tensor:
        """`[..., way]` -> `[..., max_way]`, with zeros."""
        zeros = values.new_zeros(self.slots).expand(*values.shape[:-1], self.slots)
        places = torch.arange(self.slots, device=values.device)
        return torch.cat([values, zeros], -1).index_select(-1, places)
