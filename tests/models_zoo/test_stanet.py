"""STANet against Yan et al.'s equations, written for one query of one task, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.metric.stanet import SpatialAttention, STALayer, STANet
from tests.models_zoo.making import MIXED, alone, make, support_of

CHANNELS, SIDE, SLOTS = 6, 3, 5
SUPPORT = support_of(MIXED, CHANNELS, SIDE, SIDE, way=SLOTS)
QUERY = torch.randn(
    5, 4, CHANNELS, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
)


def network(layers: int = 3, spatial: str = "learned", max_way: int = SLOTS) -> STANet:
    torch.manual_seed(layers)
    learner = STANet(
        channels=1,
        image_size=12,
        backbone=f"conv4-{CHANNELS}",
        max_way=max_way,
        layers=layers,
        key_dim=4,
        value_dim=7,
        spatial=spatial,  # type: ignore[arg-type]
    ).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return learner.eval()


@dataclass
class Naive:
    """What the equations give for one query: logits, and per layer what was attended to."""

    logits: Tensor
    task: list[Tensor]
    query: list[Tensor]
    support: list[Tensor]


def softmax(values: list[Tensor]) -> list[Tensor]:
    largest = max(float(v) for v in values)
    powers = [torch.exp(v - largest) for v in values]
    return [p / sum(powers) for p in powers]


def centre_weighted(side: int) -> list[Tensor]:
    """exp(-r^2 / (2 * 0.25^2)), r from the middle in units of the map's side."""
    places = [
        (y / (side - 1) - 0.5, x / (side - 1) - 0.5) for y in range(side) for x in range(side)
    ]
    raw = [math.exp(-(y * y + x * x) / 0.125) for y, x in places]
    return [torch.tensor(value / sum(raw), dtype=torch.float64) for value in raw]


def look(layer: STALayer, h: Tensor, image: Tensor, spatial: str) -> list[Tensor]:
    """Eq. 3 and 4: the spatial attention on one feature map `[C, h, w]`."""
    places = [image[:, y, x] for y in range(SIDE) for x in range(SIDE)]
    if spatial == "uniform":
        return [torch.tensor(1 / len(places), dtype=torch.float64)] * len(places)
    if spatial == "gaussian":
        return centre_weighted(SIDE)
    attention = layer.spatial
    assert isinstance(attention, SpatialAttention)
    q_s = attention.query.weight @ h
    keys = [attention.key.weight @ place for place in places]
    return softmax([q_s @ key / math.sqrt(len(q_s)) for key in keys])


def pool(weights: list[Tensor], image: Tensor) -> Tensor:
    """Eq. 5: z = a_s^T C."""
    places = [image[:, y, x] for y in range(SIDE) for x in range(SIDE)]
    return sum(
        (a * c for a, c in zip(weights, places, strict=True)), torch.zeros(CHANNELS).double()
    )


def naive(learner: STANet, support: Support, task: int, query: Tensor, spatial: str) -> Naive:
    """Eq. 3 to 9 for one query `[C, h, w]` of one task, the padding left out."""
    kept = support.mask[task]
    images, labels = list(support.x[task, kept]), support.labels[task, kept].tolist()
    one_hot = torch.eye(learner.max_way or 0, dtype=torch.float64)
    h = query.mean((1, 2))
    outputs, answer = [], Naive(query, [], [], [])
    for layer in learner.layers:
        assert isinstance(layer, STALayer)
        a_ts = look(layer, h, query, spatial)
        a_tr = [look(layer, h, image, spatial) for image in images]
        z_ts = pool(a_ts, query)
        z_tr = [pool(a, image) for a, image in zip(a_tr, images, strict=True)]
        q_t = layer.query.weight @ z_ts
        keys = [layer.key.weight @ z for z in z_tr]
        a_t = softmax([q_t @ key / math.sqrt(len(q_t)) for key in keys])
        pairs = zip(z_tr, labels, strict=True)
        values = [layer.value.weight @ torch.cat([z, one_hot[y]]) for z, y in pairs]  # Eq. 6
        outputs.append(sum(a * v for a, v in zip(a_t, values, strict=True)))  # Eq. 7
        o_s = sum(a * z for a, z in zip(a_t, z_tr, strict=True))
        h = torch.cat([z_ts, o_s])  # Eq. 9
        answer.task.append(torch.stack(a_t))
        answer.query.append(torch.stack(a_ts).reshape(SIDE, SIDE))
        answer.support.append(torch.stack([torch.stack(a).reshape(SIDE, SIDE) for a in a_tr]))
    answer.logits = learner.output.weight @ torch.cat(outputs) + learner.output.bias  # Eq. 8
    return answer


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("spatial", ["learned", "uniform", "gaussian"])
def test_logits_and_attention_are_those_of_the_equations(layers: int, spatial: str) -> None:
    learner = network(layers, spatial)
    close = 1e-10 if spatial == "learned" else 1e-5  # fixed weights are kept in float32
    with torch.no_grad():
        found = learner.predict(learner.adapt(SUPPORT), QUERY)
        assert found.task_attention is not None
        assert found.query_attention is not None
        assert found.support_attention is not None
        assert found.support_attention.shape == (5, layers, 4, 7, SIDE, SIDE)
        for task in range(5):
            kept = SUPPORT.mask[task]
            present = SUPPORT.class_mask[task]
            for number in range(4):
                expected = naive(learner, SUPPORT, task, QUERY[task, number], spatial)
                logits = found.logits[task, number]
                assert torch.allclose(logits[present], expected.logits[present], atol=close)
                for m in range(layers):
                    weights = found.task_attention[task, m, number]
                    assert torch.allclose(weights[kept], expected.task[m], atol=close)
                    assert (weights[~kept] == 0).all()
                    on_query = found.query_attention[task, m, number]
                    assert torch.allclose(on_query, expected.query[m], atol=close)
                    on_support = found.support_attention[task, m, number, kept]
                    assert torch.allclose(on_support, expected.support[m], atol=close)


