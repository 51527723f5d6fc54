"""MAML: learn the initial weights from which a few gradient steps suffice.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks"
(ICML 2017); seed 002, "Model-Agnostic Meta-Learning (MAML)". For every task

    phi <- phi - alpha grad L(phi, support),   phi_0 = theta,   S times        (adapt)
    y    = f(query; phi)                                                       (predict)

and theta is learned through the queries' loss: with the gradient's own derivative (second
order) or holding the gradient constant (first order).

f is Finn's Omniglot network: four 3x3 convolutions of stride 2, normalised, ReLU, spatial mean,
linear head. Non-transductive: every layer is normalised by the statistics of the task's *support*
images, under the weights of the moment. Those of the adapted weights are folded into the adapted
kernels, so what is left for a query is convolution, bias, ReLU, and no query sees another.

The gradient is written out in plain operations with a task axis: the same lines train (autograd
passes through them), adapt a whole batch of tasks at once, and export to ONNX, the steps as Scan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models_zoo.episode import Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner
from models_zoo.optimization.taskconv import fold, half, patches

EPS = 1e-5
LAYERS = 4
#: Weights with a column for each of the task's classes.
SLOTTED = ("head", "offset")

#: Weights of a batch of tasks by name: `kernel{l}` [B, 9*C, D] (rows: place in the window, then
#: channel), `gain{l}`, `shift{l}` [B, 1, D], `head` [B, D, way], `offset` [B, 1, way].
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Task:
    """What the inner loop needs of the support set: layer 1's windows, labels, who counts."""

    windows: Tensor  # [B, N*h*w, 9*C]
    target: Tensor  # [B, N, way], one-hot / number of examples; padding has rows of zeros
    class_mask: Tensor  # [B, way]

    @property
    def count(self) -> int:
        return self.target.shape[1]

    @property
    def share(self) -> Tensor:
        """Each example's weight in every mean: `[B, N]`, 1 / number of examples, or 0."""
        return self.target.sum(-1)


class _Layer(NamedTuple):
    """What a layer's backward pass reads; rows = (example, location)."""

    windows: Tensor  # [B, rows, 9*C]
    normal: Tensor  # [B, rows, D]
    mean: Tensor  # [B, 1, D]
    rate: Tensor  # [B, 1, D], 1 / standard deviation
    live: Tensor  # [B, rows, D] bool, where ReLU passes


