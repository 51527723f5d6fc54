"""Bodies of the protocol to arrays and back: JSON, and the binary tensor extension.

A binary body is the JSON part, whose length the header `Inference-Header-Content-Length` tells,
then the bytes of those tensors that give a `binary_data_size`, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.inference.tensors import DTYPES, Array, Arrays, Declared, count, match
from service.problems import AnswerTooLarge, InvalidTensor, MalformedInference

HEADER = "Inference-Header-Content-Length"
#: Numbers as JSON take many times their size in memory while they are read.
MAX_JSON = 4 << 20
#: Lists and objects cost far more than numbers, and whoever reads JSON stops the whole process.
_MAX_NESTED = 1 << 17
_MAX_RANK = 8


class Parameters(BaseModel):
    """The parameters that mean something here; others are ignored, as the protocol allows."""

    model_config = ConfigDict(extra="ignore", strict=True)

    binary_data: bool | None = None
    binary_data_size: int | None = Field(None, ge=0)
    binary_data_output: bool = False
    classification: int | None = None


class RequestInput(BaseModel):
    """A tensor, its values as JSON (flat or nested, row-major) or as bytes after the JSON part."""

    name: str
    shape: list[int] = Field(max_length=_MAX_RANK)
    datatype: str
    parameters: Parameters = Parameters()
    data: list[object] | None = None


class RequestOutput(BaseModel):
    """An output that is wanted."""

    name: str
    parameters: Parameters = Parameters()


class InferenceRequest(BaseModel):
    """One inference. Without `outputs` the model answers its usual ones."""

    id: str | None = Field(None, max_length=256)
    parameters: Parameters = Parameters()
    inputs: list[RequestInput] = Field(max_length=64)
    outputs: list[RequestOutput] | None = Field(None, max_length=64)


class ResponseOutput(BaseModel):
    """A tensor of the answer: `data` is flat and row-major."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int] | None = None
    data: list[float | int | bool] | None = None


class InferenceResponse(BaseModel):
    """The outputs of one inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


@dataclass(frozen=True)
class Wanted:
    """A request whose names, types, shapes and sizes are right; values are read by `arrays`."""

    id: str | None
    sizes: dict[str, int]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    tensors: list[tuple[RequestInput, bytes | None]] = field(repr=False)

    def arrays(self) -> Arrays:
        """The values. Raises `InvalidTensor`."""
        return {tensor.name: _values(tensor, raw) for tensor, raw in self.tensors}


def parse(body: bytes, header_length: str | None) -> tuple[InferenceRequest, bytes]:
    """The JSON part, and the bytes after it. Raises `MalformedInference`."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal()):
            raise MalformedInference(f"{HEADER} is not a number")
        length = int(header_length[:20])
        if not 0 < length <= len(body):
            raise MalformedInference(f"{HEADER} lies outside the body")
    if length > MAX_JSON:
        raise MalformedInference(f"the JSON part exceeds {MAX_JSON} bytes; send binary tensors")
    told = body[:length]
    if told.count(b"[") + told.count(b"{") > _MAX_NESTED:
        raise MalformedInference(
            f"the JSON part holds more than {_MAX_NESTED} lists; send flat data"
        )
    try:
        return InferenceRequest.model_validate_json(told), body[length:]
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in fault["loc"])
        shown = where if where.isprintable() else "a member"
        raise MalformedInference(f"{shown}: {fault['msg']}") from None


