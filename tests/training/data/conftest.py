"""Small images, and stores that hold names without pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.store import PackedStore


@pytest.fixture
def pixels() -> Callable[..., NDArray[np.uint8]]:
    """Random pixels `[height, width, 3]`, or `[height, width]` for one channel."""
    random = np.random.default_rng(0)

    def draw(height: int = 32, width: int = 32, channels: int = 3) -> NDArray[np.uint8]:
        shape = (height, width) if channels == 1 else (height, width, channels)
        return random.integers(0, 256, shape, dtype=np.uint8)

    return draw


@pytest.fixture
def png() -> Callable[[NDArray[np.uint8]], bytes]:
    """Pixels -> the bytes of a PNG file."""

    def encode(values: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(values).save(file, "png")
        return file.getvalue()

    return encode


@pytest.fixture
def names_only() -> Callable[[Iterable[tuple[str, str]]], PackedStore]:
    """(class, group) pairs -> a store with one tiny image per class."""

    def build(classes: Iterable[tuple[str, str]]) -> PackedStore:
        image = np.zeros((1, 1, 1, 1), dtype=np.uint8)
        return PackedStore.pack((name, group, image) for name, group in classes)

    return build
