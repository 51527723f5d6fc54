"""What of a run outlives its process: everything that decides how it goes on, to the bit."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml
from pydantic import ValidationError

from training import checkpoint
from training.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from training.trainer import Run

BEST, LAST = "best.safetensors", "last.pt"


@dataclass(frozen=True)
class Best:
    """The validation whose weights are kept: accuracy, half its 95% interval, and step."""

    accuracy: float = 0.0
    ci95: float = 0.0
    step: int = 0
    extra: bool = False


def save(run: Run) -> None:
    """Write the history, then the checkpoint that knows of it."""
    run.history.save(run.out)
    checkpoint.save(
        run.out / LAST,
        {
            "step": run.step,
            "seconds": run.seconds,
            "length": run.length,
            "hardware": hardware(run.device),
            "seen": run.seen,
            "best": asdict(run.best),
            "learner": run.learner.state_dict(),
            "average": run.average.model.state_dict() if run.average else None,
            "objective": run.objective.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "episodes": run.sampler.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if run.device.type == "cuda" else [],
        },
    )


def resume(run: Run) -> None:
    """Continue from `last.pt`. Raises `RecipeError` if it belongs to another recipe, or to data of
    other classes."""
    try:  # read as a recipe, so that a run made before an option was there goes on
        text = (run.out / "recipe.yaml").read_text(encoding="utf-8")
        kept = Recipe.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError):
        kept = None
    if kept != run.recipe:
        what = f" ({differences(kept, run.recipe)})" if kept else " (see its recipe.yaml)"
        raise RecipeError(
            f"{run.out} holds a run of another recipe{what}; use another --out, or --fresh to "
            "delete that run"
        )
    state = checkpoint.load(run.out / LAST, run.device)
    if state.get("seen", run.seen) != run.seen:
        raise RecipeError(
            f"{run.out} was trained on other classes than the data have now; use --fresh, another "
            "--out or the data it was trained on"
        )
    run.step, run.seconds, run.best = state["step"], state["seconds"], Best(**state["best"])
    run.length = state.get("length", torch.full_like(run.length, torch.nan))
    run.history.load(run.out, run.step)
    run.learner.load_state_dict(state["learner"])
    if run.average and state.get("average"):
        run.average.model.load_state_dict(state["average"])
    run.objective.load_state_dict(state["objective"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.sampler.generator.set_state(state["episodes"].cpu())
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([kept.cpu() for kept in state["cuda"]])


def differences(there: Recipe, here: Recipe, most: int = 3) -> str:
    """The first settings in which two recipes differ."""
    one, other = settings(there.model_dump(mode="json")), settings(here.model_dump(mode="json"))
    told = [
        f"{key}: {one.get(key, 'none')} there, {other.get(key, 'none')} here"
        for key in {**other, **one}
        if one.get(key, "none") != other.get(key, "none")
    ]
    return "; ".join(told[:most] + ["…"] * (len(told) > most))


def settings(section: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Every value by its dotted key, as in `--set`."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        inner = settings(value, f"{before}{key}.") if isinstance(value, dict) else {}
        found |= inner or {before + key: value}
    return found


def hardware(device: torch.device) -> str:
    """What a run was trained on, for its card."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} CPU threads"
