"""Small learners in float64 and a batch of unequal tasks, for tests of the training regimens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models_zoo import registry
from models_zoo.episode import Support
from models_zoo.learner import Learner
from training.data.sampler import IGNORE, Episode

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", {"steps": 2, "inner_lr": 0.5}),
    "fomaml": ("maml", {"steps": 2, "inner_lr": 0.5, "first_order": True}),
    "metasgd": ("metasgd", {}),
    "metalstm": ("metalstm", {"steps": 2, "lstm": 3}),
    "prototypical": ("prototypical", {"backbone": "conv4-4"}),
}
SIDE = 16


def tiny(name: str) -> Learner:
    """A learner in training mode whose every weight differs from its start."""
    torch.manual_seed(0)
    learner_name, config = CONFIGS[name]
    fixed = {} if "backbone" in config else {"image_size": SIDE, "hidden": 4, "max_way": 3}
    learner = registry.build(learner_name, {"channels": 1, **fixed, **config}).double()
    with torch.no_grad():
        for value in learner.parameters():
            value += 0.1 * torch.randn_like(value)
    return learner.train()


def mixed_episode(seed: int = 1) -> Episode:
    """Three tasks of 3, 2 and 3 classes with 5, 3 and 4 examples, 4, 3 and 2 queries."""
    generator = torch.Generator().manual_seed(seed)
    none = IGNORE
    labels = torch.tensor([[0, 1, 2, 0, 1], [1, 0, 0, 0, 0], [2, 0, 0, 1, 0]])
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]])
    targets = torch.tensor([[0, 1, 2, 2], [1, 0, 1, none], [2, 1, none, none]])

    def images(count: int) -> torch.Tensor:
        return torch.rand(3, count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)

    support = Support.of(images(5), labels, mask, way=3)
    return Episode(support, images(4), targets, labels, targets)


def one_task(episode: Episode, task: int) -> Episode:
    """One task of a batch, as a batch of one without its padding."""
    mask, real = episode.support.mask[task], episode.targets[task] != IGNORE
    support = replace(
        episode.support,
        x=episode.support.x[task : task + 1, mask],
        labels=episode.support.labels[task : task + 1, mask],
        mask=episode.support.mask[task : task + 1, mask],
        class_mask=episode.support.class_mask[task : task + 1],
    )
    targets = episode.targets[task : task + 1, real]
    return Episode(support, episode.query[task : task + 1, real], targets, support.labels, targets)
