"""Episodes as arrays, and several of them as one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: What a task learned: tensors by name, each `[B, ...]`.
State = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Episode:
    """One few-shot problem, decoded.

    support   uint8 `[M, C, H, W]`, the examples whose features are not in `known`, in order
    labels    int64 `[N]`, 0..way-1, of all examples
    query     uint8 `[Q, C, H, W]`; empty where `asked` is given
    inner_lr  one learning rate per adaptation step; None for learners without them
    attention whether attention is wanted
    known     features of examples by their position, `[...]` each; M + len(known) = N
    asked     float32 `[Q, ...]`, the features of queries that were encoded before
    state     what was learned from the support set before, `[orders, ...]` each; then M = 0
    remember  whether the answer shall carry what was learned, for a cache
    orders    presentation orders of the support set that the answer is the mean of; `state`
              holds as many, `[orders, ...]` each
    """

    model: str
    support: NDArray[np.uint8]
    labels: NDArray[np.int64]
    way: int
    query: NDArray[np.uint8]
    inner_lr: tuple[float, ...] | None = None
    attention: bool = False
    known: Mapping[int, Floats] = field(default_factory=dict)
    asked: Floats | None = None
    state: State | None = None
    remember: bool = False
    orders: int = 1

    @property
    def images(self) -> int:
        """Images that go through the encoder."""
        return len(self.support) + len(self.query)


@dataclass(frozen=True)
class Attention:
    """What a model looked at; each part is None where it has none.

    task     `[L, Q, N]`        weights over support examples, per layer
    query    `[L, Q, h, w]`     weights over the query's locations
    support  `[L, Q, N, h, w]`  weights over the support images' locations
    """

    task: Floats | None = None
    query: Floats | None = None
    support: Floats | None = None


@dataclass(frozen=True)
class Answer:
    """An episode's answer.

    logits       float32 `[Q, way]`
    seconds      stage ("queue", "encode", "adapt", "predict") -> seconds
    uncertainty  float32 `[Q]`, of the models that have it
    features     `[N, ...]` of the support examples, and the state, `[orders, ...]` each: where the
                 episode said `remember`
    """

    logits: Floats
    attention: Attention
    seconds: dict[str, float]
    uncertainty: Floats | None = None
    features: Floats | None = None
    state: State | None = None

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """`[Q, way]`, each row summing to 1. Softmax in float64, so that no bit is lost on top."""
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Encoded:
    """An episode whose images have become features.

    support  `[N, ...]`; None where the episode brings its state
    query    `[Q, ...]`
    """

    episode: Episode
    support: Floats | None
    query: Floats


@dataclass(frozen=True)
class Batch:
    """B encoded episodes of one model, padded to the same N and way (shapes in DESIGN.md).

    support `[B, N, ...]`, labels `[B, N]` int64, mask `[B, N]` bool, class_mask `[B, way]` bool.
    """

    support: Floats
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    class_mask: NDArray[np.bool_]
    inner_lr: Floats | None

    @classmethod
    def of(cls, tasks: Sequence[Encoded]) -> Batch:
        """Pad episodes that share a model and its hyperparameters. Raises `ValueError`."""
        if not tasks or len({(t.episode.model, t.episode.inner_lr) for t in tasks}) != 1:
            raise ValueError("a batch holds episodes of one model and one set of hyperparameters")
        n = max(len(task.episode.labels) for task in tasks)
        way = max(task.episode.way for task in tasks)
        labels = np.zeros((len(tasks), n), np.int64)
        mask = np.zeros((len(tasks), n), np.bool_)
        class_mask = np.zeros((len(tasks), way), np.bool_)
        for row, task in enumerate(tasks):
            episode, count = task.episode, len(task.episode.labels)
            labels[row, :count] = episode.labels
            mask[row, :count] = True
            class_mask[row, : episode.way] = True
        rates = tasks[0].episode.inner_lr
        inner_lr = None if rates is None else np.asarray(rates, np.float32)
        support = stack([task.support for task in tasks if task.support is not None])
        return cls(support, labels, mask, class_mask, inner_lr)


def check(episode: Episode) -> None:
    """Raises `ValueError` where an episode's parts do not fit together."""
    count = len(episode.labels)
    given = len(episode.support) + len(episode.known)
    if episode.asked is not None and len(episode.query):
        raise ValueError("queries come as images or as features, not as both")
    queries = len(episode.query) if episode.asked is None else len(episode.asked)
    if episode.labels.ndim != 1 or not count or not queries:
        raise ValueError("an episode without examples or queries")
    if given != (0 if episode.state is not None else count):
        raise ValueError(f"{count} labels but {given} examples")
    if episode.labels.min() < 0 or episode.labels.max() >= episode.way:
        raise ValueError(f"labels must lie in 0..{episode.way - 1}")


def stack(parts: Sequence[Floats]) -> Floats:
    """Arrays `[n_i, ...]` -> `[B, max n, ...]`, padded with zeros."""
    if len(parts) == 1:
        return parts[0][None]
    padded = np.zeros((len(parts), max(map(len, parts)), *parts[0].shape[1:]), np.float32)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    return padded
