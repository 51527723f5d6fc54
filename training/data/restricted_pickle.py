"""Reading other people's pickles without running their code.

A pickle is a program. This reader resolves a short list of harmless names and refuses all others.
It rebuilds numpy arrays itself from plain numeric bytes, so that neither a callable of the author's
choice nor a crafted dtype reaches numpy's own loaders.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.data.store import DataError

NUMERIC = frozenset("?bhilqBHILQefdSU")


def load(path: Path) -> Any:
    """The content of a pickle file: containers, strings, numbers and numeric arrays.

    Raises `DataError` when the pickle is damaged or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def loads(data: bytes, where: str) -> Any:
    """As `load`, from bytes that came from `where`."""
    return _read(io.BytesIO(data), where)


def _read(file: BinaryIO, where: str) -> Any:
    try:
        return _Unpickler(file).load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except MemoryError:
        raise DataError(f"{where}: does not fit into memory") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{where}: not a readable pickle ({' '.join(str(error).split())})"
        ) from None


class _Name:
    """What a pickle gets for an allowed name: it can be called, and not be changed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise DataError("tries to change what it calls, which is refused")


class _Dtype:
    """Stands in for `numpy.dtype` while loading."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str):
            raise DataError("an array has a structured dtype, which is not read")
        self.dtype = np.dtype(code)
        self._check()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")
        if state[2] is not None or state[3] is not None or state[4] is not None:
            raise DataError("an array has a structured dtype, which is not read")
        self._check()

    def _check(self) -> None:
        if self.dtype.char not in NUMERIC or self.dtype.itemsize == 0:
            raise DataError(f"an array of dtype {self.dtype} is not read")


class _Array(NDArray[Any]):
    """An array that accepts only a state of plain numeric bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, stand_in, fortran, raw = state[-5:]
        dtype = _dtype(stand_in)
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        clean: Any = (1, _values(raw, dtype, shape).shape, dtype, bool(fortran), bytes(raw))
        super().__setstate__(clean)


def _dtype(stand_in: Any) -> np.dtype[Any]:
    if not isinstance(stand_in, _Dtype):
        raise DataError("an array without a dtype")
    return stand_in.dtype


def _values(raw: Any, dtype: np.dtype[Any], shape: Any) -> NDArray[Any]:
    """Raises when the bytes are not exactly the array."""
    if not isinstance(raw, bytes | bytearray):
        raise DataError("an array of Python objects is not read")
    shape = tuple(int(size) for size in shape)
    if any(size < 0 for size in shape):
        raise DataError("an array has a negative size")
    return np.frombuffer(bytes(raw), dtype).reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array((0,), np.uint8)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    values = _values(raw, _dtype(dtype), shape)
    return values.reshape(-1).reshape(shape, order="F") if order == "F" else values


def _scalar(dtype: Any, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return _values(raw, _dtype(dtype), (1,))[0]


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """How Python 3 writes bytes into the pickles of Python 2."""
    if codec not in ("latin1", "latin-1") or not isinstance(text, str):
        raise DataError(f"asks for the codec {codec!r}, which is not read")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes empty bytes into the pickles of Python 2."""
    return b""


def _ndarray(*_: Any) -> None:
    raise DataError("builds an array by hand, which is refused")


def _allowed() -> dict[tuple[str, str], _Name]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _ndarray,  # named as an argument of `_reconstruct`, never called
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): collections.defaultdict,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    for builtins in ("builtins", "__builtin__"):
        names[builtins, "bytes"] = _no_bytes
        for kind in (list, dict, set, frozenset, int, float, str):
            names[builtins, kind.__name__] = kind
    return {name: _Name(function) for name, function in names.items()}


class _Unpickler(pickle.Unpickler):
    allowed = _allowed()

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise DataError(f"asks for {module}.{name}, which is refused") from None
