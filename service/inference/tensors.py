"""Tensors of the protocol: what a model declares, and numpy arrays checked against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.problems import InvalidTensor

Array = NDArray[np.generic]
Arrays = dict[str, Array]

#: The protocol's names of those types that the zoo's graphs use; all are little-endian.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Declared:
    """One input or output. Sizes that vary are named; equal names must have equal sizes."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    optional: bool = False

    @property
    def open_shape(self) -> list[int]:
        """As the protocol writes it: -1 where the size varies."""
        return [-1 if isinstance(size, str) else size for size in self.shape]


def match(
    inputs: Sequence[Declared], given: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, int]:
    """Check names, types and shapes before any value is read: `given` is datatype and shape by
    name. Returns the size behind each name. Raises `InvalidTensor`.

    ONNX Runtime does not enforce equal named sizes: it broadcasts silently.
    """
    declared = {spec.name: spec for spec in inputs}
    if unknown := sorted(given.keys() - declared.keys()):
        raise InvalidTensor(f"no input {_shown(unknown[0])}; known: {', '.join(declared)}")
    sizes: dict[str, int] = {}
    for name, spec in declared.items():
        if name not in given:
            if spec.optional:
                continue
            raise InvalidTensor(f"the input {name} is missing")
        datatype, shape = given[name]
        if datatype != spec.datatype:
            raise InvalidTensor(f"{name} is {_shown(datatype)}; it must be {spec.datatype}")
        fits = len(shape) == len(spec.shape) and all(
            size == (sizes.setdefault(want, size) if isinstance(want, str) else want) and size > 0
            for size, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            named = {key: value for key, value in sizes.items() if key in spec.shape}
            raise InvalidTensor(
                f"{name} has the shape {list(shape)[:8]}; wanted is {list(spec.shape)}"
                + (f" with {named}" if named else "")
            )
    return sizes


def count(shape: Sequence[int]) -> int:
    """How many values a tensor of this shape holds."""
    return math.prod(shape)


def _shown(text: str) -> str:
    return repr(text[:64]) if text.isprintable() else "with unprintable characters"
