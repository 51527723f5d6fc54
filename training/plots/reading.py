"""What the figures read of a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models_zoo import registry
from training.checkpoint import CheckpointError
from training.history import HISTORY, Series, read_history
from training.recipe import RecipeError, load_recipe


def series_of(run: Path, name: str, hint: str = "") -> Series:
    """The rows of `name` in a run's history. Raises `CheckpointError`, with a hint."""
    history = read_history(run)
    if name not in history:
        raise CheckpointError(f"{run / HISTORY}: no {name!r} in it" + (f"; {hint}" if hint else ""))
    return history[name]


def attention_of(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps `[T]`, task attention `[T, B]` and its inputs `[T, B, 4]`. Raises `CheckpointError`."""
    hint = "its recipe needs objective: {name: task_attention}"
    steps, weights = series_of(run, "attention", hint)
    return steps, weights, series_of(run, "attention_inputs", hint)[1]


def shapes_of(run: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the weights that a run trains; None where its recipe is gone. Raises
    `CheckpointError`."""
    path = run / "recipe.yaml"
    if not path.exists():
        return None
    try:
        recipe = load_recipe(str(path))
        learner = registry.build(recipe.learner, recipe.config)
    except (RecipeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return {
        name: tuple(value.shape)
        for name, value in learner.named_parameters()
        if value.requires_grad
    }


def names_of(runs: list[Path]) -> list[str]:
    """The folders' names; whole paths where two are called alike."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
