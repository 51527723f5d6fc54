"""MM-Net against Cai et al.'s equations, task by task and query by query, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.metric.mmnet import ContextualLearner, MMNet, Normalize
from tests.models_zoo.making import CONFIGS, MIXED, images, make, support_of
from tests.models_zoo.test_matching import two_way_lstm
from tests.models_zoo.test_memory import naive as naive_write

WIDE = ((0, 1, 2, 3, 4, 5, 6, 0, 3), (5, 2, 1, 0, None, 3, 3, 3, 3), (6, 0))


def naive_weights(context: ContextualLearner, keys: Tensor) -> Tensor:
    """Eq. 7 and 8 for the used slots `[m, D]` of one task: W = T_p (h_forward + h_backward)."""
    hidden = two_way_lstm(context)(keys[None])[1][0]
    return context.output.weight @ (hidden[0, 0] + hidden[1, 0]) + context.output.bias


def naive(learner: MMNet, support: Support, task: int, query: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the real examples and class probabilities of one task's queries `[Q, ...]`."""
    kept = support.mask[task]
    labels = support.labels[task, kept].tolist()
    z = [learner.last_support(x[None]).flatten() for x in support.x[task, kept]]
    if learner.normalize == "match":
        z = [v / v.norm() for v in z]
    written = z if learner.normalize == "none" else [v / v.norm() for v in z]
    keys = torch.stack([learner.to_key.weight @ v for v in written])  # Eq. 3
    memory, _ = naive_write(keys, labels, learner.slots)  # Eq. 4
    g = []
    for key, feature in zip(keys, z, strict=True):
        scores = torch.stack([key @ m for m in memory])
        a = (learner.log_read_scale.exp() * scores).softmax(0)  # Eq. 5
        c = sum(weight * m for weight, m in zip(a, memory, strict=True))
        g.append(learner.from_key.weight @ c + feature)  # Eq. 6
    kernel = naive_weights(learner.context, torch.stack(memory)).reshape(learner.hidden, 1, 3, 3)
    weights, probabilities = [], []
    for x in query:
        h = F.conv2d(x[None], learner.before.weight)
        h = F.conv2d(h, kernel, padding=1, groups=learner.hidden)
        h = F.max_pool2d(F.relu(learner.norm(F.conv2d(h, learner.after.weight))), 2)
        embedded = h.flatten() / h.norm() if learner.normalize == "match" else h.flatten()
        scores = torch.stack([embedded @ support_image for support_image in g])  # Eq. 2
        weights.append((learner.log_scale.exp() * scores).softmax(0))
        pairs = list(zip(weights[-1], labels, strict=True))
        probabilities.append([sum(w for w, y in pairs if y == k) for k in range(support.way)])
    return torch.stack(weights), torch.tensor(probabilities)


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["none", "write", "match"])
@pytest.mark.parametrize("labels", [MIXED, WIDE])
def test_the_answer_is_that_of_the_equations(
    labels: tuple[tuple[int | None, ...], ...], normalize: Normalize
) -> None:
    learner = make("mmnet")
    assert isinstance(learner, MMNet)
    learner.normalize = normalize
    learner.log_scale.fill_(0.3)
    learner.log_read_scale.fill_(1.2)
    support = support_of(labels, 8, 2, 2)
    query = torch.randn(len(labels), 3, 8, 2, 2, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(labels)):
        weights, probabilities = naive(learner, support, task, query[task])
        kept = support.mask[task]
        got = found.task_attention[task, 0]
        assert torch.allclose(got[:, kept], weights, atol=1e-9)
        assert (got[:, ~kept] == 0).all()
        assert torch.allclose(found.probabilities[task], probabilities, atol=1e-6)


@torch.no_grad()
def test_the_contextual_learner_reads_the_used_slots_and_no_others() -> None:
    torch.manual_seed(0)
    context = ContextualLearner(5, 6, 9).double()
    keys = torch.randn(4, 7, 5, dtype=torch.float64)
    used = torch.tensor([1, 3, 6, 7])
    found = context(keys, used)
    for task in range(4):
        expected = naive_weights(context, keys[task, : used[task]])
        assert torch.allclose(found[task], expected, atol=1e-12)


@torch.no_grad()
def test_the_predicted_convolution_is_a_grouped_one_per_task() -> None:
    learner = make("mmnet")
    assert isinstance(learner, MMNet)
    query = torch.randn(3, 4, 8, 6, 6, dtype=torch.float64)
    kernel = torch.randn(3, 8, 9, dtype=torch.float64)
    found = learner.embed_query(query, kernel)
    for task in range(3):
        x = F.conv2d(query[task], learner.before.weight)
        x = F.conv2d(x, kernel[task].reshape(8, 1, 3, 3), padding=1, groups=8)
        x = F.relu(learner.norm(F.conv2d(x, learner.after.weight)))
        assert torch.allclose(found[task], F.max_pool2d(x, 2).flatten(1), atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 1), (5, 5), (20, 1), (31, 2), (3, 9)])
def test_one_model_takes_any_way_and_shot(way: int, shot: int) -> None:
    learner = make("mmnet")
    support = support_of([[k for k in range(way) for _ in range(shot)]] * 2, 2, 16, 16)
    state = learner.adapt(support.with_x(learner.encode_batch(support.x)))
    found = learner.predict(state, learner.encode_batch(images(2, 3)))
    assert found.logits.shape == (2, 3, way)
    assert torch.allclose(found.probabilities.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert found.task_attention is not None
    mine = found.task_attention[:, 0].unflatten(-1, (way, shot)).sum(-1)
    assert torch.allclose(mine, found.probabilities, atol=1e-6)


@torch.no_grad()
def test_more_slots_than_images_change_nothing() -> None:
    small, large = make("mmnet"), make("mmnet")
    assert isinstance(small, MMNet)
    assert isinstance(large, MMNet)
    small.slots, large.slots = 7, 1000
    support = support_of(MIXED, 8, 2, 2)
    a, b = small.adapt(support), large.adapt(support)
    assert all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def test_the_classes_names_do_not_matter() -> None:
    """Labels only say who belongs together: renaming them renames the answer."""
    learner = make("mmnet")
    support = support_of(MIXED, 8, 2, 2, way=5)
    query = torch.randn(5, 3, 8, 2, 2, dtype=torch.float64)
    renamed = torch.tensor([3, 0, 4, 1, 2])
    other = Support.of(support.x, renamed[support.labels], support.mask, way=5)
    a = learner.predict(learner.adapt(support), query).probabilities
    b = learner.predict(learner.adapt(other), query).probabilities
    assert torch.allclose(a, b[..., renamed], atol=1e-10)


def test_the_seed_s_sizes_are_the_defaults() -> None:
    config = CONFIGS["mmnet"][1]
    assert "key_dim" in config
    learner = MMNet(channels=1, image_size=28)
    assert learner.to_key.weight.shape == (512, 64)
    assert learner.context.forwards.hidden_size == 512
    assert MMNet().dim == 1600
