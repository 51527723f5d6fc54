"""MAML against a plain restatement: one task at a time, nn.functional, autograd for every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo import registry
from models_zoo.episode import ABSENT, Support, TaskState
from models_zoo.learner import InputShape
from models_zoo.optimization.maml import MAML
from models_zoo.optimization.taskconv import fold, half, patches
from training.graphs import to_onnx

SHAPE = InputShape(2, 13, 13)
KINDS = ("mean", "variance")


def small(**config: object) -> MAML:
    """A little MAML in float64 whose rates and norms are no longer those of the start."""
    torch.manual_seed(0)
    options = {"channels": 2, "image_size": 13, "hidden": 6, "steps": 2, "inner_lr": 0.6} | config
    learner = MAML(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in learner.named_parameters():
            if "kernel" not in name or "rate" in name:
                value += 0.2 * torch.randn_like(value)
    return learner


def images(*leading: int) -> Tensor:
    return torch.rand(*leading, 2, 13, 13, dtype=torch.float64)


def mixed_tasks() -> tuple[Support, Tensor, Tensor]:
    """Three tasks of 3, 2 and 3 classes with 7, 5 and 4 examples, padded to 7; queries, targets."""
    torch.manual_seed(1)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 2], [1, 0, 0, 1, 1, 9, 9], [2, 0, 0, 1, 7, 7, 7]])
    mask = torch.arange(7) < torch.tensor([[7], [5], [4]])
    targets = torch.tensor([[0, 1, 2, 2], [1, 0, 1, 0], [2, 1, 0, 0]])
    return Support.of(images(3, 7), labels, mask, way=3), images(3, 4), targets


Norms = list[tuple[Tensor, Tensor]]


def network(
    weights: dict[str, Tensor], x: Tensor, statistics: Norms | None = None
) -> tuple[Tensor, Norms]:
    """Finn's network on `[n, C, H, W]`; by the images' own statistics unless some are given."""
    own = []
    for layer in range(4):
        kernel = weights[f"kernel{layer}"].unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, stride=2, padding=1)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        own.append((mean, variance))
        mean, variance = statistics[layer] if statistics else own[-1]
        gain, shift = (weights[f"{name}{layer}"].view(1, -1, 1, 1) for name in ("gain", "shift"))
        x = (gain * (x - mean) / (variance + 1e-5).sqrt() + shift).relu()
    return x.mean((2, 3)) @ weights["head"] + weights["offset"], own


def plain_maml(
    learner: MAML,
    support: Support,
    query: Tensor,
    rates: list[float],
    first_order: bool = False,
    given: Sequence[Norms | None] = (None,),
) -> Tensor:
    """Finn et al. 2017, algorithm 1, lines 5-7, for each task by itself; logits `[B, Q, way]`.

    Factors and `given` statistics are those of the step, or the last there are.
    """
    rows = []
    for x, labels, mask, present, asked in zip(
        support.x, support.labels, support.mask, support.class_mask, query, strict=True
    ):
        x, labels, way = x[mask], labels[mask], support.way
        weights = dict(learner.initial.items())
        weights["head"], weights["offset"] = weights["head"][:, :way], weights["offset"][:, :way]
        absent = torch.where(present, 0.0, -torch.inf).double()
        for number, rate in enumerate(rates):
            norms = given[min(number, len(given) - 1)]
            loss = F.cross_entropy(network(weights, x, norms)[0] + absent, labels)
            gradient = torch.autograd.grad(
                loss, list(weights.values()), create_graph=not first_order
            )
            factors = {
                name: value.exp() if value.ndim == 0 else value.exp()[min(number, len(value) - 1)]
                for name, value in learner.log_rates.items()
            }
            weights = {
                name: value - rate * factors[name] * d
                for (name, value), d in zip(weights.items(), gradient, strict=True)
            }
        norms = given[min(len(rates), len(given) - 1)] or network(weights, x)[1]
        logits = network(weights, asked, norms)[0]
        rows.append(logits.masked_fill(~present, ABSENT))
    return torch.stack(rows)


def meta_gradient(learner: MAML, logits: Tensor, targets: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return list(torch.autograd.grad(loss, list(learner.parameters())))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_outputs_and_meta_gradients_are_those_of_the_plain_loop(
    steps: int, first_order: bool
) -> None:
    learner = small(steps=steps, first_order=first_order)
    support, query, targets = mixed_tasks()
    logits = learner(support, query).logits
    expected = plain_maml(learner, support, query, [0.6] * steps, first_order)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-9)
    for mine, theirs in zip(
        meta_gradient(learner, logits, targets),
        meta_gradient(learner, expected, targets),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def graph_nodes(tensor: Tensor) -> Iterator[str]:
    """Names of the autograd nodes behind a tensor."""
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node.name()
        todo.extend(following for following, _ in node.next_functions)


def test_first_order_builds_no_second_order_graph() -> None:
    support, query, _ = mixed_tasks()
    sizes = {}
    for first_order in (False, True):
        learner = small(first_order=first_order)
        names = list(graph_nodes(learner(support, query).logits))
        assert ("_FoldBackward" in names) is not first_order  # fold: part of the gradient alone
        sizes[first_order] = len(names)
    assert sizes[True] < sizes[False] / 2


def test_number_and_rates_of_steps_are_the_callers() -> None:
    learner = small(steps=1)
    support, query, _ = mixed_tasks()
    for rates in ([], [0.3], [0.5, 0.1, 0.2, 0.4, 0.3]):
        state = learner.adapt(support, torch.tensor(rates, dtype=torch.float64))
        expected = plain_maml(learner, support, query, rates)
        assert torch.allclose(learner.predict(state, query).logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 4])
def test_every_step_may_have_rates_of_its_own_and_the_last_goes_on(steps: int) -> None:
    learner = small(steps=2, per_step_rates=True)
    support, query, targets = mixed_tasks()
    rates = [0.6, 0.3, 0.5, 0.4][:steps]
    found = learner.predict(
        learner.adapt(support, torch.tensor(rates, dtype=torch.float64)), query
    ).logits
    expected = plain_maml(learner, support, query, rates)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    for mine, theirs in zip(
        meta_gradient(learner, found, targets),
        meta_gradient(learner, expected, targets),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def test_statistics_of_every_step_are_averages_over_tasks_used_in_evaluation() -> None:
    learner = small(steps=2, statistics="per_step")
    support, query, targets = mixed_tasks()
    logits = learner.train()(support, query).logits
    assert torch.allclose(
        logits, plain_maml(learner, support, query, [0.6, 0.6]), rtol=0, atol=1e-9
    )

    x, labels = support.x[0], support.labels[0]  # one task, alone, seen for long
    for _ in range(200):
        learner.adapt(Support.of(x[None], labels[None], way=3))
    weights = {
        name: value[:, :3] if name in ("head", "offset") else value
        for name, value in learner.initial.items()
    }
    for number in range(3):
        out, norms = network(weights, x)
        for layer, (mean, variance) in enumerate(norms):
            kept = learner.get_buffer(f"mean{layer}"), learner.get_buffer(f"variance{layer}")
            assert torch.allclose(kept[0][number], mean.flatten(), atol=1e-7)
            assert torch.allclose(kept[1][number], variance.flatten(), atol=1e-7)
        slope = torch.autograd.grad(F.cross_entropy(out, labels), list(weights.values()))
        weights = {
            name: value - 0.6 * learner.log_rates[name].exp() * d
            for (name, value), d in zip(weights.items(), slope, strict=True)
        }

    learner.eval()
    given: list[Norms | None] = [
        [
            tuple(learner.get_buffer(f"{kind}{i}")[n].view(1, -1, 1, 1) for kind in KINDS)  # type: ignore[misc]
            for i in range(4)
        ]
        for n in range(3)
    ]
    for rates in ([0.6, 0.6], [0.6, 0.3, 0.3]):
        padded = [*rates[:1], 0.0, *rates[1:], 0.0]  # a step at rate 0 is none
        assert_same_state(
            *(learner.adapt(support, torch.tensor(r).double()) for r in (rates, padded))
        )
        state = learner.adapt(support, torch.tensor(rates, dtype=torch.float64))
        found = learner.predict(state, query).logits
        expected = plain_maml(learner, support, query, rates, given=given)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        gradients = [meta_gradient(learner, answer, targets) for answer in (found, expected)]
        assert all(
            torch.allclose(*pair, rtol=0, atol=1e-9) for pair in zip(*gradients, strict=True)
        )


def assert_same_state(one: TaskState, other: TaskState) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"statistics": "per-step"}, r"config\.statistics: .*'per_step'"),
        ({"first_order": 1e-3}, r"config\.first_order: "),
        ({"hiden": 4}, r"config\.hiden: no such argument; there are .*hidden"),
        ({"hidden": 0}, "at least 1"),
        ({"steps": -1}, "at least 0"),
        ({"per_step_rates": True, "learn_rates": False}, "learn_rates"),
        ({"per_step_rates": True, "steps": 0}, "at least one step"),
    ],
)
def test_arguments_that_make_no_learner_are_told(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build("maml", config)


def test_arguments_without_a_type_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(MAML):
        def __init__(self, channels: int = 1, scale=1.0):  # type: ignore[no-untyped-def]
            super().__init__(channels)

    monkeypatch.setattr(registry, "learner_class", lambda name: Bare)
    with pytest.raises(ValueError, match="annotate the type of scale"):
        registry.build("bare", {"scale": 2.0})


def test_steps_lower_the_support_loss() -> None:
    learner = small()
    labels = torch.arange(6).remainder(3).expand(2, -1)
    support = Support.of(images(2, 6), labels)
    before, after = (
        learner.predict(learner.adapt(support, torch.full((n,), 0.3).double()), support.x).logits
        for n in (0, 30)
    )
    assert (after.argmax(-1) == labels).double().mean() > (
        before.argmax(-1) == labels
    ).double().mean()
    assert F.cross_entropy(after.mT, labels) < 0.5 * F.cross_entropy(before.mT, labels)


def test_batch_of_tasks_equals_one_at_a_time() -> None:
    learner = small()
    support, query, _ = mixed_tasks()
    together = learner(support, query).logits
    for b in range(3):
        one = Support(
            *(t[b : b + 1] for t in (support.x, support.labels, support.mask, support.class_mask))
        )
        assert torch.allclose(learner(one, query[b : b + 1]).logits[0], together[b], atol=1e-10)


def test_padding_changes_nothing() -> None:
    learner = small()
    support, query, _ = mixed_tasks()
    loud = torch.where(support.mask[..., None, None, None], support.x, 1e3)
    together = learner(support, query).logits
    assert torch.allclose(learner(support.with_x(loud), query).logits, together, atol=1e-10)
    bare = Support.of(support.x[1:2, :5], support.labels[1:2, :5], way=2)
    assert torch.allclose(learner(bare, query[1:2]).logits, together[1:2, :, :2], atol=1e-10)
    assert (together[1, :, 2] == ABSENT).all()


def test_a_query_does_not_see_the_others() -> None:
    learner = small()
    support, query, _ = mixed_tasks()
    state = learner.adapt(support)
    together = learner.predict(state, query).logits
    alone = [learner.predict(state, query[:, i : i + 1]).logits for i in range(query.shape[1])]
    assert torch.allclose(torch.cat(alone, 1), together, atol=1e-12)


def test_more_classes_than_slots_are_refused() -> None:
    learner = small(max_way=2)
    support, _, _ = mixed_tasks()
    with pytest.raises(ValueError, match="3 classes, at most 2"):
        learner.adapt(support)


def test_fixed_rates_are_not_trained() -> None:
    trained = {name for name, p in small(learn_rates=False).named_parameters() if p.requires_grad}
    assert trained and not any("rate" in name for name in trained)


def test_bfloat16_autocast_stays_close() -> None:
    learner = small().float()
    support, query, _ = mixed_tasks()
    support, query = support.with_x(support.x.float()), query.float()
    exact = learner(support, query).probabilities
    with torch.autocast("cpu", torch.bfloat16):
        rough = learner(support, query).probabilities
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.03


@pytest.mark.parametrize("size", [2, 5, 8])
def test_patches_are_the_windows_of_a_convolution(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, 4, dtype=torch.float64)
    rows = patches(x).unflatten(1, (3, -1)).unflatten(-1, (9, 4))
    flat = x.permute(0, 1, 4, 2, 3).flatten(0, 1)
    expected = F.unfold(flat, 3, padding=1, stride=2).unflatten(1, (4, 9)).unflatten(0, (2, 3))
    assert torch.equal(rows, expected.permute(0, 1, 4, 3, 2))
    other = torch.randn(2, 3 * half(size) ** 2, 36, dtype=torch.float64)
    assert torch.allclose((patches(x) * other).sum(), (x * fold(other, 3, size)).sum())


@pytest.mark.parametrize("size", [2, 5])
def test_patches_and_fold_are_each_others_derivative(size: int) -> None:
    x = torch.randn(1, 1, size, size, 1, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(1, half(size) ** 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(patches, x)
    assert torch.autograd.gradcheck(lambda rows: fold(rows, 1, size), rows)
    assert torch.autograd.gradgradcheck(lambda x: patches(x).square(), x)
    assert torch.autograd.gradgradcheck(lambda rows: fold(rows, 1, size).square(), rows)


class Graphs:
    """MAML's two ONNX graphs under ONNX Runtime."""

    def __init__(self, learner: MAML) -> None:
        files = to_onnx(learner, SHAPE)
        self.bytes = sum(map(len, files.values()))
        self.adapt, self.predict = (
            onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
            for name in ("adapt.onnx", "predict.onnx")
        )

    def __call__(self, support: Support, query: Tensor, rates: Tensor) -> Tensor:
        given = {
            "support": support.x,
            "labels": support.labels,
            "mask": support.mask,
            "class_mask": support.class_mask,
            "inner_lr": rates,
        }
        found = self.adapt.run(None, {name: value.numpy() for name, value in given.items()})
        names = [output.name for output in self.adapt.get_outputs()]
        state = dict(zip(names, found, strict=True))
        wanted = {i.name for i in self.predict.get_inputs()} - {"query"}
        inputs = {name: state[name] for name in wanted} | {"query": query.numpy()}
        return torch.from_numpy(self.predict.run(["logits"], inputs)[0])


