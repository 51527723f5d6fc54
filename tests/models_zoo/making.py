"""Small learners whose every weight differs from its start, and tasks of unequal way and shot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models_zoo import registry
from models_zoo.episode import Support
from models_zoo.learner import InputShape, Learner

SHAPE = InputShape(2, 16, 16)

#: One small configuration of every learner of the zoo; several where an option changes the sums.
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "prototypical": ("prototypical", {"channels": 2, "backbone": "conv4-8"}),
    "prototypical-cosine": (
        "prototypical",
        {"channels": 2, "backbone": "conv4-8", "distance": "cosine", "scale": 3.0},
    ),
    "stanet": (
        "stanet",
        {
            "channels": 2,
            "image_size": 16,
            "backbone": "conv4-8",
            "max_way": 5,
            "layers": 2,
            "key_dim": 6,
            "value_dim": 7,
        },
    ),
    "mmnet": (
        "mmnet",
        {"channels": 2, "image_size": 16, "hidden": 8, "slots": 4, "key_dim": 5, "lstm": 6},
    ),
    "matching": ("matching", {"channels": 2, "image_size": 16, "backbone": "conv4-8"}),
    "matching-fce": (
        "matching",
        {"channels": 2, "image_size": 16, "backbone": "conv4-8", "fce": True, "steps": 3},
    ),
    "relation": (
        "relation",
        {"channels": 2, "image_size": 16, "hidden": 8, "relation": 6, "units": 5},
    ),
    "siamese": (
        "siamese",
        {"channels": 2, "image_size": 16, "backbone": "conv4-8", "dim": 6},
    ),
    "siamese-most-similar": (
        "siamese",
        {
            "channels": 2,
            "image_size": 16,
            "backbone": "conv4-8",
            "dim": 6,
            "decide": "most_similar",
        },
    ),
    "gnn": (
        "gnn",
        {
            "channels": 2,
            "image_size": 16,
            "backbone": "conv4-8",
            "layers": 3,
            "width": 6,
            "edges": [7, 4],
        },
    ),
    "dynamic": ("dynamic", {"base_classes": 9, "channels": 2, "image_size": 16, "hidden": 8}),
    "activations": ("activations", {"channels": 2, "backbone": "conv4-8", "hidden": 7}),
    "maml": ("maml", {"channels": 2, "image_size": 16, "hidden": 6, "max_way": 5, "steps": 2}),
    "mann": (
        "mann",
        {
            "channels": 2,
            "image_size": 16,
            "hidden": 6,
            "max_way": 5,
            "controller": 7,
            "slots": 8,
            "width": 4,
            "heads": 2,
        },
    ),
    "metanet": (
        "metanet",
        {
            "channels": 2,
            "image_size": 16,
            "hidden": 6,
            "embedding": 5,
            "max_way": 5,
            "samples": 3,
            "lstm": 4,
            "mlp": 4,
        },
    ),
    "siamese_memory": (
        "siamese_memory",
        {"channels": 2, "backbone": "conv4-8", "slots": 3, "scale": 3.0},
    ),
    "snail": (
        "snail",
        {
            "channels": 2,
            "image_size": 16,
            "hidden": 6,
            "embedding": 5,
            "max_way": 5,
            "attention": [[4, 3], [5, 6]],
            "filters": 3,
            "length": 7,
        },
    ),
    "maml-per-step": (
        "maml",
        {
            "channels": 2,
            "image_size": 16,
            "hidden": 6,
            "steps": 2,
            "per_step_rates": True,
            "statistics": "per_step",
        },
    ),
    "reptile": (
        "reptile",
        {"channels": 2, "image_size": 16, "hidden": 6, "steps": 3, "inner_lr": 0.01},
    ),
    "metalstm": (
        "metalstm",
        {"channels": 2, "image_size": 16, "hidden": 6, "steps": 2, "lstm": 4, "inner_lr": 3.0},
    ),
    "sca": (
        "sca",
        {
            "channels": 2,
            "image_size": 16,
            "hidden": 6,
            "steps": 2,
            "critic_steps": 2,
            "critic_lr": 0.2,
        },
    ),
    "metasgd": ("metasgd", {"channels": 2, "image_size": 16, "hidden": 6, "inner_lr": 2.0}),
    "alpaca": ("alpaca", {"channels": 2, "backbone": "conv4-8", "dim": 8, "precision": 2.0}),
    "alpaca-isotropic": (
        "alpaca",
        {
            "channels": 2,
            "backbone": "conv4-8",
            "dim": 8,
            "prior": "isotropic",
            "precision": 2.0,
        },
    ),
    "metaoptnet-svm": ("metaoptnet", {"channels": 2, "backbone": "conv4-8", "head": "svm"}),
    "metaoptnet-ridge": (
        "metaoptnet",
        {"channels": 2, "backbone": "conv4-8", "regularization": 2.0},
    ),
}

#: Labels of five tasks, `None` = padding; ways 3, 2, 5, 3, 2 and unequal shots.
MIXED: tuple[tuple[int | None, ...], ...] = (
    (0, 1, 2, 0, 1, 2, 2),
    (1, 0, None, None, 1, 1, None),
    (4, 3, 2, 1, 0, None, None),
    (None, 2, None, 1, 0, 0, 0),
    (3, None, 1, None, None, None, None),
)


def make(name: str, seed: int = 0) -> Learner:
    """A learner of `CONFIGS` in evaluation mode, float64, with norms and statistics in motion."""
    torch.manual_seed(seed)
    learner_name, config = CONFIGS[name]
    learner = registry.build(learner_name, config).double()
    stir(learner, weights=0.1, means=0.3)
    return learner.eval()


@torch.no_grad()
def stir(learner: Learner, weights: float, means: float) -> None:
    """Move every weight and every running statistic off its start; standard deviations."""
    for parameter in learner.parameters():
        parameter += weights * torch.randn_like(parameter)
    for key, buffer in learner.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, means)
        if key.endswith("running_var") or key.startswith("variance"):
            buffer.uniform_(0.5, 2)
        if key.startswith("moment"):  # Reptile's
            buffer.uniform_(0.001, 0.1)
        if key == "faded":
            buffer.fill_(0.6)


def support_of(
    tasks: Sequence[Sequence[int | None]], *shape: int, way: int | None = None, seed: int = 1
) -> Support:
    """Random support sets of the given labels; shorter tasks are padded at their end.

    Padding is as wild as a caller may leave it: large inputs and labels out of range.
    """
    longest = max(map(len, tasks))
    rows = [[*task, *[None] * (longest - len(task))] for task in tasks]
    mask = torch.tensor([[label is not None for label in row] for row in rows])
    labels = torch.tensor([[99 if label is None else label for label in row] for row in rows])
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*mask.shape, *shape, generator=generator, dtype=torch.float64)
    x = torch.where(mask.unflatten(1, (-1, *[1] * len(shape))), x, 50 * x)
    return Support.of(x, labels, mask, way)


def images(*leading: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (SHAPE.channels, SHAPE.height, SHAPE.width)
    return torch.rand(*leading, *shape, generator=generator, dtype=torch.float64)


def alone(support: Support, task: int, way: int | None = None) -> Support:
    """One task of a batch without its padding."""
    kept = support.mask[task]
    return Support.of(
        support.x[task, kept][None], support.labels[task, kept][None], way=way or support.way
    )
