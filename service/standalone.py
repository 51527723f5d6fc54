"""An adapted task as one ONNX file: images in, probabilities out, ONNX Runtime and nothing else.

Imported when the first such file is made: nothing else that is served needs the `onnx` package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from models_zoo.cards import Card, InputSpec, ZooError
from models_zoo.preprocess import LONGEST
from service.engine.episode import State

IMAGES, PROBABILITIES = "images", "probabilities"
#: The operators that are added here have their present form since.
_OLDEST_OPSET = 13
_DEPTH = (
    "grey of more than 8 bits: value * 255 / top, rounded, where top is the first of 255, 4095 and "
    "65535 (1 of floats) that the image's largest value does not exceed, else that value; what is "
    "below 0 becomes 0"
)


@dataclass(frozen=True)
class Facts:
    """What the file says of itself. `support` is "set@revision", None where nothing was stored;
    `rates` are the learning rates of the adaptation's steps."""

    card: Card
    labels: Sequence[str]
    support: str | None = None
    rates: Sequence[float] | None = None


def standalone(graphs: Mapping[str, bytes], state: State, facts: Facts) -> bytes:
    """The file: `images` uint8 `[N, C, H, W]` -> `probabilities` float32 `[N, way]`.

    `graphs` are the entry's `predict.onnx` and, where it has one, `encode.onnx`; `state` is one
    task's, `[1, ...]` each, and becomes part of the file. A class's column is its place among the
    labels. Raises `ZooError` where the graphs cannot be joined.
    """
    card = facts.card
    parts = [_part(card, name, graphs[name]) for name in sorted(graphs)]
    *encoders, predict = parts
    nodes = _scaling()
    held: list[TensorProto] = []
    features = "scaled"
    for encode in encoders:
        graph = _prefixed(encode.graph, "encode/", {"images": features})
        nodes += [*graph.node, *_as_float(graph, "encode/features", "features")]
        held += graph.initializer
        features = "features"
    head = _prefixed(predict.graph, "predict/", {})
    nodes.append(helper.make_node("Unsqueeze", [features, "first"], ["predict/query"]))
    nodes += [*head.node, *_as_float(head, "predict/logits", "logits"), *_softmax()]
    held += head.initializer
    held += _numbers(len(facts.labels))
    for value in predict.graph.input:
        if value.name != "query":
            if value.name not in state:
                raise ZooError(f"{card.id}: predict.onnx takes {value.name}, unknown to adapt.onnx")
            held.append(numpy_helper.from_array(state[value.name], f"predict/{value.name}"))
    nodes, held = _needed(nodes, held)
    spec = card.input
    graph = helper.make_graph(
        nodes,
        "classifier",
        [_tensor(IMAGES, TensorProto.UINT8, ["N", spec.channels, spec.height, spec.width])],
        [_tensor(PROBABILITIES, TensorProto.FLOAT, ["N", len(facts.labels)])],
        held,
    )
    model = helper.make_model(
        graph,
        producer_name="fewshot",
        opset_imports=_opsets(card, parts),
        ir_version=max(part.ir_version for part in parts),
    )
    helper.set_model_props(model, _metadata(facts))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ZooError(f"{card.id}: its graphs cannot be joined: {reason}") from None
    return bytes(model.SerializeToString(deterministic=True))


def describe_input(spec: InputSpec) -> dict[str, object]:
    """How an image becomes `images`, in words that say all that `models_zoo.preprocess` does."""
    order = ["orientation", "depth", "transparency", "color", "size"]
    found: dict[str, object] = {
        "order": [*order, "inversion"] if spec.invert else order,
        "orientation": "upright, by EXIF",
        "depth": _DEPTH,
        "transparency": "on white",
        "color": "grey, 0.299 R + 0.587 G + 0.114 B" if spec.channels == 1 else "RGB",
        "size": _size(spec),
        "resampling": f"{spec.resample}, over all pixels that become one, as Pillow's resize does",
        "layout": "NCHW",
        "dtype": "uint8",
        **spec.model_dump(mode="json"),
    }
    if spec.fit == "pad":
        found["padding"] = "white, the image in the middle"
    if spec.invert:
        found["inversion"] = "255 - value, of the padding too"
    return found


def _size(spec: InputSpec) -> str:
    size = f"{spec.width} x {spec.height} (width x height)"
    if spec.fit == "stretch":
        return f"resize to {size}, whatever the aspect"
    if spec.fit == "pad":
        return (
            f"resize, the aspect kept, to fit into {size}, and lay it in the middle of a white "
            "image of that size; the other side and the place rounded, halves to even"
        )
    if spec.resize is None:
        return (
            f"of the middle, the largest part that has the aspect of {size}, resized to that; its "
            "edges may lie within pixels"
        )
    return (
        f"resize, the aspect kept, to a shorter side of {spec.resize} (the other rounded down), "
        f"and cut {size} out of the middle, the place rounded, halves to even; of an image longer "
        f"than {LONGEST} times its breadth, the middle of that length first"
    )


