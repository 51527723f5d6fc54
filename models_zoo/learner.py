"""The contract: `adapt(support) -> TaskState`, `predict(state, query) -> Prediction`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models_zoo.episode import Prediction, Support, TaskState


@dataclass(frozen=True)
class InputShape:
    """Channels, height and width of the images a learner reads."""

    channels: int
    height: int
    width: int


class Learner(nn.Module):
    """A few-shot learner: phi = adapt(D; theta), y = predict(x; phi)  ("Learn how to Learn").

    `encode` is the part that does not depend on the task, run once per image; `adapt` and
    `predict` take what it returns. A learner whose encoder is itself adapted (MAML) keeps the
    identity and sets `encodes = False`.
    """

    #: Whether `encode` does any work, and hence whether an encode graph is exported.
    encodes: ClassVar[bool] = True
    #: Whether an image is one vector `[M, D]` to `adapt` and `predict`, of any encoder.
    takes_vectors: ClassVar[bool] = False
    #: Whether the order of the support examples matters to the answer.
    order_dependent: ClassVar[bool] = False
    #: Whether a query's answer depends on the others asked with it. Such queries are never padded,
    #: nor joined with those of another request, and the card says so.
    transductive: ClassVar[bool] = False
    #: Number of attention layers in a Prediction (0 = the learner has none).
    attention_layers: int = 0
    #: Most classes the learner can tell apart; None = any number.
    max_way: int | None = None
    #: The encoder's name for the card, where the configuration names none.
    backbone_name: str = "conv4-64"

    def encode(self, images: Tensor) -> Tensor:
        """Images `[M, C, H, W]` in [0, 1] -> features `[M, ...]`."""
        return images

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Learn a batch of tasks from encoded support examples (`support.x` `[B, N, ...]`).

        Learners that adapt by gradient steps take one for each rate in `inner_lr` `[S]`, by default
        those of `default_inner_lr`; with none (S = 0) they answer with what they start from (a
        transductive one with what it makes of that by the queries). The others ignore it.
        """
        raise NotImplementedError

    def default_inner_lr(self) -> Tensor | None:
        """Learning rates of the inner steps `[S]`, or None for a learner without gradient steps."""
        return None

    def take_steps(self, steps: int, inner_lr: float) -> None:
        """Make these the gradient steps of `default_inner_lr`; others have none to make."""

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Classify encoded queries `[B, Q, ...]` with adapted tasks."""
        raise NotImplementedError

    def forward(
        self, support: Support, query: Tensor, inner_lr: Tensor | None = None
    ) -> Prediction:
        """One episode batch from images: encode, adapt, predict."""
        return self.solve(*self.encoded(support, query), inner_lr)[1]

    def encoded(self, support: Support, query: Tensor) -> tuple[Support, Tensor]:
        """Support set and queries encoded, for `classify` and `solve`."""
        if not self.encodes:
            return support, query
        encoded = self.encode_batch(support.x).to(support.x.dtype)
        return support.with_x(encoded), self.encode_batch(query).to(query.dtype)

    def classify(self, support: Support, query: Tensor) -> Prediction:
        """Adapt and predict from features."""
        return self.solve(support, query)[1]

    def solve(
        self, support: Support, query: Tensor, inner_lr: Tensor | None = None
    ) -> tuple[TaskState, Prediction]:
        """Adapt and predict from features: what was learned, and the answer.

        Outside autocast where there is an encoder: only that may run in low precision, for squared
        distances and the scores of a sharp softmax lose too much in bfloat16.
        """
        full = torch.autocast(query.device.type, enabled=False) if self.encodes else nullcontext()
        with full:
            state = self.adapt(support, inner_lr)
            return state, self.predict(state, query)

    def check_way(self, support: Support) -> None:
        """Raise `ValueError` where the tasks have more classes than the learner has outputs."""
        if self.max_way is None or torch.compiler.is_exporting():
            return
        if support.way > self.max_way:
            raise ValueError(f"{support.way} classes, at most {self.max_way}")

    def presented(self, support: Support) -> Tensor:
        """Logits `[B, N, way]` for each support image, given the labelled ones before it.

        Only of learners that see the support set as a sequence and answer on the way.
        """
        raise NotImplementedError(f"{type(self).__name__} does not answer on the way")

    def encode_batch(self, images: Tensor) -> Tensor:
        """`encode` for images with two leading axes: `[B, N, C, H, W]` -> `[B, N, ...]`."""
        features = self.encode(images.flatten(0, 1))
        return features.unflatten(0, images.shape[:2])
