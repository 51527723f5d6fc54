"""A recipe's optimiser, over the parameters that its learner and objective train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models_zoo.learner import Learner
from training.objectives import Objective
from training.recipe import Recipe


def make_optimizer(recipe: Recipe, learner: Learner, objective: Objective) -> torch.optim.Optimizer:
    """One group of parameters; two where the objective has settings for its own."""
    config = recipe.optimizer
    groups: list[dict[str, Any]] = [{"params": trained(learner, objective)}]
    if objective.settings is not None:
        groups = [
            {"params": trained(learner)},
            {"params": trained(objective)} | objective.settings,
        ]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]
