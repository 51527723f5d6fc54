"""A tiny real zoo, written as ONNX text: what it answers can be worked out with numpy.

mean       nearest class mean of 4 x 4 average-pooled grey pixels
attentive  the same on colour crops, with two layers of attention that are really computed
descent    class means reached by gradient steps: p <- p + lr (mean - p), from p = 0
"""

from __future__ import annotations

from pathlib import Path

import onnx

from models_zoo.cards import (
    Adaptation,
    AttentionSpec,
    Card,
    InputSpec,
    Limits,
    Paper,
    Training,
    describe,
    write_card,
)

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'

POOL = """
encode (float[M,{channels},16,16] images) => (float[M,16] features) {{
  axes = Constant <value_ints = [1]> ()
  grey = ReduceMean <keepdims = 1> (images, axes)
  pooled = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (grey)
  features = Flatten <axis = 1> (pooled)
}}
"""

MEANS = """
  two = Constant <value_ints = [1]> ()
  shape = Shape (class_mask)
  way_1 = Gather (shape, two)
  values = Constant <value_floats = [0.0, 1.0]> ()
  hot = OneHot <axis = -1> (labels, way_1, values)
  weights = Cast <to = 1> (mask)
  last = Constant <value_ints = [-1]> ()
  column = Unsqueeze (weights, last)
  used = Mul (hot, column)
  by_class = Transpose <perm = [0, 2, 1]> (used)
  sums = MatMul (by_class, flat)
  counts = ReduceSum <keepdims = 1> (by_class, last)
  one = Constant <value_float = 1.0> ()
  safe = Max (counts, one)
  means = Div (sums, safe)
  state_class_mask = Identity (class_mask)
"""

ADAPT = (
    """
adapt (float[B,N,16] support, int64[B,N] labels, bool[B,N] mask, bool[B,way] class_mask)
  => (float[B,way,16] state_means, bool[B,way] state_class_mask{extra_outputs}) {{
  flat = Identity (support)
"""
    + MEANS
    + """
  state_means = Identity (means)
  {extra}
}}
"""
)

DISTANCES = """
  minus = Constant <value_ints = [-1]> ()
  first = Constant <value_ints = [1]> ()
  second = Constant <value_ints = [2]> ()
  q = Unsqueeze (query_flat, second)
  p = Unsqueeze (state_means, first)
  difference = Sub (q, p)
  squared = Mul (difference, difference)
  distance = ReduceSum <keepdims = 0> (squared, minus)
  near = Neg (distance)
  present = Unsqueeze (state_class_mask, first)
  absent = Constant <value_float = -1.0e9> ()
  logits = Where (present, near, absent)
"""

PREDICT = (
    """
predict (float[B,way,16] state_means, bool[B,way] state_class_mask, float[B,Q,16] query)
  => (float[B,Q,way] logits) {
  query_flat = Identity (query)
"""
    + DISTANCES
    + "}"
)

# Layer l weighs examples by softmax(scale_l * <query, example>), scales 1 and 3; a location by
# softmax(its pooled brightness), support images regardless of the query. Its uncertainty is the
# squared distance to the nearest mean.
PREDICT_ATTENTIVE = (
    """
predict (float[B,way,16] state_means, bool[B,way] state_class_mask, float[B,N,16] state_examples,
         bool[B,N] state_mask, float[B,Q,16] query)
  => (float[B,Q,way] logits, float[B,2,Q,N] task_attention, float[B,2,Q,4,4] query_attention,
      float[B,2,Q,N,4,4] support_attention, float[B,Q] uncertainty) {
  query_flat = Identity (query)
"""
    + DISTANCES
    + """
  nearest = ReduceMax <keepdims = 0> (logits, minus)
  uncertainty = Neg (nearest)
  turned = Transpose <perm = [0, 2, 1]> (state_examples)
  likeness = MatMul (query, turned)
  real = Unsqueeze (state_mask, first)
  masked = Where (real, likeness, absent)
  three = Constant <value_float = 3.0> ()
  sharper = Mul (masked, three)
  soft_1 = Softmax <axis = -1> (masked)
  soft_3 = Softmax <axis = -1> (sharper)
  layer_1 = Unsqueeze (soft_1, first)
  layer_2 = Unsqueeze (soft_3, first)
  task_attention = Concat <axis = 1> (layer_1, layer_2)
  bright = Softmax <axis = -1> (query)
  bright_1 = Unsqueeze (bright, first)
  bright_2 = Concat <axis = 1> (bright_1, bright_1)
  grid = Constant <value_ints = [0, 0, 0, 4, 4]> ()
  query_attention = Reshape (bright_2, grid)
  glow = Softmax <axis = -1> (state_examples)
  axes_12 = Constant <value_ints = [1, 2]> ()
  glow_1 = Unsqueeze (glow, axes_12)
  zero = Constant <value_ints = [0]> ()
  three_d = Constant <value_ints = [3]> ()
  query_shape = Shape (query)
  example_shape = Shape (state_examples)
  b = Gather (query_shape, zero)
  count_q = Gather (query_shape, first)
  count_n = Gather (example_shape, first)
  pair = Constant <value_ints = [2]> ()
  wide = Constant <value_ints = [16]> ()
  wanted = Concat <axis = 0> (b, pair, count_q, count_n, wide)
  spread = Expand (glow_1, wanted)
  four = Constant <value_ints = [4]> ()
  wanted_grid = Concat <axis = 0> (b, pair, count_q, count_n, four, four)
  support_attention = Reshape (spread, wanted_grid)
}
"""
)

