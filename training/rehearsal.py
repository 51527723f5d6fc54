"""Whether a recipe's parts go together, found out before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from models_zoo.episode import Support
from training.data.sampler import Episode
from training.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from training.trainer import Run


@contextmanager
def fitting(recipe: Recipe) -> Iterator[None]:
    """Learner, objective and episodes that do not go together become a `RecipeError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise RecipeError(
            f"{recipe.id}: out of memory; lower episodes.tasks, or use --device cpu"
        ) from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(
            f"{recipe.id}: learner {recipe.learner!r} does not fit this recipe: {reason[0]}"
        ) from error


def rehearse(run: Run) -> None:
    """Blank tasks of the most classes through the objective, one if it may; changes nothing."""
    recipe, spec = run.recipe, run.recipe.data.input
    way, tasks = max(*recipe.episodes.ways, recipe.validation.way), run.objective.tasks or 1
    blank = torch.zeros(tasks, way, spec.channels, spec.height, spec.width, device=run.device)
    labels = torch.arange(way, device=run.device).repeat(tasks, 1)
    support = Support.of(blank, labels, way=recipe.episodes.slots or way)
    run.learner.eval()
    with torch.no_grad():
        run.objective(run.learner, Episode(support, blank, labels, labels * 0, labels * 0))