class MAML(Learner):
    """Model-agnostic meta-learning with a task axis.

    channels, image_size   of the (square) images
    hidden                 channels D of every layer
    max_way                slots of the head; a task uses the slots its `class_mask` names
    steps, inner_lr        gradient steps and their rate alpha, when `adapt` is not told otherwise
    first_order            hold the gradient constant in the meta-update
    learn_rates            learn a factor on alpha for every weight tensor (the per-layer rates of
                           Antoniou et al., "How to train your MAML", 2019)

    The inner loss is the *mean* cross-entropy over a task's examples: Finn's code sums it, so its
    0.4 for 5 examples is 2.0 here.
    """

    encodes = False

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
    ) -> None:
        super().__init__()
        self.max_way = max_way
        self.backbone_name = f"conv4-{hidden}, stride 2, no pooling"
        self.steps, self.inner_lr, self.first_order = steps, inner_lr, first_order
        self.sizes = [image_size]
        weights = {}
        for layer in range(LAYERS):
            fan_in = 9 * (hidden if layer else channels)
            weights[f"kernel{layer}"] = torch.randn(fan_in, hidden) * math.sqrt(2 / fan_in)
            weights[f"gain{layer}"] = torch.ones(1, hidden)
            weights[f"shift{layer}"] = torch.zeros(1, hidden)
            self.sizes.append(half(self.sizes[-1]))
        weights["head"] = torch.randn(hidden, max_way) * 0.1
        weights["offset"] = torch.zeros(1, max_way)
        self.initial = nn.ParameterDict(weights)
        self.log_rates = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(()), requires_grad=learn_rates) for name in weights}
        )

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Support images `[B, N, C, H, W]`, inner rates `[S]` -> the adapted network.

        One gradient step for each element of `inner_lr` (default: `default_inner_lr`).
        Returns `kernel{l}` [B, 9*C, D] and `bias{l}` [B, 1, D] with the normalisation folded in,
        `head`, `offset` and `class_mask`. Raises `ValueError` for more classes than `max_way`.
        """
        self.check_way(support)
        one_hot = support.one_hot()
        task = _Task(
            patches(_channels_last(support.x)),
            one_hot / one_hot.sum((1, 2), keepdim=True),
            support.class_mask,
        )
        weights = self._start(*support.class_mask.shape)
        if inner_lr is None:
            inner_lr = self.default_inner_lr()
        if torch.compiler.is_exporting():
            weights = self._scan(weights, task, inner_lr)
        else:
            for rate in inner_lr.unbind():
                weights = self._step(weights, task, rate)
        return self._freeze(weights, task)

    def default_inner_lr(self) -> Tensor:
        return self.initial["head"].new_full((self.steps,), self.inner_lr)

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Query images `[B, Q, C, H, W]` -> logits `[B, Q, way]`."""
        windows = patches(_channels_last(query))
        for layer in range(LAYERS):
            active = torch.baddbmm(state[f"bias{layer}"], windows, state[f"kernel{layer}"]).relu()
            active = self._as_images(active, query.shape[1], layer + 1)
            if layer < LAYERS - 1:
                windows = patches(active)
        return Prediction(mask_absent(_head(active, state), state["class_mask"]))

    def _start(self, tasks: int, way: int) -> Weights:
        """theta, once for every task; the head cut to the slots in use."""
        return {
            name: (columns(value, way) if name in SLOTTED else value).expand(tasks, -1, -1)
            for name, value in self.initial.items()
        }

    def _step(self, weights: Weights, task: _Task, rate: Tensor) -> Weights:
        """phi <- phi - alpha grad L(phi, support)   (Finn et al. 2017, eq. 1)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_order):
            gradient = self._gradient(weights, task)
        return {
            name: value - rate * self._factor(name, task.class_mask.shape[1]) * gradient[name]
            for name, value in weights.items()
        }

    def _factor(self, name: str, way: int) -> Tensor:
        """What the inner rate of a weight tensor is multiplied by, for `way` classes."""
        return self.log_rates[name].exp()

    def _scan(self, weights: Weights, task: _Task, inner_lr: Tensor) -> Weights:
        """The same steps as one graph operator, for a number of steps known only at run time."""
        from torch._higher_order_ops.scan import scan

        def step(carry: Weights, rate: Tensor) -> tuple[Weights, Tensor]:
            return self._step(carry, task, rate), rate.clone()

        carry = {name: value.clone() for name, value in weights.items()}
        adapted: Weights = scan(step, carry, inner_lr)[0]
        return adapted

    def _forward(self, weights: Weights, task: _Task) -> tuple[Tensor, list[_Layer]]:
        """Support images -> the last layer's maps `[B, N, h, w, D]` and every layer's record."""
        windows, layers = task.windows, []
        for layer in range(LAYERS):
            product = (windows @ weights[f"kernel{layer}"]).to(task.target.dtype)
            mean = self._mean(product, task, layer)
            centred = product - mean
            rate = (self._mean(centred.square(), task, layer) + EPS).rsqrt()
            normal = centred * rate
            active = (normal * weights[f"gain{layer}"] + weights[f"shift{layer}"]).relu()
            layers.append(_Layer(windows, normal, mean, rate, active > 0))
            images = self._as_images(active, task.count, layer + 1)
            if layer < LAYERS - 1:
                windows = patches(images.to(_compute_dtype(images)))
        return images, layers

    def _gradient(self, weights: Weights, task: _Task) -> Weights:
        """Gradient of the mean cross-entropy over the support set, by hand; names as `weights`."""
        maps, layers = self._forward(weights, task)
        features = maps.mean((2, 3))
        logits = mask_absent(_head(maps, weights), task.class_mask)
        d = logits.softmax(-1) * task.share.unsqueeze(-1) - task.target
        gradient = {"head": features.mT @ d, "offset": d.sum(1, keepdim=True)}
        places = self.sizes[-1] ** 2
        d = (d @ weights["head"].mT / places).repeat_interleave(places, dim=1)
        for layer in reversed(range(LAYERS)):
            windows, normal, _, rate, live = layers[layer]
            d = d * live
            gradient[f"shift{layer}"] = d.sum(1, keepdim=True)
            gradient[f"gain{layer}"] = (d * normal).sum(1, keepdim=True)
            d = d * weights[f"gain{layer}"]
            # Through mean and variance: each row drew on them by its share, padding not at all.
            drift = d.sum(1, keepdim=True) + normal * (d * normal).sum(1, keepdim=True)
            d = rate * (d - self._rows(task.share, layer).unsqueeze(-1) * drift)
            d = d.to(windows.dtype)
            gradient[f"kernel{layer}"] = windows.mT @ d
            if layer:
                d = fold(d @ weights[f"kernel{layer}"].mT, task.count, self.sizes[layer])
                d = d.flatten(1, 3).to(task.target.dtype)
        return gradient

    def _freeze(self, weights: Weights, task: _Task) -> TaskState:
        """gain (W x - mean) rate + shift, as one kernel and one bias."""
        state = {"head": weights["head"], "offset": weights["offset"]}
        for layer, (_, _, mean, rate, _) in enumerate(self._forward(weights, task)[1]):
            scale = weights[f"gain{layer}"] * rate
            state[f"kernel{layer}"] = weights[f"kernel{layer}"] * scale
            state[f"bias{layer}"] = weights[f"shift{layer}"] - mean * scale
        return state | {"class_mask": task.class_mask}

    def _rows(self, share: Tensor, layer: int) -> Tensor:
        """Each example's share, spread over its locations: `[B, N]` -> `[B, N*h*w]`."""
        places = self.sizes[layer + 1] ** 2
        return (share / places).repeat_interleave(places, dim=1)

    def _mean(self, values: Tensor, task: _Task, layer: int) -> Tensor:
        """Mean over the support set's images and locations: `[B, rows, D]` -> `[B, 1, D]`."""
        with torch.autocast(values.device.type, enabled=False):
            return self._rows(task.share, layer).unsqueeze(1) @ values

    def _as_images(self, rows: Tensor, count: int, layer: int) -> Tensor:
        size = self.sizes[layer]
        return rows.reshape(rows.shape[0], count, size, size, rows.shape[-1])


def columns(values: Tensor, count: int) -> Tensor:
    """The first columns; a slice would fix their number at export."""
    return values.index_select(1, torch.arange(count, device=values.device))


def _head(maps: Tensor, weights: Weights) -> Tensor:
    """Spatial mean and linear head, in full precision: `[B, N, h, w, D]` -> `[B, N, way]`."""
    with torch.autocast(maps.device.type, enabled=False):
        features = maps.mean((2, 3)).to(weights["head"].dtype)
        return torch.baddbmm(weights["offset"], features, weights["head"])


def _channels_last(images: Tensor) -> Tensor:
    """`[B, N, C, H, W]` -> `[B, N, H, W, C]`, in the precision that autocast asks for."""
    return images.permute(0, 1, 3, 4, 2).to(_compute_dtype(images))


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