ADAPT_DESCENT = (
    """
adapt (float[B,N,1,16,16] support, int64[B,N] labels, bool[B,N] mask, bool[B,way] class_mask,
       float[S] inner_lr)
  => (float[B,way,256] state_means, bool[B,way] state_class_mask) {
  rows = Constant <value_ints = [0, 0, 256]> ()
  flat = Reshape (support, rows)
"""
    + MEANS
    + """
  left = Sub (one, inner_lr)
  still = ReduceProd <keepdims = 0> (left)
  reached = Sub (one, still)
  state_means = Mul (means, reached)
}
"""
)

PREDICT_DESCENT = (
    """
predict (float[B,way,256] state_means, bool[B,way] state_class_mask, float[B,Q,1,16,16] query)
  => (float[B,Q,way] logits) {
  rows = Constant <value_ints = [0, 0, 256]> ()
  query_flat = Reshape (query, rows)
"""
    + DISTANCES
    + "}"
)


def build_zoo(root: Path) -> Path:
    """Write the three entries under `root` and return it."""
    keep = "state_examples = Identity (support)\n  state_mask = Identity (mask)"
    kept = ", float[B,N,16] state_examples, bool[B,N] state_mask"
    _entry(
        root,
        "mean",
        {
            "encode.onnx": POOL.format(channels=1),
            "adapt.onnx": ADAPT.format(extra="", extra_outputs=""),
            "predict.onnx": PREDICT,
        },
        InputSpec(channels=1, height=16, width=16, fit="stretch", invert=True),
    )
    _entry(
        root,
        "attentive",
        {
            "encode.onnx": POOL.format(channels=3),
            "adapt.onnx": ADAPT.format(extra=keep, extra_outputs=kept),
            "predict.onnx": PREDICT_ATTENTIVE,
        },
        InputSpec(channels=3, height=16, width=16, fit="crop"),
        attention=AttentionSpec(layers=2, task=True, query=(4, 4), support=(4, 4)),
        uncertainty=True,
    )
    _entry(
        root,
        "descent",
        {"adapt.onnx": ADAPT_DESCENT, "predict.onnx": PREDICT_DESCENT},
        InputSpec(channels=1, height=16, width=16, fit="pad"),
        adaptation=Adaptation(steps=3, max_steps=50, inner_lr=0.5, max_inner_lr=1e6),
    )
    return root


def build_ordered(root: Path) -> Path:
    """Write `ordered` under `root`: as `attentive`, but an example's place, from 1, is its
    weight in its class's mean."""
    keep = "state_examples = Identity (support)\n  state_mask = Identity (mask)"
    kept = ", float[B,N,16] state_examples, bool[B,N] state_mask"
    adapt = ADAPT.format(extra=keep, extra_outputs=kept).replace(
        "column = Unsqueeze (weights, last)",
        "along = Constant <value_int = 1> ()\n  place = CumSum (weights, along)\n"
        "  column = Unsqueeze (place, last)",
    )
    _entry(
        root,
        "ordered",
        {
            "encode.onnx": POOL.format(channels=3),
            "adapt.onnx": adapt,
            "predict.onnx": PREDICT_ATTENTIVE,
        },
        InputSpec(channels=3, height=16, width=16, fit="crop"),
        attention=AttentionSpec(layers=2, task=True, query=(4, 4), support=(4, 4)),
        order_dependent=True,
    )
    return root


def build_endless(root: Path) -> Path:
    """Write `endless` under `root`: as `mean`, but its encoder never comes to an end."""
    pooled = POOL.format(channels=1).replace("features = Flatten", "first = Flatten")
    body = """
      => (bool goes_on, float[M,16] y) {
      goes_on = Identity (goes)
      y = Identity (x)
    }"""
    loop = f"""
  turns = Constant <value_int = {2**63 - 1}> ()
  yes = Constant <value = bool {{1}}> ()
  features = Loop (turns, yes, first) <body = turn (int64 i, bool goes, float[M,16] x){body}>
}}"""
    _entry(
        root,
        "endless",
        {
            "encode.onnx": pooled.rstrip().removesuffix("}") + loop,
            "adapt.onnx": ADAPT.format(extra="", extra_outputs=""),
            "predict.onnx": PREDICT,
        },
        InputSpec(channels=1, height=16, width=16, fit="stretch", invert=True),
    )
    return root


def _entry(
    root: Path,
    name: str,
    graphs: dict[str, str],
    spec: InputSpec,
    attention: AttentionSpec | None = None,
    adaptation: Adaptation | None = None,
    uncertainty: bool = False,
    order_dependent: bool = False,
) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in graphs.items():
        model = _named(onnx.parser.parse_model(HEAD + text))
        onnx.checker.check_model(model, full_check=True)
        (folder / file).write_bytes(model.SerializeToString())
    card = Card(
        id=name,
        version="1.0",
        title=f"Test entry {name}",
        summary="A made-up learner for tests.",
        learner="prototypical",
        family="metric",
        paper=Paper(title="None", authors="Nobody", year=2000),
        backbone="pooling",
        parameters=0,
        config={},
        input=spec,
        limits=Limits(max_way=6, max_shot=5, max_support=20, max_query=30),
        attention=attention or AttentionSpec(layers=0, task=False),
        uncertainty=uncertainty,
        adaptation=adaptation,
        transductive=False,
        order_dependent=order_dependent,
        training=Training(
            dataset="none",
            split="none",
            recipe="none",
            steps=0,
            run_steps=0,
            seed=0,
            minutes=0,
            hardware="none",
        ),
        license="MIT",
        files={path.name: describe(path.read_bytes()) for path in sorted(folder.glob("*.onnx"))},
    )
    write_card(card, root)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """`state_x` -> `state.x`: the text form knows no dots in names."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.name = value.name.replace("state_", "state.")
    for node in graph.node:
        node.input[:] = [name.replace("state_", "state.") for name in node.input]
        node.output[:] = [name.replace("state_", "state.") for name in node.output]
    return model