def test_gaussian_attention_is_e_to_the_4_stronger_at_the_centre_than_in_a_corner() -> None:
    found = network(1, "gaussian").predict(network(1, "gaussian").adapt(SUPPORT), QUERY)
    assert found.query_attention is not None
    weights = found.query_attention[0, 0, 0]
    assert float(weights[1, 1] / weights[0, 0]) == pytest.approx(math.exp(4), rel=1e-5)
    assert float(weights.sum()) == pytest.approx(1)


def test_attention_starts_as_a_similarity() -> None:
    """Before any training an image attends most to itself among images of equal length."""
    torch.manual_seed(0)
    layer = STANet(channels=1, image_size=12, backbone="conv4-64", layers=1).layers[0]
    assert isinstance(layer, STALayer)
    assert torch.equal(layer.query.weight, layer.key.weight)
    assert layer.query.weight.data_ptr() != layer.key.weight.data_ptr()


def test_fewer_classes_than_slots_leave_the_other_slots_out() -> None:
    learner = network()
    narrow = support_of([(0, 2, 2), (2, 0, 0)], CHANNELS, SIDE, SIDE, way=3)
    found = learner.predict(learner.adapt(narrow), QUERY[:2])
    assert found.logits.shape == (2, 4, 3)
    assert (found.probabilities[..., 1] == 0).all()
    assert torch.allclose(found.probabilities.sum(-1), torch.ones(2, 4, dtype=torch.float64))
    wide = support_of([(0, 2, 2), (2, 0, 0)], CHANNELS, SIDE, SIDE, way=5)
    same = learner.predict(learner.adapt(wide), QUERY[:2]).logits
    assert torch.allclose(found.logits[..., [0, 2]], same[..., [0, 2]])


def test_more_classes_than_slots_are_refused() -> None:
    learner = network(max_way=3)
    with pytest.raises(ValueError, match="at most 3"):
        learner.adapt(SUPPORT)


def test_the_order_of_the_support_examples_does_not_matter() -> None:
    learner = network()
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    turned = Support.of(SUPPORT.x[:, order], SUPPORT.labels[:, order], SUPPORT.mask[:, order], 5)
    a = learner.predict(learner.adapt(SUPPORT), QUERY)
    b = learner.predict(learner.adapt(turned), QUERY)
    assert a.task_attention is not None
    assert b.task_attention is not None
    assert a.support_attention is not None
    assert b.support_attention is not None
    assert torch.allclose(a.logits, b.logits, atol=1e-10)
    assert torch.allclose(a.task_attention[..., order], b.task_attention)
    assert torch.allclose(a.support_attention[:, :, :, order], b.support_attention)


def test_attention_looks_at_images_not_at_labels() -> None:
    learner = network()
    one = alone(SUPPORT, 0)
    other = Support.of(one.x, (one.labels + 1) % 3, way=5)
    a, b = (learner.predict(learner.adapt(s), QUERY[:1]) for s in (one, other))
    assert a.task_attention is not None
    assert b.task_attention is not None
    assert torch.equal(a.task_attention, b.task_attention)
    assert not torch.allclose(a.probabilities, b.probabilities)


def test_the_images_reach_the_equations_as_feature_maps_with_room_for_attention() -> None:
    learner = make("stanet")
    features = learner.encode(torch.rand(3, 2, 16, 16, dtype=torch.float64))
    assert features.shape == (3, 8, 4, 4)
    assert isinstance(learner, STANet)
    assert learner.map_size == (4, 4)
