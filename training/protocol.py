"""How an entry is measured: which tasks it is asked, and how it answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models_zoo.cards import Card, Training, ZooError
from models_zoo.learner import Learner
from models_zoo.weights import load_learner
from training.data.load import load_test
from training.data.sampler import EpisodeSampler
from training.data.store import PackedStore
from training.evaluate import Score, evaluate
from training.parity import OnnxLearner
from training.recipe import RecipeError

#: Images of one evaluation batch; bounds memory.
BATCH_IMAGES = 2000


@dataclass(frozen=True)
class Protocol:
    """The same tasks for every entry whose test classes are the same; see `evaluate`.

    rotations   classes: turned classes are classes of their own
    classes     test, or val to choose by
    runtime     PyTorch or the exported graphs; these answer on the CPU, and queries only
    """

    way: int
    shot: int
    queries: int
    presentation: int | None
    tasks: int
    seed: int
    rotations: Literal["none", "classes"]
    runtime: Literal["torch", "onnx"]
    apart: bool
    classes: Literal["test", "val"]

    def __post_init__(self) -> None:
        if self.presentation is not None and self.runtime == "onnx":
            raise RecipeError("the graphs answer queries only: use --runtime torch")
        if self.presentation is not None and self.presentation > self.shot:
            raise RecipeError(
                f"{self.shot} images of each class have no presentation {self.presentation}"
            )

    @property
    def asked(self) -> str:
        """What is asked in a task, as the command's option."""
        if self.presentation is None:
            return f"--queries {self.queries}"
        return f"--presentation {self.presentation}"

    def learner(self, card: Card, root: Path, device: str) -> Learner:
        """The entry, ready to be asked. Raises `ZooError` where it cannot be asked this."""
        if self.way > card.limits.max_way:
            raise ZooError(f"{card.id} takes at most {card.limits.max_way} classes, not {self.way}")
        if self.classes == "val" and trained(card).classes == "train+val":
            raise ZooError(f"{card.id} was trained on the validation classes too")
        learner: Learner = (
            load_learner(card, root).to(device)
            if self.runtime == "torch"
            else OnnxLearner.of(card, root)
        )
        if self.presentation is not None and type(learner).presented is Learner.presented:
            raise ZooError(f"{card.id} does not answer on the way through its support set")
        return learner

    def store(self, card: Card, data: Path | None, download: bool) -> PackedStore:
        """The classes that the entry is asked about. Raises `ZooError`, `DataError`."""
        training = trained(card)
        return load_test(
            training.dataset,
            training.split,
            card.input,
            data,
            download,
            self.classes,
            training.classes_sha256,
        )

    def measure(
        self,
        learner: Learner,
        store: PackedStore,
        rates: Sequence[float] | None,
        device: str,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Score:
        """The accuracy of a learner that adapts at `rates`."""
        return evaluate(
            learner,
            # On the CPU, so that every device is asked the same tasks.
            EpisodeSampler(store, rotations=self.rotations, seed=self.seed),
            tasks=self.tasks,
            way=self.way,
            shot=self.shot,
            queries=self.queries,
            batch=max(1, BATCH_IMAGES // (self.way * (self.shot + self.queries))),
            inner_lr=rates,
            presentation=self.presentation,
            apart=self.apart,
            device=device,
            on_batch=on_batch,
        )


def trained(card: Card) -> Training:
    """How the entry was trained. Raises `ZooError` for one that was not."""
    if card.training is None:
        raise ZooError(
            f"{card.id} was not trained here, so that no classes are known to be new to it"
        )
    return card.training
