"""A tiny made data set in folders, and a recipe for it that trains in a second."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from training.recipe import Recipe

SIDE = 16
CLASSES, DRAWINGS = 20, 8
#: A small configuration of every learner, for 16 px images of one channel.
LEARNERS: dict[str, dict[str, Any]] = {
    "prototypical": {"channels": 1, "backbone": "conv4-8"},
    "stanet": {
        "channels": 1,
        "image_size": SIDE,
        "backbone": "conv4-8",
        "max_way": 4,
        "layers": 2,
        "key_dim": 8,
        "value_dim": 16,
    },
    "mmnet": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 16,
        "slots": 6,
        "key_dim": 8,
        "lstm": 8,
    },
    "matching": {
        "channels": 1,
        "image_size": SIDE,
        "backbone": "conv4-8",
        "fce": True,
        "steps": 2,
    },
    "relation": {"channels": 1, "image_size": SIDE, "hidden": 8, "relation": 8},
    "siamese": {"channels": 1, "image_size": SIDE, "backbone": "conv4-8", "dim": 16},
    "gnn": {
        "channels": 1,
        "image_size": SIDE,
        "backbone": "conv4-8",
        "max_way": 4,
        "width": 8,
        "edges": [8, 8],
    },
    "dynamic": {"base_classes": 10, "channels": 1, "image_size": SIDE, "hidden": 8},
    "activations": {"channels": 1, "backbone": "conv4-8", "hidden": 8},
    "maml": {"channels": 1, "image_size": SIDE, "hidden": 8, "max_way": 4, "steps": 2},
    "reptile": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 8,
        "max_way": 4,
        "steps": 3,
        "inner_lr": 0.01,
    },
    "metalstm": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 8,
        "max_way": 4,
        "steps": 2,
        "lstm": 4,
        "input_bias": [0.0, 1.0],
    },
    "sca": {"channels": 1, "image_size": SIDE, "hidden": 8, "max_way": 4},
    "metasgd": {"channels": 1, "image_size": SIDE, "hidden": 8, "max_way": 4},
    "mann": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 16,
        "max_way": 4,
        "controller": 24,
        "slots": 12,
        "width": 8,
        "heads": 2,
    },
    "metanet": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 16,
        "embedding": 8,
        "max_way": 4,
        "samples": 3,
        "lstm": 4,
        "mlp": 16,
    },
    "siamese_memory": {"channels": 1, "backbone": "conv4-8", "slots": 12, "scale": 4.0},
    "snail": {
        "channels": 1,
        "image_size": SIDE,
        "hidden": 8,
        "embedding": 6,
        "max_way": 4,
        "attention": [[4, 3], [5, 6]],
        "filters": 3,
        "length": 6,
    },
    "alpaca": {"channels": 1, "backbone": "conv4-8", "dim": 8, "precision": 5.0},
    "metaoptnet": {"channels": 1, "backbone": "conv4-8", "head": "svm"},
}
OBJECTIVES = {
    "stanet": "semantic",
    "mmnet": "matching",
    "siamese": "verification",
    "relation": "relation",
    "dynamic": "base_classes",
    "activations": "semantic",
    "siamese_memory": "margin",
    "mann": "sequence",
    "reptile": "reptile",
}
#: Those that adapt by steps.
GRADIENT = ("maml", "metalstm", "metasgd", "reptile", "sca")
#: Those with a fixed number of outputs that are trained to do without some of them.
SLOTTED = ("stanet", "snail", "gnn", "mann", "metanet")


def draw_data(root: Path) -> Path:
    """One folder per class: a pattern of its own under noise."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        pattern = random.integers(0, 2, (4, 4)).repeat(4, 0).repeat(4, 1) * 160
        folder = root / f"class{label:02d}"
        folder.mkdir(parents=True)
        for number in range(DRAWINGS):
            noise = random.integers(0, 96, (SIDE, SIDE))
            Image.fromarray((pattern + noise).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def recipe_content(learner: str = "prototypical", **changes: Any) -> dict[str, Any]:
    """A recipe as plain values; `changes` replace whole top-level sections."""
    content: dict[str, Any] = {
        "id": f"tiny-{learner}",
        "learner": learner,
        "config": LEARNERS[learner],
        "data": {
            "dataset": "folder",
            "split": "50/25/25",
            "input": {"channels": 1, "height": SIDE, "width": SIDE, "fit": "stretch"},
            "rotations": "classes",
            "augment": "crop_flip",
        },
        "episodes": {"tasks": 2, "ways": [3, 4], "shots": [1, 2], "queries": 2},
        "objective": {"name": OBJECTIVES.get(learner, "episode")},
        "optimizer": {"name": "adam", "lr": 3e-3, "schedule": "cosine", "warmup": 2, "clip": 5.0},
        "validation": {"every": 4, "tasks": 10, "way": 3, "shot": 1, "queries": 3},
        "steps": 12,
        "checkpoint_every": 3,
        "entry": {
            "title": "Tiny",
            "summary": "For tests.",
            "paper": {"title": "T", "authors": "A", "year": 2018},
            "limits": {"max_way": 4, "max_shot": 5, "max_support": 20, "max_query": 20},
        },
    }
    if learner == "reptile":
        content["episodes"]["ways"] = [4]
    if learner in SLOTTED:
        content["episodes"]["slots"] = 4
    if learner in GRADIENT:
        content["entry"]["adaptation"] = {
            "steps": 2,
            "max_steps": 5,
            "inner_lr": 1.0,
            "max_inner_lr": 4.0,
        }
    return copy.deepcopy(content | changes)


def recipe(learner: str = "prototypical", **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_content(learner, **changes))


def write_recipe(path: Path, learner: str = "prototypical", **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe_content(learner, **changes)), encoding="utf-8")
    return path
