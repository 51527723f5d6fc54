"""The network that gradient-based learners adapt, for many tasks at once; its gradient by hand.

Finn, Abbeel and Levine's Omniglot network (ICML 2017): four 3x3 convolutions of stride 2,
normalised, ReLU, spatial mean, linear head. Every task has weights of its own: a task axis leads.

Non-transductive: every layer is normalised by the statistics of the task's *support* images, under
the weights of the moment. Those of the adapted weights are folded into the adapted kernels, so what
is left for a query is convolution, bias, ReLU, and no query sees another.

The gradients are written out in plain operations: the same lines train (autograd passes through
them for the second order), adapt a batch of tasks, and export to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models_zoo.episode import Support, TaskState, mask_absent
from models_zoo.optimization.taskconv import fold, half, patches

EPS = 1e-5
LAYERS = 4
#: The layer whose maps show what an answer rests on: a quarter of the image's side (7x7 of 28 px).
SHOWN = 1
#: Weights with a column for each of the task's classes.
SLOTTED = ("head", "offset")

#: Weights of a batch of tasks by name: `kernel{l}` [B, 9*C, D] (rows: place in the window, then
#: channel), `gain{l}`, `shift{l}` [B, 1, D], `head` [B, D, way], `offset` [B, 1, way].
Weights = dict[str, Tensor]
#: Mean and variance for each layer, `[B, 1, D]` or `[1, D]`, in place of the support set's own.
Statistics = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What the inner loop needs of the support set: layer 1's windows, labels, who counts."""

    windows: Tensor  # [B, N*h*w, 9*C]
    target: Tensor  # [B, N, way], one-hot / number of examples; padding has rows of zeros
    class_mask: Tensor  # [B, way]

    @classmethod
    def of(cls, support: Support) -> Task:
        """From support images `[B, N, C, H, W]`."""
        one_hot = support.one_hot()
        target = one_hot / one_hot.sum((1, 2), keepdim=True)
        return cls(patches(_channels_last(support.x)), target, support.class_mask)

    @property
    def count(self) -> int:
        return self.target.shape[1]

    @property
    def way(self) -> int:
        return self.class_mask.shape[1]

    @property
    def share(self) -> Tensor:
        """Each example's weight in every mean: `[B, N]`, 1 / number of examples, or 0."""
        return self.target.sum(-1)


class Layer(NamedTuple):
    """What a layer's backward pass reads; rows = (example, location)."""

    windows: Tensor  # [B, rows, 9*C]
    normal: Tensor  # [B, rows, D]
    mean: Tensor  # [B, 1, D]
    variance: Tensor  # [B, 1, D]
    live: Tensor  # [B, rows, D] bool, where ReLU passes

    @property
    def rate(self) -> Tensor:
        """1 / standard deviation."""
        return (self.variance + EPS).rsqrt()


class Slope(NamedTuple):
    """The mean cross-entropy of each task's support set `[B]`, its gradient, and the layers."""

    loss: Tensor
    gradient: Weights
    layers: list[Layer]


