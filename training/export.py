"""From a finished run to a zoo entry: weights, graphs that answer as PyTorch does, and the card."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from models_zoo import registry
from models_zoo.cards import (
    CARD_NAME,
    ENTRIES,
    ENTRY_ID,
    AttentionSpec,
    Card,
    Training,
    ZooError,
    describe,
    write_card,
)
from models_zoo.episode import Prediction
from models_zoo.learner import InputShape, Learner
from models_zoo.weights import WEIGHTS
from training import checkpoint
from training.graphs import Sizes, example_inputs, hyperparameters, to_onnx
from training.independence import check_flags
from training.parity import Difference, compare
from training.recipe import RECIPES, Recipe, RecipeError, load_recipe
from training.state import BEST, LAST


def load_run(run: Path) -> tuple[Recipe, Learner, dict[str, Any]]:
    """A run's recipe, learner with the best weights, and record. Raises `RecipeError`, or
    `CheckpointError` for a damaged checkpoint."""
    try:
        content = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(content)
        if not (run / BEST).exists():
            raise RecipeError(f"{run}: nothing was validated yet, so no weights are kept; train on")
        with safe_open(run / BEST, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            best = (file.metadata() or {}).get("best", "{}")
        last = checkpoint.load(run / LAST, torch.device("cpu"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{error.filename}: missing; is {run} the folder of a trained run?"
        ) from None
    except (OSError, SafetensorError, yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"{run}: {' '.join(str(error).split())}") from None
    try:
        learner = registry.build(recipe.learner, recipe.config)
        learner.load_state_dict(weights)
        record = {"step": json.loads(best)["step"]}
        record |= {"seconds": last["seconds"], "hardware": last["hardware"]}
        record |= {"run_steps": last["step"], "seen": last.get("seen")}
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"{run / BEST}: not this recipe's weights: {reason}") from None
    return recipe, learner.eval(), record


def export(
    run: Path,
    root: Path = ENTRIES,
    version: str = "1",
    replace: bool = False,
    identity: str | None = None,
) -> tuple[Card, Difference]:
    """Write the entry of a run into `root`/<id> and check its graphs against PyTorch.

    `identity`: in place of the recipe's id, so that runs of one recipe may stand side by side.
    Nothing is written when they disagree. Raises `RecipeError`, `ParityError`, and `ZooError` for
    an id that cannot be one, or an entry that is there already: the accuracies on its card would
    go with it.
    """
    recipe, learner, record = load_run(run)
    entry = recipe.id if identity is None else identity
    check_place(entry, root, replace)
    spec = recipe.data.input
    shape = InputShape(spec.channels, spec.height, spec.width)
    weights = save({k: v.contiguous() for k, v in learner.state_dict().items()})
    adaptation = recipe.entry.adaptation
    rates = adaptation.rates if adaptation else ()
    check_flags(learner, shape, rates)
    graphs = to_onnx(learner, shape)
    difference = compare(learner, shape, graphs, rates=rates)
    answer = example_answer(learner, shape)

    files = {WEIGHTS: weights, **graphs}
    family = registry.family(recipe.learner)
    card = Card(
        id=entry,
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
        attention=attention_of(learner, answer),
        uncertainty=answer.uncertainty is not None,
        adaptation=adaptation,
        transductive=learner.transductive,
        order_dependent=learner.order_dependent,
        training=Training(
            dataset=recipe.data.dataset,
            split=recipe.data.split,
            classes=recipe.data.classes,
            classes_sha256=record["seen"],
            recipe=name_of(recipe),
            steps=int(record["step"]),
            run_steps=int(record["run_steps"]),
            seed=recipe.seed,
            minutes=round(record["seconds"] / 60, 1),
            hardware=record["hardware"],
        ),
        license="MIT",
        files={name: describe(data) for name, data in files.items()},
    )
    write_entry(card, files, root, replace)
    report = {"card": entry, **asdict(difference)}
    checkpoint.write_atomically(run / "parity.json", json.dumps(report, indent=2).encode())
    return card, difference


def check_place(entry: str, root: Path, replace: bool) -> None:
    """Raises `ZooError` unless an entry of this id may be put into `root`: `replace` an entry that
    is there, and nothing else."""
    if not re.fullmatch(ENTRY_ID, entry):
        raise ZooError(
            f"{entry!r} cannot be an id: up to 64 small letters, digits, dots, dashes and "
            "underscores, a letter or digit first"
        )
    folder = root / entry
    if folder.exists() and not (folder / CARD_NAME).exists():
        raise ZooError(f"{folder} is there already, and is no entry; take another --id or --zoo")
    if folder.exists() and not replace:
        raise ZooError(
            f"{folder} is there already; --id gives this one another id, --zoo names another "
            "folder, and --replace replaces it and the accuracies on its card"
        )


def write_entry(card: Card, files: dict[str, bytes], root: Path, replace: bool = False) -> None:
    """Put an entry into `root`. Raises as `check_place`."""
    check_place(card.id, root, replace)
    root.mkdir(parents=True, exist_ok=True)
    # Drafted under another root, so that a reader finds the old entry or the new one.
    with tempfile.TemporaryDirectory(dir=root, prefix=".export-") as drafts:
        draft, entry = Path(drafts) / card.id, root / card.id
        draft.mkdir()
        for name, data in files.items():
            checkpoint.write_atomically(draft / name, data)
        write_card(card, Path(drafts))
        if entry.exists():
            entry.replace(Path(drafts) / "replaced")
        draft.replace(entry)


def name_of(recipe: Recipe) -> str:
    """Where a recipe stands in this repository; the id alone of one that does not, or differs."""
    path = RECIPES / f"{recipe.id}.yaml"
    if path.exists() and load_recipe(path) == recipe:
        return f"training/recipes/{path.name}"
    return recipe.id


@torch.no_grad()
def example_answer(learner: Learner, shape: InputShape) -> Prediction:
    """A prediction, to see what a learner returns."""
    support, query = example_inputs(learner, shape, Sizes(way=2))
    return learner.predict(learner.adapt(support, *hyperparameters(learner)), query)


def attention_of(learner: Learner, prediction: Prediction) -> AttentionSpec:
    """Which attention a learner returns, read off one answer."""

    def size(tensor: torch.Tensor | None) -> tuple[int, int] | None:
        return None if tensor is None else (tensor.shape[-2], tensor.shape[-1])

    return AttentionSpec(
        layers=learner.attention_layers,
        task=prediction.task_attention is not None,
        query=size(prediction.query_attention),
        support=size(prediction.support_attention),
    )
