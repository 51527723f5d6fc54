"""Episodes as arrays, and several of them as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One few-shot problem, decoded.

    support   uint8 `[N, C, H, W]`
    labels    int64 `[N]`, 0..way-1
    query     uint8 `[Q, C, H, W]`
    inner_lr  one learning rate per adaptation step; None for learners without them
    attention whether attention is wanted
    """

    model: str
    support: NDArray[np.uint8]
    labels: NDArray[np.int64]
    way: int
    query: NDArray[np.uint8]
    inner_lr: tuple[float, ...] | None = None
    attention: bool = False

    @property
    def images(self) -> int:
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

    logits     float32 `[Q, way]`
    seconds    stage ("queue", "encode", "adapt", "predict") -> seconds
    """

    logits: Floats
    attention: Attention
    seconds: dict[str, float]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """`[Q, way]`, each row summing to 1. Softmax in float64, so that no bit is lost on top."""
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Batch:
    """B episodes of one model, padded to the same N, Q and way (shapes in DESIGN.md).

    labels `[B, N]` int64, mask `[B, N]` bool, class_mask `[B, way]` bool, and for each image of
    the flat encoder input the place it belongs to.
    """

    episodes: tuple[Episode, ...]
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    class_mask: NDArray[np.bool_]
    inner_lr: Floats | None

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Batch:
        """Pad episodes that share a model and its hyperparameters. Raises `ValueError`."""
        if not episodes or len({(e.model, e.inner_lr) for e in episodes}) != 1:
            raise ValueError("a batch holds episodes of one model and one set of hyperparameters")
        size = len(episodes)
        n = max(len(e.support) for e in episodes)
        way = max(e.way for e in episodes)
        labels = np.zeros((size, n), np.int64)
        mask = np.zeros((size, n), np.bool_)
        class_mask = np.zeros((size, way), np.bool_)
        for row, episode in enumerate(episodes):
            count = len(episode.support)
            if episode.labels.shape != (count,) or not count or not len(episode.query):
                raise ValueError("support, labels and query of an episode disagree or are empty")
            if episode.labels.min() < 0 or episode.labels.max() >= episode.way:
                raise ValueError(f"labels must lie in 0..{episode.way - 1}")
            labels[row, :count] = episode.labels
            mask[row, :count] = True
            class_mask[row, : episode.way] = True
        rates = episodes[0].inner_lr
        inner_lr = None if rates is None else np.asarray(rates, np.float32)
        return cls(tuple(episodes), labels, mask, class_mask, inner_lr)

    def images(self) -> NDArray[np.uint8]:
        """Every image of every episode, flat: `[M, C, H, W]`, support then query, per episode."""
        return np.concatenate([part for e in self.episodes for part in (e.support, e.query)])

    def arrange(self, features: Floats) -> tuple[Floats, Floats]:
        """Flat features `[M, ...]` in the order of `images` -> support `[B, N, ...]`, query
        `[B, Q, ...]`, padded with zeros."""
        size, n = self.mask.shape
        q = max(len(e.query) for e in self.episodes)
        support = np.zeros((size, n, *features.shape[1:]), np.float32)
        query = np.zeros((size, q, *features.shape[1:]), np.float32)
        start = 0
        for row, episode in enumerate(self.episodes):
            middle = start + len(episode.support)
            end = middle + len(episode.query)
            support[row, : len(episode.support)] = features[start:middle]
            query[row, : len(episode.query)] = features[middle:end]
            start = end
        return support, query