@pytest.fixture(
    scope="module", params=[{}, {"per_step_rates": True, "statistics": "per_step"}], ids=str
)
def exported(request: pytest.FixtureRequest) -> tuple[MAML, Graphs]:
    """Single precision: the learner torch runs and its graphs."""
    learner = small(max_way=5, **request.param).float().eval()
    for name, buffer in learner.named_buffers():
        buffer.normal_(0, 0.2) if "mean" in name else buffer.uniform_(0.5, 1.5)
    return learner, Graphs(learner)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize(
    ("tasks", "way", "shot", "padding", "queries"),
    [(1, 5, 1, 0, 3), (3, 2, 3, 2, 1), (3, 5, 2, 4, 6), (1, 4, 5, 0, 2), (2, 1, 1, 1, 1)],
)
def test_onnx_runtime_answers_as_torch(
    exported: tuple[MAML, Graphs],
    steps: int,
    tasks: int,
    way: int,
    shot: int,
    padding: int,
    queries: int,
) -> None:
    learner, graphs = exported
    torch.manual_seed(steps)
    count = way * shot + padding
    mask = (torch.arange(count) < way * shot).expand(tasks, -1)
    labels = torch.arange(count).remainder(way).expand(tasks, -1)
    support = Support.of(images(tasks, count).float(), labels, mask, way)
    query, rates = images(tasks, queries).float(), torch.rand(steps) * 0.5
    with torch.no_grad():
        expected = learner.predict(learner.adapt(support, rates), query).probabilities
    assert expected.isfinite().all()
    got = graphs(support, query, rates).softmax(-1)
    difference = (got - expected).abs().numpy()
    # Rounding may tip a ReLU, and the steps amplify it: the bulk decides, not the worst.
    assert got.shape == expected.shape
    assert np.median(difference) < 1e-6
    assert np.quantile(difference, 0.9) < 1e-4
    assert (got.argmax(-1) == expected.argmax(-1)).double().mean() > 0.9


def test_the_graphs_hold_the_weights_once(exported: tuple[MAML, Graphs]) -> None:
    learner, graphs = exported
    weights = sum(4 * value.numel() for value in learner.state_dict().values())
    assert graphs.bytes < weights + 250_000
