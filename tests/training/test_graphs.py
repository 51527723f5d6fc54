"""Exported graphs answer as PyTorch does, for every size, behind named inputs and outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from models_zoo import registry
from models_zoo.episode import Prediction, Support
from models_zoo.learner import InputShape, Learner
from tests.models_zoo.making import stir
from tests.training.making import GRADIENT, LEARNERS, SIDE
from training import parity
from training.graphs import OPSET, PREDICTED, GraphError, drop_unused, export_graph, to_onnx
from training.parity import OnnxLearner, ParityError, compare

SHAPE = InputShape(1, SIDE, SIDE)
#: Labels of the tasks of a batch, `None` = padding, and the number of queries.
EPISODES: dict[str, tuple[list[list[int | None]], int, int]] = {
    "smallest": ([[0, 1]], 2, 1),
    "unequal shots": ([[0, 1, 2, 2, 1, 2, 2], [2, 0, 1, 1, 1, 1, 0]], 3, 5),
    "padding amid": ([[None, 0, None, 3, 2, 1, None], [1, 0, 1, None, None, 0, None]], 4, 2),
    "many tasks": ([[i % 2, 1 - i % 2, None] for i in range(9)], 2, 1),
    "one class's slot empty": ([[3, 0, 0, 3]], 4, 11),
}


@dataclass
class Exported:
    name: str
    learner: Learner
    files: dict[str, bytes]

    @property
    def rates(self) -> tuple[float, ...]:
        rates = self.learner.default_inner_lr()
        return () if rates is None else tuple(rates.tolist())

    @property
    def graphs(self) -> dict[str, onnx.ModelProto]:
        return {name: onnx.load_from_string(data) for name, data in self.files.items()}


@pytest.fixture(scope="module", params=sorted(LEARNERS))
def exported(request: pytest.FixtureRequest) -> Exported:
    torch.manual_seed(7)
    learner = registry.build(request.param, LEARNERS[request.param]).eval()
    # Far from its start, so that classes differ in probability; but long adaptations are chaotic.
    stir(learner, weights=0.05 if request.param in GRADIENT else 0.2, means=0.2)
    return Exported(request.param, learner, to_onnx(learner, SHAPE))


def episode(name: str) -> tuple[Support, Tensor]:
    rows, way, queries = EPISODES[name]
    generator = torch.Generator().manual_seed(len(name))
    mask = torch.tensor([[label is not None for label in row] for row in rows])
    labels = torch.tensor([[0 if label is None else label for label in row] for row in rows])
    x = torch.rand(*mask.shape, 1, SIDE, SIDE, generator=generator)
    query = torch.rand(len(rows), queries, 1, SIDE, SIDE, generator=generator)
    return Support.of(x, labels, mask, way), query


def differences(a: Prediction, b: Prediction) -> Tensor:
    """Of probabilities and of every attention weight; both must have the same of them."""
    found = [(a.probabilities - b.probabilities).abs().flatten()]
    for name in PREDICTED[1:]:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape
            found.append((x - y).abs().flatten())
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("name", EPISODES)
def test_the_graphs_answer_as_pytorch_does(exported: Exported, name: str) -> None:
    support, query = episode(name)
    expected = exported.learner(support, query)
    found = OnnxLearner(exported.files, exported.rates)(support, query)
    assert found.logits.shape == expected.logits.shape
    if exported.rates:
        # Steps amplify rounding, and a ReLU that it tips moves a whole task: the graphs may stray
        # from the truth as torch does, and the bulk decides, not the worst.
        double = copy.deepcopy(exported.learner).double()
        truth = double(support.with_x(support.x.double()), query.double())
        astray, allowed = differences(truth, found), differences(truth, expected)
        assert astray.median() < 1e-6 + 5 * allowed.median()
        assert astray.quantile(0.75) < 1e-5 + 5 * allowed.quantile(0.75)
    else:
        assert differences(expected, found).max() < 1e-5
    assert torch.equal(expected.logits.argmax(-1), found.logits.argmax(-1))
    absent = ~support.class_mask.unsqueeze(1).expand_as(found.logits)
    assert (found.probabilities[absent] == 0).all()


@torch.no_grad()
def test_the_number_of_gradient_steps_is_an_input(exported: Exported) -> None:
    """And of no concern to learners that take none."""
    support, query = episode("unequal shots")
    if not exported.rates:
        encoded = support.with_x(exported.learner.encode_batch(support.x))
        plain = exported.learner.adapt(encoded)
        told = exported.learner.adapt(encoded, torch.tensor([0.5, 0.5]))
        assert all(torch.equal(plain[name], told[name]) for name in plain)
        return
    answers = []
    for rates in ((0.3,), (0.5, 0.1, 0.2), (0.2,) * 5):
        state = exported.learner.adapt(support, torch.tensor(rates))
        expected = exported.learner.predict(state, query)
        found = OnnxLearner(exported.files, rates)(support, query)
        assert differences(expected, found).quantile(0.9) < 1e-4
        asked = OnnxLearner(exported.files, (1.0,))(support, query, torch.tensor(rates))
        assert torch.equal(asked.logits, found.logits)
        answers.append(found.probabilities)
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    assert (answers[1] - answers[2]).abs().max() > 1e-3


def test_inputs_and_outputs_have_the_contract_s_names(exported: Exported) -> None:
    graphs = exported.graphs
    assert set(graphs) == {"adapt.onnx", "predict.onnx"} | (
        {"encode.onnx"} if exported.learner.encodes else set()
    )

    def names(file: str) -> tuple[list[str], list[str]]:
        graph = graphs[file].graph
        return [i.name for i in graph.input], [o.name for o in graph.output]

    if exported.learner.encodes:
        assert names("encode.onnx") == (["images"], ["features"])
    inputs, state = names("adapt.onnx")
    allowed = ["support", "labels", "mask", "class_mask", *(["inner_lr"] if exported.rates else [])]
    assert set(inputs) == set(allowed)
    assert all(name.startswith("state.") for name in state)
    inputs, outputs = names("predict.onnx")
    assert "query" in inputs
    assert set(inputs) <= {"query", *state}
    attention = {
        "stanet": ["task_attention", "query_attention", "support_attention"],
        "alpaca": ["task_attention", "uncertainty"],
    }.get(exported.name, ["query_attention" if exported.name in GRADIENT else "task_attention"])
    assert outputs == ["logits", *attention]


def test_every_size_of_an_episode_is_free(exported: Exported) -> None:
    """A number where a name should be would refuse other episodes, or recompile for each."""

    def axes(graph: onnx.GraphProto, name: str) -> list[str | int]:
        value = next(v for v in [*graph.input, *graph.output] if v.name == name)
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    graphs = exported.graphs
    adapt, predict = graphs["adapt.onnx"].graph, graphs["predict.onnx"].graph
    tasks, examples, *image = axes(adapt, "support")
    assert axes(adapt, "labels") == axes(adapt, "mask") == [tasks, examples]
    assert axes(adapt, "class_mask")[0] == tasks
    assert all(isinstance(size, int) for size in image)
    free = {tasks, examples, axes(adapt, "class_mask")[1], *axes(predict, "query")[:2]}
    assert all(isinstance(size, str) for size in free)
    assert len(free) == 4
    if exported.rates:
        assert isinstance(axes(adapt, "inner_lr")[0], str)
    if exported.learner.encodes:
        assert isinstance(axes(graphs["encode.onnx"].graph, "images")[0], str)
    for state in (value.name for value in adapt.output):
        if state in {value.name for value in predict.input}:
            both = zip(axes(adapt, state), axes(predict, state), strict=True)
            assert all(a == b or {type(a), type(b)} == {str} for a, b in both), state


def test_the_files_tell_nothing_of_the_machine_they_were_made_on(exported: Exported) -> None:
    for name, data in exported.files.items():
        for trace in (b".py", b"site-packages", b"/work", b"/home", b"/tmp", b"stack_trace"):
            assert trace not in data, (name, trace)


def test_the_files_stand_alone_and_are_sound(exported: Exported) -> None:
    for model in exported.graphs.values():
        onnx.checker.check_model(model)
        assert {o.version for o in model.opset_import if not o.domain} == {OPSET}
        assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def test_they_load_without_a_word(exported: Exported, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime warns of constants that nothing reads, on the process's own stderr."""
    for name, data in exported.files.items():
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert capfd.readouterr().err == "", name


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_constants_that_nothing_reads_are_dropped(where: str) -> None:
    """One that only the body of an If reads is not among them."""

    def constants(*names: str) -> list[onnx.TensorProto]:
        return [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in names]

    def value(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [1])

    def body(name: str) -> onnx.GraphProto:
        add = helper.make_node("Add", ["outer", f"{name}_own"], [f"{name}_sum"])
        unread = [f"{name}_unread"] if where == "inside" else []
        own = constants(f"{name}_own", *unread)
        return helper.make_graph([add], name, [], [value(f"{name}_sum")], own)

    node = helper.make_node(
        "If", ["which"], ["sum"], then_branch=body("then"), else_branch=body("else")
    )
    unread = ["unread"] if where == "outside" else []
    outer = constants("outer", "answer", *unread)
    answers = [value("sum"), value("answer")]
    noted = [value(name) for name in unread]
    asked = [value("which", TensorProto.BOOL)]
    graph = helper.make_graph([node], "g", asked, answers, outer, value_info=noted)
    drop_unused(graph)
    assert [tensor.name for tensor in graph.initializer] == ["outer", "answer"]
    assert len(graph.value_info) == 0
    bodies = [attribute.g for attribute in graph.node[0].attribute]
    assert {b.name: [t.name for t in b.initializer] for b in bodies} == {
        "then": ["then_own"],
        "else": ["else_own"],
    }
    onnx.checker.check_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def test_weights_that_differ_do_not_pass(exported: Exported) -> None:
    assert compare(exported.learner, SHAPE, exported.files).largest < 1e-2
    torch.manual_seed(0)
    other = registry.build(exported.name, LEARNERS[exported.name]).eval()
    with pytest.raises(ParityError, match="differ"):
        compare(other, SHAPE, exported.files)


