"""From a finished run to a zoo entry: weights, graphs that answer as PyTorch does, and the card."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from models_zoo import registry
from models_zoo.cards import ENTRIES, AttentionSpec, Card, Training, describe_file, write_card
from models_zoo.learner import InputShape, Learner
from models_zoo.weights import WEIGHTS
from training import checkpoint
from training.graphs import Sizes, example_inputs, hyperparameters, to_onnx
from training.parity import Difference, compare
from training.recipe import RECIPES, Recipe, RecipeError, load_recipe


def load_run(run: Path) -> tuple[Recipe, Learner, dict[str, Any]]:
    """A run's recipe, learner with the best weights, and record. Raises `RecipeError`."""
    try:
        content = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(content)
        weights = (run / "best.safetensors").read_bytes()
        last = checkpoint.load(run / "last.pt", torch.device("cpu"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{error.filename}: missing; is {run} the folder of a trained run?"
        ) from None
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"{run}: {' '.join(str(error).split())}") from None
    learner = registry.build(recipe.learner, recipe.config)
    try:
        learner.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"{run / 'best.safetensors'}: not this run's weights: {reason}") from None
    return (
        recipe,
        learner.eval(),
        {**last["best"], **{key: last[key] for key in ("seconds", "hardware")}},
    )


def export(run: Path, root: Path = ENTRIES, version: str = "1") -> tuple[Card, Difference]:
    """Write the entry of a run into `root`/<id> and check its graphs against PyTorch.

    Nothing is written when they disagree. Raises `RecipeError`, `ParityError`.
    """
    recipe, learner, record = load_run(run)
    spec = recipe.data.input
    shape = InputShape(spec.channels, spec.height, spec.width)
    weights = save({k: v.contiguous() for k, v in learner.state_dict().items()})
    graphs = to_onnx(learner, shape)
    difference = compare(learner, shape, graphs)

    folder = root / recipe.id
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("*.onnx"), folder / "card.json"]:
        stale.unlink(missing_ok=True)
    files = {WEIGHTS: weights, **graphs}
    for name, data in files.items():
        checkpoint.write_atomically(folder / name, data)
    family = registry.family(recipe.learner)
    card = Card(
        id=recipe.id,
        version=version,
        title=recipe.entry.title,
        summary=recipe.entry.summary,
        learner=recipe.learner,
        family=family,
        paper=recipe.entry.paper,
        backbone=str(recipe.config.get("backbone", learner.backbone_name)),
        parameters=sum(p.numel() for p in learner.parameters()),
        config=recipe.config,
        input=spec,
        limits=recipe.entry.limits,
        attention=attention_of(learner, shape),
        adaptation=recipe.entry.adaptation,
        transductive=False,
        training=Training(
            dataset=recipe.data.dataset,
            split=recipe.data.split,
            recipe=name_of(recipe),
            steps=int(record["step"]),
            seed=recipe.seed,
            minutes=round(record["seconds"] / 60, 1),
            hardware=record["hardware"],
        ),
        license="MIT",
        files={name: describe_file(folder / name) for name in files},
    )
    write_card(card, root)
    report = {"card": recipe.id, **asdict(difference)}
    checkpoint.write_atomically(run / "parity.json", json.dumps(report, indent=2).encode())
    return card, difference


def name_of(recipe: Recipe) -> str:
    """Where a recipe stands in this repository; the id alone of one that does not, or differs."""
    path = RECIPES / f"{recipe.id}.yaml"
    if path.exists() and load_recipe(path) == recipe:
        return f"training/recipes/{path.name}"
    return recipe.id


@torch.no_grad()
def attention_of(learner: Learner, shape: InputShape) -> AttentionSpec:
    """Which attention a learner returns, read off one answer."""
    support, query = example_inputs(learner, shape, Sizes(way=2))
    prediction = learner.predict(learner.adapt(support, *hyperparameters(learner)), query)

    def size(tensor: torch.Tensor | None) -> tuple[int, int] | None:
        return None if tensor is None else (tensor.shape[-2], tensor.shape[-1])

    return AttentionSpec(
        layers=learner.attention_layers,
        task=prediction.task_attention is not None,
        query=size(prediction.query_attention),
        support=size(prediction.support_attention),
    )