class Network:
    """The sizes of the network, and what it computes from weights that it does not hold."""

    def __init__(self, channels: int, image_size: int, hidden: int) -> None:
        self.channels, self.hidden = channels, hidden
        self.sizes = [image_size]
        for _ in range(LAYERS):
            self.sizes.append(half(self.sizes[-1]))

    def fresh(self, max_way: int) -> Weights:
        """Weights to start training from, without the task axis."""
        weights = {}
        for layer in range(LAYERS):
            fan_in = 9 * (self.hidden if layer else self.channels)
            weights[f"kernel{layer}"] = torch.randn(fan_in, self.hidden) * math.sqrt(2 / fan_in)
            weights[f"gain{layer}"] = torch.ones(1, self.hidden)
            weights[f"shift{layer}"] = torch.zeros(1, self.hidden)
        weights["head"] = torch.randn(self.hidden, max_way) * 0.1
        weights["offset"] = torch.zeros(1, max_way)
        return weights

    def forward(
        self, weights: Weights, task: Task, given: Statistics | None = None
    ) -> tuple[Tensor, list[Layer]]:
        """Support images -> the last layer's maps `[B, N, h, w, D]` and every layer's record."""
        windows, layers = task.windows, []
        for layer in range(LAYERS):
            product = (windows @ weights[f"kernel{layer}"]).to(task.target.dtype)
            mean = given[layer][0] if given else self._mean(product, task, layer)
            centred = product - mean
            variance = given[layer][1] if given else self._mean(centred.square(), task, layer)
            normal = centred * (variance + EPS).rsqrt()
            active = (normal * weights[f"gain{layer}"] + weights[f"shift{layer}"]).relu()
            layers.append(Layer(windows, normal, mean, variance, active > 0))
            images = self._as_images(active, task.count, layer + 1)
            if layer < LAYERS - 1:
                windows = patches(images.to(_compute_dtype(images)))
        return images, layers

    def slope(self, weights: Weights, task: Task, given: Statistics | None = None) -> Slope:
        """Loss and gradient over the support set; `given` statistics are constants."""
        maps, layers = self.forward(weights, task, given)
        logits = mask_absent(head(maps, weights), task.class_mask)
        loss = -(logits.log_softmax(-1) * task.target).sum((1, 2))
        d = logits.softmax(-1) * task.share.unsqueeze(-1) - task.target
        gradient = {"head": maps.mean((2, 3)).mT @ d, "offset": d.sum(1, keepdim=True)}
        d = self._spread(d @ weights["head"].mT)
        for layer in reversed(range(LAYERS)):
            windows, normal, _, _, live = layers[layer]
            d = d * live
            gradient[f"shift{layer}"] = d.sum(1, keepdim=True)
            gradient[f"gain{layer}"] = (d * normal).sum(1, keepdim=True)
            d = d * weights[f"gain{layer}"]
            if given is None:
                # Through mean and variance: each row drew on them by its share, padding not at all.
                drift = d.sum(1, keepdim=True) + normal * (d * normal).sum(1, keepdim=True)
                d = d - self._rows(task.share, layer).unsqueeze(-1) * drift
            d = (layers[layer].rate * d).to(windows.dtype)
            gradient[f"kernel{layer}"] = windows.mT @ d
            if layer:
                d = fold(d @ weights[f"kernel{layer}"].mT, task.count, self.sizes[layer])
                d = d.flatten(1, 3).to(task.target.dtype)
        return Slope(loss, gradient, layers)

    def freeze(self, weights: Weights, layers: Sequence[Layer]) -> Weights:
        """gain (W x - mean) rate + shift, as one `kernel{l}` and one `bias{l}`; and the head."""
        frozen = {name: weights[name] for name in SLOTTED}
        for layer, record in enumerate(layers):
            scale = weights[f"gain{layer}"] * record.rate
            frozen[f"kernel{layer}"] = weights[f"kernel{layer}"] * scale
            frozen[f"bias{layer}"] = weights[f"shift{layer}"] - record.mean * scale
        return frozen

    def follow(self, frozen: TaskState, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A frozen network on images `[B, Q, C, H, W]`: what each layer is given, as windows
        `[B, rows, 9*C]`, and what it makes of it, as maps `[B, Q, h, w, D]`."""
        maps, trail = _channels_last(images), []
        for layer in range(LAYERS):
            windows = patches(maps)
            bias, kernel = frozen[f"bias{layer}"], frozen[f"kernel{layer}"]
            active = torch.baddbmm(bias, windows, kernel).relu()
            maps = self._as_images(active, images.shape[1], layer + 1)
            trail.append((windows, maps))
        return trail

    def retrace(
        self, frozen: TaskState, trail: Sequence[tuple[Tensor, Tensor]], d: Tensor
    ) -> Weights:
        """What `follow` gave, and the derivative `[B, Q, D]` of anything by the spatial mean of its
        last maps -> the gradient by each `kernel{l}` and `bias{l}`."""
        gradient = {}
        for layer, rows in self._back(frozen, trail, d):
            gradient[f"bias{layer}"] = rows.sum(1, keepdim=True)
            windows = trail[layer][0]
            gradient[f"kernel{layer}"] = windows.mT @ rows.to(windows.dtype)
        return gradient

    def relevance(
        self, frozen: TaskState, trail: Sequence[tuple[Tensor, Tensor]], d: Tensor
    ) -> Tensor:
        """What `follow` gave, and the derivative `[B, Q, D]` of a number by the spatial mean of its
        last maps -> what each place of the maps of `SHOWN` adds to it, `[B, Q, h, w]`: gradient
        times activation, summed over the channels. All that is left of the number are biases."""
        rows = next(rows for layer, rows in self._back(frozen, trail, d) if layer == SHOWN)
        maps = trail[SHOWN][1]
        return (rows.view_as(maps) * maps).sum(-1)

    def _back(
        self, frozen: TaskState, trail: Sequence[tuple[Tensor, Tensor]], d: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """From the last layer to the first, the derivative before its ReLU, `[B, rows, D]`."""
        d = self._spread(d)
        for layer in reversed(range(LAYERS)):
            windows, maps = trail[layer]
            d = d * (maps > 0).flatten(1, 3)
            yield layer, d
            if layer:
                rows = d.to(windows.dtype) @ frozen[f"kernel{layer}"].mT
                d = fold(rows, maps.shape[1], self.sizes[layer]).flatten(1, 3).to(d.dtype)

    def _spread(self, d: Tensor) -> Tensor:
        """Derivative of the spatial mean: `[B, N, D]` -> `[B, N*h*w, D]`."""
        places = self.sizes[-1] ** 2
        return (d / places).repeat_interleave(places, dim=1)

    def _rows(self, share: Tensor, layer: int) -> Tensor:
        """Each example's share, spread over its locations: `[B, N]` -> `[B, N*h*w]`."""
        places = self.sizes[layer + 1] ** 2
        return (share / places).repeat_interleave(places, dim=1)

    def _mean(self, values: Tensor, task: Task, layer: int) -> Tensor:
        """Mean over the support set's images and locations: `[B, rows, D]` -> `[B, 1, D]`."""
        with torch.autocast(values.device.type, enabled=False):
            return self._rows(task.share, layer).unsqueeze(1) @ values

    def _as_images(self, rows: Tensor, count: int, layer: int) -> Tensor:
        size = self.sizes[layer]
        return rows.reshape(rows.shape[0], count, size, size, rows.shape[-1])


def head(maps: Tensor, weights: Weights) -> Tensor:
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