def test_an_attention_or_a_shape_that_differs_does_not_pass(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = OnnxLearner.answer

    def spoil(how: str) -> None:
        def spoiled(self: OnnxLearner, *given: object) -> dict[str, np.ndarray]:
            found = answer(self, *given)  # type: ignore[arg-type]
            name = "task_attention" if "task_attention" in found else "logits"
            values = found[name].copy()
            if how == "shape":
                found[name] = values[..., :1]
            elif how == "nan":
                values.flat[0] = np.nan
                found[name] = values
            else:
                found[name] = values[..., ::-1].copy()
            return found

        monkeypatch.setattr(OnnxLearner, "answer", spoiled)

    for how in ("shape", "nan", "order"):
        spoil(how)
        with pytest.raises(ParityError):
            compare(exported.learner, SHAPE, exported.files)


class Stand:
    """In place of the graphs: PyTorch's own answers, with one query's turned about if `wrong`."""

    def __init__(self, learner: Learner, wrong: bool) -> None:
        self.learner, self.wrong = learner, wrong
        self.rates: tuple[float, ...] = ()

    def __call__(self, _: dict[str, bytes], rates: tuple[float, ...]) -> Stand:
        self.rates = rates
        return self

    def answer(self, support: Support, query: Tensor) -> dict[str, np.ndarray]:
        found = self.learner(support, query, torch.tensor(self.rates))
        logits = found.logits.numpy().copy()
        if self.wrong and query.shape[1] == 1:
            logits[:, 0] *= -1
        return {"logits": logits, "query_attention": found.query_attention.numpy()}


@pytest.mark.parametrize("rates", [(), (0.3,) * 4])
def test_a_gradient_learner_s_answers_count_at_the_rates_asked_for(
    rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few numbers differ, so that median and 90th percentile do not tell."""
    torch.manual_seed(7)
    learner = registry.build("maml", LEARNERS["maml"]).eval().requires_grad_(False)
    stir(learner, weights=0.05, means=0.2)
    right, wrong = Stand(learner, wrong=False), Stand(learner, wrong=True)
    monkeypatch.setattr(parity, "OnnxLearner", right)
    found = compare(learner, SHAPE, {}, rates=rates)
    assert found.same_answer == 1
    expected = torch.tensor(rates) if rates else learner.default_inner_lr()
    assert torch.equal(torch.tensor(right.rates), expected)
    monkeypatch.setattr(parity, "OnnxLearner", wrong)
    monkeypatch.setattr(parity, "EPISODES", (*parity.EPISODES[1:4] * 2, parity.EPISODES[0]))
    with pytest.raises(ParityError, match="differ in their answers"):
        compare(learner, SHAPE, {}, rates=rates)


def test_a_tie_may_be_answered_either_way() -> None:
    truth = torch.tensor([[[1.0, 1.0 + 1e-5, 0.0], [1.0, 1.1, 0.0]]])
    first = torch.tensor([[[1.0, 0.0, 0.0]] * 2])
    assert parity.right(first, truth).tolist() == [[True, False]]


class _Counts(torch.nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * sum(int(value.sum() > 0) for value in values)


def test_what_cannot_become_a_graph_is_told_with_its_line() -> None:
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    with pytest.raises(
        GraphError, match=r"test_graphs\.py:\d+: `return values \* sum\(int"
    ) as caught:
        export_graph(_Counts(), (torch.ones(3, 4),), ["values"], ["out"], sizes)
    assert "\n" not in str(caught.value)
