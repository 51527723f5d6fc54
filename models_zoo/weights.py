"""A trained entry as a learner in PyTorch: checked bytes in, no unpickling."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load

from models_zoo import registry
from models_zoo.cards import ENTRIES, Card, ZooError, read_file
from models_zoo.learner import Learner

WEIGHTS = "model.safetensors"


def load_learner(card: Card, root: Path = ENTRIES) -> Learner:
    """The entry's learner with its weights, in evaluation mode. Where it adapts by gradient steps,
    it takes those of its card unless a caller names others. Raises `ZooError`."""
    data = read_file(card, WEIGHTS, root)
    try:
        learner = registry.build(card.learner, card.config)
        learner.load_state_dict(load(data))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:300]
        raise ZooError(
            f"{card.id}: {WEIGHTS} does not fit learner {card.learner!r}: {message}"
        ) from None
    if card.adaptation is not None:
        learner.take_steps(card.adaptation.steps, card.adaptation.inner_lr)
    return learner.eval()
