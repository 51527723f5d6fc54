"""Torchvision's classification networks as frozen encoders, under one rule for all of them.

A network is cut in two where it last has a grid before its classifier: feature maps
`[M, C, h, w]`, or the tokens `[M, 1 + h w, C]` of a vision transformer. The trunk is what comes
before; the tail makes of the grid the vector that the classifier would see: by pooling,
normalising, or taking the class token.
An image's vector is the tail of its grid; a location's vector is the tail of that location alone,
as if it were the whole grid, so that the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models_zoo.cards import InputSpec
from models_zoo.names import closest

PREFIX = "torchvision/"


def find(name: str) -> tuple[str, WeightsEnum]:
    """`torchvision/resnet50`, or `torchvision/resnet50/IMAGENET1K_V1`: the network and its weights.

    Without weights named, those that torchvision calls its default. Raises `ValueError` naming what
    comes closest.
    """
    known = list_models(module=torchvision.models)
    network, _, wanted = name.removeprefix(PREFIX).partition("/")
    if not name.startswith(PREFIX) or network not in known:
        near = closest(network.rpartition("/")[2], known)
        hint = " or ".join(PREFIX + each for each in near or ("resnet50", "vit_b_16"))
        raise ValueError(f"unknown backbone {name!r}; did you mean {hint}?")
    weights = get_model_weights(network)
    if not wanted:
        return network, weights.DEFAULT
    if wanted not in weights.__members__:
        raise ValueError(
            f"{network} has no weights {wanted!r}; known: {', '.join(weights.__members__)}"
        )
    return network, weights[wanted]


def input_spec(weights: WeightsEnum) -> InputSpec:
    """The preprocessing that the weights were made with, but for its normalisation: that is in
    `Pretrained`."""
    preset = weights.transforms()
    return InputSpec(
        channels=3,
        height=preset.crop_size[0],
        width=preset.crop_size[0],
        fit="crop",
        resize=preset.resize_size[0],
        resample=preset.interpolation.value,
    )


def blank(network: str, weights: WeightsEnum) -> nn.Module:
    """The network as `weights` want it, without them."""
    options: dict[str, Any] = {}
    if network.startswith("vit_"):
        options["image_size"] = weights.transforms().crop_size[0]
    if network in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "aux_logits": True, "init_weights": False}
    return get_model(network, weights=None, **options)


class Pretrained(nn.Module):
    """Images `[M, 3, S, S]` in [0, 1] -> vectors of length `LENGTH` `[M, 1 + h w, D]`.

    The first is the image's, the others those of its locations, row by row. Nothing in it trains.
    """

    mean: Tensor
    std: Tensor

    #: Of every vector. Under a head that is not trained it sets how sharp the probabilities are.
    LENGTH = math.sqrt(10)

    def __init__(self, model: nn.Module, side: int, mean: Iterable[float], std: Iterable[float]):
        """Cut `model`, which takes images of `side` x `side`. Raises `ValueError`."""
        super().__init__()
        self.trunk, self.tail, self.grid, self.dim = cut(model.eval(), side)
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(list(values)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, name: str, load: Callable[[str, WeightsEnum], nn.Module] = blank) -> Pretrained:
        """By its name; `load` makes the network. Raises `ValueError`."""
        network, weights = find(name)
        preset = weights.transforms()
        return cls(load(network, weights), preset.crop_size[0], preset.mean, preset.std)

    def train(self, mode: bool = True) -> Pretrained:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.trunk((images - self.mean) / self.std)
        if grid.ndim == 4:
            alone = grid.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
        else:  # the class token comes first, and is no location
            alone = grid[:, 1:].flatten(0, 1).unsqueeze(1)
        locations = self.tail(alone).unflatten(0, (-1, self.grid[0] * self.grid[1]))
        vectors = torch.cat([self.tail(grid).unsqueeze(1), locations], dim=1)
        return self.LENGTH * F.normalize(vectors, dim=-1)


class Mean(nn.Module):
    """The tail where a network flattens its map: a location has not the size of its vector."""

    def forward(self, grid: Tensor) -> Tensor:
        return grid.mean((2, 3))


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor on the way."""

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            n.meta["shape"] = tuple(found.shape)
        return found


@torch.no_grad()
def cut(model: nn.Module, side: int) -> tuple[nn.Module, nn.Module, tuple[int, int], int]:
    """(trunk, tail, (h, w), D) of a network in evaluation mode. Raises `ValueError`."""
    last = get_graph_node_names(model)[1][-1]
    traced = create_feature_extractor(model, {last: "last"}).eval()
    _Shapes(traced).run(torch.zeros(1, 3, side, side))
    nodes = list(traced.graph.nodes)
    # SqueezeNet's classifier is a convolution: its map of class scores is no grid of features.
    weighs = [
        node
        for node in nodes
        if node.op == "call_module"
        and isinstance(traced.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)
    ]
    before = nodes[: nodes.index(weighs[-1])] if weighs else nodes
    grids = [node for node in before if is_grid(node.meta.get("shape", ()))]
    if not grids:
        raise ValueError("a network without feature maps or tokens")
    grid = grids[-1]
    after = nodes[nodes.index(grid) + 1 :]
    vector = next((node for node in after if len(node.meta.get("shape", ())) == 2), None)
    shape = grid.meta["shape"]
    size = shape[2:] if len(shape) == 4 else (math.isqrt(shape[1] - 1),) * 2
    image = next(node for node in nodes if node.op == "placeholder")
    trunk = between(traced, image, grid)
    tail: nn.Module = Mean()
    if vector is not None and vector.meta["shape"][1] == shape[1 if len(shape) == 4 else 2]:
        tail = between(traced, grid, vector)
    return trunk, tail, size, shape[1] if len(shape) == 4 else shape[2]


def is_grid(shape: tuple[int, ...]) -> bool:
    """A square feature map of several locations, or a class token and a square of tokens."""
    if len(shape) == 4:
        return shape[2] == shape[3] > 1
    return len(shape) == 3 and shape[1] > 1 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def between(traced: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """The part of a graph that makes `end` of `start`."""
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}
    nodes = list(traced.graph.nodes)
    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        if node.op != "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    part = fx.GraphModule(traced, graph)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part
