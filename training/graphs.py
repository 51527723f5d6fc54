"""A learner as up to three ONNX graphs: encode, adapt, predict (DESIGN, Export)."""

from __future__ import annotations

import io
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from models_zoo.episode import Support, TaskState
from models_zoo.learner import InputShape, Learner

OPSET = 20
PREDICTED = (
    "logits",
    "task_attention",
    "query_attention",
    "support_attention",
    "uncertainty",
)


class Encode(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> Tensor:
        return self.learner.encode(images)


class Adapt(nn.Module):
    """Positional tensors in, the state's tensors in sorted order of their names out."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, support: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor, *hyper: Tensor
    ) -> tuple[Tensor, ...]:
        state = self.learner.adapt(Support(support, labels, mask, class_mask), *hyper)
        # A clone, since an input handed on unchanged may not be a graph's output.
        return tuple(state[name].clone() for name in sorted(state))


class Predict(nn.Module):
    def __init__(self, learner: Learner, names: list[str]) -> None:
        super().__init__()
        self.learner, self.names = learner, names

    def forward(self, query: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        prediction = self.learner.predict(dict(zip(self.names, state, strict=True)), query)
        found = (getattr(prediction, name) for name in PREDICTED)
        return tuple(tensor for tensor in found if tensor is not None)


@dataclass(frozen=True)
class Sizes:
    """Sizes of an example episode; all different, so that no two axes are taken for one."""

    tasks: int = 2
    examples: int = 7
    way: int = 3
    queries: int = 4


def example_inputs(learner: Learner, shape: InputShape, sizes: Sizes) -> tuple[Support, Tensor]:
    """A random encoded episode of the given sizes."""

    def encoded(count: int) -> Tensor:
        images = torch.rand(sizes.tasks, count, shape.channels, shape.height, shape.width)
        return learner.encode_batch(images)

    labels = torch.arange(sizes.examples).remainder(sizes.way).expand(sizes.tasks, -1).contiguous()
    return Support.of(encoded(sizes.examples), labels, way=sizes.way), encoded(sizes.queries)


def hyperparameters(learner: Learner) -> tuple[Tensor, ...]:
    """What `adapt` takes beyond the support set: the inner learning rates of gradient learners."""
    rates = learner.default_inner_lr()
    return () if rates is None else (rates.detach().clone(),)


@torch.no_grad()
def to_onnx(learner: Learner, shape: InputShape) -> dict[str, bytes]:
    """File name -> serialised graph. The learner must be in evaluation mode and float32."""
    learner.requires_grad_(False)  # a scan over tensors that need gradients does not export
    sizes = Sizes(way=min(3, learner.max_way or 3))
    support, query = example_inputs(learner, shape, sizes)
    hyper = hyperparameters(learner)
    state = learner.adapt(support, *hyper)
    names = sorted(state)
    axes = {
        "B": Dim("B"),
        "N": Dim("N"),
        "way": Dim("way"),
        "Q": Dim("Q"),
        "M": Dim("M"),
        "S": Dim("S"),
    }

    files: dict[str, bytes] = {}
    if learner.encodes:
        images = torch.rand(3, shape.channels, shape.height, shape.width)
        files["encode.onnx"] = export_graph(
            Encode(learner), (images,), ["images"], ["features"], ({0: axes["M"]},)
        )
    examples = {0: axes["B"], 1: axes["N"]}
    support_axes: list[object] = [examples, examples, examples, {0: axes["B"], 1: axes["way"]}]
    if hyper:
        support_axes.append(({0: axes["S"]},))
    files["adapt.onnx"] = export_graph(
        Adapt(learner),
        (support.x, support.labels, support.mask, support.class_mask, *hyper),
        ["support", "labels", "mask", "class_mask", *["inner_lr"][: len(hyper)]],
        [f"state.{name}" for name in names],
        tuple(support_axes),
    )
    state_axes = tuple(
        {i: axes[a] for i, a in enumerate(letters) if a}
        for letters in dynamic_axes(learner, shape, sizes, names)
    )
    files["predict.onnx"] = export_graph(
        Predict(learner, names),
        (query, *(state[name] for name in names)),
        ["query", *(f"state.{name}" for name in names)],
        [name for name in PREDICTED if getattr(learner.predict(state, query), name) is not None],
        ({0: axes["B"], 1: axes["Q"]}, state_axes),
    )
    return files


def dynamic_axes(
    learner: Learner, shape: InputShape, sizes: Sizes, names: list[str]
) -> list[list[str]]:
    """For each state tensor and axis the size it follows ("B", "N", "way") or "" for a fixed one.

    Found by adapting episodes of other sizes and looking which axes follow.
    """
    hyper = hyperparameters(learner)

    def shapes(sizes: Sizes) -> TaskState:
        return learner.adapt(example_inputs(learner, shape, sizes)[0], *hyper)

    base = shapes(sizes)
    others = {
        "B": shapes(Sizes(sizes.tasks + 1, sizes.examples, sizes.way)),
        "N": shapes(Sizes(sizes.tasks, sizes.examples + 1, sizes.way)),
        "way": shapes(Sizes(sizes.tasks, sizes.examples, sizes.way + 1)),
    }

    def follows(name: str, axis: int) -> str:
        size = base[name].shape[axis]
        return next((a for a, other in others.items() if other[name].shape[axis] != size), "")

    return [[follows(name, axis) for axis in range(base[name].ndim)] for name in names]


class GraphError(Exception):
    """A learner's function cannot become a graph."""


def _reason(error: Exception) -> str:
    """The last line of one's own that was running, and what was wrong with it."""
    cause = error.__cause__ or error
    torch_home = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(torch_home)]
    where = f"{own[-1].filename}:{own[-1].lineno}: `{own[-1].line}`: " if own else ""
    return (
        f"{where}this cannot become a graph ({str(cause).partition(chr(10))[0]}). What is done may "
        "hang on the shapes of tensors, not on their values"
    )


def export_graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...],
) -> bytes:
    """One module as an ONNX file without external data, stack traces or source paths. Raises
    `GraphError`."""
    module.eval()
    with warnings.catch_warnings():
        # Where two axes are known to be as long as each other, one name is enough.
        warnings.filterwarnings("ignore", "# The axis name")
        try:
            program = torch.onnx.export(
                module,
                inputs,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise GraphError(_reason(error)) from error
    assert program is not None
    model = program.model_proto
    strip(model)
    drop_unused(model.graph)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a node's loops, scans and branches."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the constants that nothing reads, of the graph and of those inside it.

    ONNX Runtime warns of each whenever it loads the file. The exporter's optimiser removes those of
    the outermost graph alone, and afterwards lifts those of a scan's body into it.
    """

    def read(graph: onnx.GraphProto) -> set[str]:
        names = {output.name for output in graph.output}
        for node in graph.node:
            names.update(node.input, *map(read, inner_graphs(node)))
        return names

    names = read(graph)
    gone = {tensor.name for tensor in graph.initializer} - names
    for values in (graph.initializer, graph.value_info):
        for index in reversed(range(len(values))):
            if values[index].name in gone:
                del values[index]
    for node in graph.node:
        for inner in inner_graphs(node):
            drop_unused(inner)


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its own source: two thirds of the file, and paths."""

    def clean(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
            for inner in inner_graphs(node):
                clean(inner)
        for value in [*graph.value_info, *graph.input, *graph.output]:
            del value.metadata_props[:]
            value.doc_string = ""
        for tensor in graph.initializer:
            del tensor.metadata_props[:]
            tensor.doc_string = ""
        del graph.metadata_props[:]
        graph.doc_string = ""

    clean(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""