def _metadata(facts: Facts) -> dict[str, str]:
    """Texts by key; lists and objects as JSON."""
    card = facts.card
    found = {
        "labels": json.dumps(list(facts.labels), ensure_ascii=False),
        "model": card.ref,
        "preprocessing": json.dumps(describe_input(card.input)),
        "license": card.license,
    }
    if facts.support is not None:
        found["support_set"] = facts.support
    if facts.rates is not None:
        found["inner_lr"] = json.dumps(list(facts.rates))
    return found


def _part(card: Card, name: str, data: bytes) -> ModelProto:
    """One of the entry's graphs without its notes. Raises `ZooError`."""
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's own, which is no part of the onnx package
        raise ZooError(f"{card.id}: {name} is no ONNX graph") from None
    if model.functions:
        raise ZooError(f"{card.id}: {name} holds functions of its own")
    for graph in _graphs(model.graph):
        if graph.sparse_initializer or any(t.external_data for t in graph.initializer):
            raise ZooError(f"{card.id}: {name} does not hold all its own weights")
        _clean(graph)
    return model


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _clean(graph: GraphProto) -> None:
    """Take out what an exporter noted about its sources, and the sizes noted inside: their names
    ("N", "Q") would mean something else in the file."""
    for item in [*graph.node, *graph.input, *graph.output, *graph.initializer, graph]:
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]


def _prefixed(graph: GraphProto, prefix: str, given: Mapping[str, str]) -> GraphProto:
    """The graph with every name behind `prefix`, but the inputs in `given` under these names."""
    # Named beforehand, since graphs inside nodes are renamed before the weights they may use.
    names = {item.name: prefix + item.name for item in (*graph.initializer, *graph.input)}
    found = compose.add_prefix_graph(
        graph, prefix, rename_inputs=False, name_map={**names, **given}
    )
    assert isinstance(found, GraphProto)
    return found


def _scaling() -> list[NodeProto]:
    return [
        helper.make_node("Cast", [IMAGES], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "most"], ["scaled"]),
    ]


def _as_float(graph: GraphProto, name: str, output: str) -> list[NodeProto]:
    """One of the graph's outputs as float32 under a name of its own. Raises `ZooError`."""
    if name not in {value.name for value in graph.output}:
        raise ZooError(f"a graph gives no {name.rpartition('/')[2]}")
    return [helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT)]


def _softmax() -> list[NodeProto]:
    """Logits `[1, N, way']` -> probabilities `[N, way]`.

    The classes of a task that was adapted together with larger ones are its first.
    """
    return [
        helper.make_node("Slice", ["logits", "first", "way", "last"], ["classes"]),
        helper.make_node("Squeeze", ["classes", "first"], ["scores"]),
        helper.make_node("Softmax", ["scores"], [PROBABILITIES], axis=-1),
    ]


def _numbers(way: int) -> list[TensorProto]:
    axes = {"first": 0, "last": 2, "way": way}
    return [
        numpy_helper.from_array(np.array(255, np.float32), "most"),
        *(numpy_helper.from_array(np.array([v], np.int64), name) for name, v in axes.items()),
    ]


def _needed(
    nodes: Sequence[NodeProto], held: Sequence[TensorProto]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Only what the probabilities depend on: no attention, and nothing that it alone used."""
    wanted, kept = {PROBABILITIES}, []
    for node in reversed(nodes):  # nodes are in the order in which they can be run
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            for inner in _inner(node):
                for graph in _graphs(inner):
                    wanted.update(name for one in graph.node for name in one.input)
                    wanted.update(value.name for value in graph.output)
    return kept[::-1], [tensor for tensor in held if tensor.name in wanted]


def _opsets(card: Card, parts: Sequence[ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """The operator versions, which all parts must share. Raises `ZooError`."""
    found: dict[str, int] = {}
    for part in parts:
        for opset in part.opset_import:
            if found.setdefault(opset.domain, opset.version) != opset.version:
                raise ZooError(f"{card.id}: its graphs are of different operator versions")
    if found.get("", 0) < _OLDEST_OPSET:
        raise ZooError(f"{card.id}: its graphs are older than operator version {_OLDEST_OPSET}")
    return [helper.make_opsetid(domain, version) for domain, version in found.items()]


def _tensor(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