def check(
    request: InferenceRequest,
    raw: bytes,
    inputs: tuple[Declared, ...],
    outputs: tuple[Declared, ...],
    usual: tuple[str, ...],
    max_values: int,
) -> Wanted:
    """Check a request against a model. Raises `InvalidTensor` or `MalformedInference`."""
    names = [tensor.name for tensor in request.inputs]
    if len(set(names)) != len(names):
        raise InvalidTensor("an input is given twice")
    for tensor in request.inputs:
        if len(tensor.shape) > _MAX_RANK or any(not 0 <= size < 1 << 31 for size in tensor.shape):
            raise InvalidTensor("a shape holds up to 8 sizes, none of them negative")
    sizes = match(inputs, {t.name: (t.datatype, tuple(t.shape)) for t in request.inputs})
    if sum(count(tensor.shape) for tensor in request.inputs) > max_values:
        raise InvalidTensor(f"the inputs hold more than {max_values} values")
    tensors, start = [], 0
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise InvalidTensor(f"{tensor.name} needs data, or binary_data_size and its bytes")
        if size is not None and size != count(tensor.shape) * DTYPES[tensor.datatype].itemsize:
            raise InvalidTensor(f"{tensor.name}: binary_data_size and shape disagree")
        end = start + (size or 0)
        if end > len(raw):
            raise MalformedInference("the body ends before its last tensor")
        tensors.append((tensor, None if size is None else raw[start:end]))
        start = end
    if start != len(raw):
        raise MalformedInference("bytes are left over after the last tensor")
    wanted = [output.name for output in request.outputs or ()]
    known = [spec.name for spec in outputs]
    if missing := [name for name in wanted if name not in known]:
        shown = repr(missing[0][:64]) if missing[0].isprintable() else "of this name"
        raise InvalidTensor(f"no output {shown}; known: {', '.join(known)}")
    if any(output.parameters.classification is not None for output in request.outputs or ()):
        raise InvalidTensor("the classification extension is not offered")
    every = request.parameters.binary_data_output
    chosen = tuple(dict.fromkeys(wanted)) or usual
    asked = {output.name: output.parameters.binary_data for output in request.outputs or ()}
    binary = frozenset(
        name for name in chosen if (every if asked.get(name) is None else asked[name])
    )
    return Wanted(request.id, sizes, chosen, binary, tensors)


def check_answer(
    outputs: tuple[Declared, ...], names: tuple[str, ...], sizes: dict[str, int], max_values: int
) -> None:
    """Raise `AnswerTooLarge` before an answer is computed that would be."""
    shapes = {spec.name: spec.shape for spec in outputs}
    total = sum(
        count([sizes.get(size, 1) if isinstance(size, str) else size for size in shapes[name]])
        for name in names
    )
    if total > max_values:
        raise AnswerTooLarge(
            f"the outputs would hold {total} values; at most {max_values} are sent"
        )


def encode(model: str, version: str, wanted: Wanted, arrays: Arrays) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary tensors follow.

    Raises `InvalidTensor` where a value cannot be written as JSON.
    """
    outputs, tail = [], []
    for name in wanted.outputs:
        array = np.ascontiguousarray(arrays[name])
        kind = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
        output = ResponseOutput(name=name, shape=list(array.shape), datatype=kind)
        if name in wanted.binary:
            raw = array.astype(DTYPES[kind], copy=False).tobytes()
            output.parameters = {"binary_data_size": len(raw)}
            tail.append(raw)
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidTensor(f"{name} holds numbers that JSON cannot; ask for binary_data")
        else:
            output.data = array.ravel().tolist()
        outputs.append(output)
    response = InferenceResponse(
        model_name=model, model_version=version, id=wanted.id, outputs=outputs
    )
    head = response.model_dump_json(exclude_none=True).encode()
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def _values(tensor: RequestInput, raw: bytes | None) -> Array:
    dtype, shape = DTYPES[tensor.datatype], tuple(tensor.shape)
    if raw is not None:
        if tensor.datatype == "BOOL":  # any other byte would be a bool that is neither
            return np.asarray(np.frombuffer(raw, np.uint8) != 0).reshape(shape)
        return np.frombuffer(raw, dtype).reshape(shape)
    flat = _flat(tensor.data or [], count(shape), tensor.name)
    kinds = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}[dtype.kind]
    if any(type(value) not in kinds for value in flat):
        raise InvalidTensor(f"{tensor.name}: a value is not of the type {tensor.datatype}")
    try:
        with np.errstate(over="ignore"):
            array: Array = np.array(flat, dtype).reshape(shape)
    except (OverflowError, ValueError):
        array = np.array(np.nan)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidTensor(f"{tensor.name}: a value is outside {tensor.datatype}")
    return array


def _flat(data: list[object], size: int, name: str) -> list[object]:
    """Row-major values of flat or nested lists, `size` of them. Raises `InvalidTensor`."""
    for _ in range(_MAX_RANK + 1):
        if not any(isinstance(part, list) for part in data):
            break
        if len(data) > size or not all(isinstance(part, list) for part in data):
            raise InvalidTensor(f"{name}: the data are nested unevenly")
        data = [value for part in data for value in part]  # type: ignore[attr-defined]
    if len(data) != size:
        raise InvalidTensor(f"{name}: {len(data)} values; the shape holds {size}")
    return data
