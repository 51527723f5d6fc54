"""The losses, added up query by query from the papers' equations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.episode import ABSENT, Prediction, Support, TaskState
from models_zoo.learner import Learner
from models_zoo.metric.dynamic import DynamicFewShot
from models_zoo.metric.stanet import STANet
from training.data.sampler import IGNORE, Episode, EpisodeSampler
from training.data.store import PackedStore
from training.objectives import build_objective
from training.objectives.base_classes import BaseClassLoss
from training.objectives.cutmix import cut_mix, whole
from training.objectives.episode import EpisodeLoss, accuracy
from training.objectives.margin import MarginLoss
from training.objectives.matching import MatchingLoss
from training.objectives.semantic import SemanticLoss
from training.objectives.sequence import SequenceLoss
from training.objectives.verification import VerificationLoss
from training.recipe import ObjectiveConfig


class Told(Learner):
    """Answers what it was given: scores of the support examples `[B, Q, N]`."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        return {"hot": support.one_hot(), "mask": support.mask}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        scores = self.scores.masked_fill(~state["mask"].unsqueeze(1), ABSENT)
        weights = scores.log_softmax(-1)
        mine = state["hot"].transpose(1, 2).unsqueeze(1) > 0
        logits = weights.unsqueeze(2).masked_fill(~mine, ABSENT).logsumexp(-1)
        return Prediction(logits, task_attention=weights.exp().unsqueeze(1))


def sampler(groups: tuple[str, ...] = ("a", "b", "a", "c", "b"), side: int = 8) -> EpisodeSampler:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 1, side, side), dtype=np.uint8)
    store = PackedStore.pack(
        (str(i), group, images)
        for i, (group, images) in enumerate(zip(groups, pixels, strict=True))
    )
    return EpisodeSampler(store, rotations="classes", seed=4)


def mixed_episode() -> Episode:
    return sampler().sample(3, [3, 2, 3], [2, 3, 1], 2)


def real_queries(episode: Episode) -> list[tuple[int, int, int]]:
    return [
        (b, q, int(y))
        for b, row in enumerate(episode.targets)
        for q, y in enumerate(row)
        if y != IGNORE
    ]


def scores_for(episode: Episode) -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(*episode.targets.shape, episode.support.labels.shape[1])


def weights_of(scores: Tensor, episode: Episode, b: int, q: int) -> list[float]:
    """Softmax over the real support examples; padding weighs nothing."""
    powers = [
        math.exp(s) if real else 0.0
        for s, real in zip(scores[b, q].tolist(), episode.support.mask[b].tolist(), strict=True)
    ]
    return [p / sum(powers) for p in powers]


def test_matching_is_equation_9_with_each_task_s_positives_averaged() -> None:
    episode = mixed_episode()
    scores = scores_for(episode)
    losses = []
    for b, q, target in real_queries(episode):
        weights = weights_of(scores, episode, b, q)
        positive = [
            -math.log(w)
            for w, y, real in zip(
                weights, episode.support.labels[b], episode.support.mask[b], strict=True
            )
            if real and y == target
        ]
        losses.append(sum(positive) / len(positive))
    found, _ = MatchingLoss()(Told(scores), episode)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_episode_loss_is_the_mean_log_loss_of_the_real_queries() -> None:
    episode = mixed_episode()
    scores = scores_for(episode)
    losses, right = [], []
    for b, q, target in real_queries(episode):
        weights = weights_of(scores, episode, b, q)
        by_class = [0.0] * 3
        for w, y in zip(weights, episode.support.labels[b].tolist(), strict=True):
            by_class[y] += w
        losses.append(-math.log(by_class[target]))
        right.append(by_class[target] == max(by_class))
    found, metrics = EpisodeLoss()(Told(scores), episode)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(sum(right) / len(right))


def test_with_one_shot_matching_is_the_episode_loss() -> None:
    episode = sampler().sample(4, [3, 2, 4, 4], 1, 3)
    learner = Told(scores_for(episode))
    a, b = MatchingLoss()(learner, episode), EpisodeLoss()(learner, episode)
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-5)
    assert a[1]["accuracy"] == b[1]["accuracy"]


def test_matching_learns_from_a_query_that_is_surely_wrong() -> None:
    """The gradient on a positive's score is its weight - 1, however small the weight."""
    support = Support.of(torch.rand(1, 2, 1, 8, 8), torch.tensor([[0, 1]]))
    first = torch.tensor([[0]])
    episode = Episode(support, torch.rand(1, 1, 1, 8, 8), first, first, first)
    learner = Told(torch.tensor([[[-25.0, 25.0]]]))
    loss, _ = MatchingLoss()(learner, episode)
    loss.backward()
    assert float(loss) == pytest.approx(50, rel=1e-4)
    assert learner.scores.grad is not None
    assert learner.scores.grad[0, 0].tolist() == pytest.approx([-1, 1], rel=1e-4)


def test_the_margin_loss_is_a_hinge_on_the_nearest_of_another_class() -> None:
    episode = mixed_episode()
    scores = scores_for(episode)
    logits = (
        Told(scores).predict(Told(scores).adapt(episode.support), episode.query).logits
    )  # of absent classes too: far below
    losses = []
    for b, q, target in real_queries(episode):
        row = logits[b, q].tolist()
        others = [score for c, score in enumerate(row) if c != target]
        losses.append(max(0.0, max(others) - row[target] + 0.7))
    assert 0 < sum(loss == 0 for loss in losses) < len(losses)
    objective = build_objective(ObjectiveConfig(name="margin", margin=0.7), Told(scores), sampler())
    found, metrics = objective(Told(scores), episode)
    assert isinstance(objective, MarginLoss)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["accuracy"] == EpisodeLoss()(Told(scores), episode)[1]["accuracy"]


@pytest.mark.parametrize("different", [1.0, 1.5, 100.0])
@pytest.mark.parametrize("name", ["verification", "relation"])
def test_every_query_and_class_are_a_pair_of_one_class_or_of_two(
    name: str, different: float
) -> None:
    """Koch et al., section 3.2, and Sung et al., Eq. 2, pair by pair."""
    episode = mixed_episode()
    learner = Told(scores_for(episode))
    with torch.no_grad():
        logits = learner(episode.support, episode.query).logits.tolist()
    losses, weights = [], []
    for b, q, target in real_queries(episode):
        present = [k for k in range(3) if episode.support.class_mask[b, k]]
        for k in present:
            p = 1 / (1 + math.exp(-logits[b][q][k]))
            y = float(k == target)
            squared = (p - y) ** 2
            log_loss = -math.log(p if y else 1 - p)
            losses.append(squared if name == "relation" else log_loss)
            weights.append(1.0 if y else min(1.0, different / (len(present) - 1)))
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    config = ObjectiveConfig(name=name, different=different)  # type: ignore[arg-type]
    objective = build_objective(config, learner, sampler())
    assert isinstance(objective, VerificationLoss)
    found, metrics = objective(learner, episode)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == EpisodeLoss()(learner, episode)[1]["accuracy"]
    found.backward()
    assert learner.scores.grad is not None
    assert learner.scores.grad.isfinite().all()


def dynamic(base_classes: int = 5) -> DynamicFewShot:
    torch.manual_seed(0)
    return DynamicFewShot(base_classes, channels=1, image_size=16, hidden=6).eval()


def test_queries_are_told_from_new_classes_and_from_the_other_base_classes() -> None:
    """Of 20 classes (5, turned) the first 5 have base weights; a task's own ones are hidden."""
    episode = sampler(side=16).sample(3, [3, 2, 3], [2, 3, 1], 2)
    learner = dynamic()
    config = ObjectiveConfig(name="base_classes", weight=0.3)
    objective = build_objective(config, learner, sampler())
    task_losses, base_losses, hidden_somewhere = [], [], False
    with torch.no_grad():
        found, metrics = objective(learner, episode)
        scale = learner.log_scale.exp()
        base = F.normalize(learner.base, dim=-1)
        for b, q, target in real_queries(episode):
            own = set(episode.support_classes[b].tolist())
            others = [k for k in range(5) if k not in own]
            hidden_somewhere |= len(others) < 5
            bars = torch.tensor([[k in own for k in range(5)]])
            kept = episode.support.mask[b]
            support = Support.of(
                learner.encode(episode.support.x[b, kept])[None],
                episode.support.labels[b, kept][None],
                way=3,
            )
            z = F.normalize(learner.encode(episode.query[b, q][None]), dim=-1)
            weights = learner.adapt_hiding(support, bars)["weights"][0]
            present = sorted(set(support.labels[0].tolist()))
            scores = scale * torch.cat([weights[present], base[others]]) @ z[0]
            task_losses.append(-float(scores.log_softmax(0)[present.index(target)]))
        for images, classes in (
            (episode.support.x, episode.support_classes),
            (episode.query, episode.query_classes),
        ):
            for image, label in zip(images.flatten(0, 1), classes.flatten().tolist(), strict=True):
                if 0 <= label < 5:
                    z = F.normalize(learner.encode(image[None]), dim=-1)[0]
                    base_losses.append(-float((scale * base @ z).log_softmax(0)[label]))
    assert hidden_somewhere
    assert 0 < len(base_losses) < len(task_losses) * 2
    task, known = sum(task_losses) / len(task_losses), sum(base_losses) / len(base_losses)
    assert float(metrics["task_loss"]) == pytest.approx(task, rel=1e-4)
    assert float(metrics["base_loss"]) == pytest.approx(known, rel=1e-4)
    assert float(found) == pytest.approx(task + 0.3 * known, rel=1e-4)


def test_a_step_without_base_classes_has_a_loss() -> None:
    episode = sampler(side=16).sample(1, 3, 1, 2)
    turned = Episode(
        episode.support,
        episode.query,
        episode.targets,
        episode.support_classes + 5,
        episode.query_classes + 5,
    )
    found, metrics = BaseClassLoss(dynamic(), sampler(), 0.5)(dynamic(), turned)
    assert found.isfinite()
    assert float(metrics["base_loss"]) == 0


def test_base_classes_must_be_in_the_training_data() -> None:
    with pytest.raises(ValueError, match="21 base classes, but the training data have 20"):
        BaseClassLoss(dynamic(21), sampler(), 0.5)


class OnTheWay(Learner):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def presented(self, support: Support) -> Tensor:
        return self.logits


def test_the_sequence_loss_is_that_of_every_image_before_its_label_is_told() -> None:
    support = mixed_episode().support
    torch.manual_seed(0)
    logits = torch.randn(*support.labels.shape, support.way)
    losses, second = [], []
    for b, row in enumerate(support.labels.tolist()):
        seen: list[int] = []
        for t, label in enumerate(row):
            if not support.mask[b, t]:
                continue
            losses.append(-math.log(float(logits[b, t].softmax(0)[label])))
            if seen.count(label) == 1:
                second.append(int(logits[b, t].argmax()) == label)
            seen.append(label)
    found, metrics = SequenceLoss()(OnTheWay(logits), mixed_episode())
    assert len(losses) < support.mask.numel()
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(sum(second) / len(second))


def test_accuracy_leaves_padding_out() -> None:
    logits = torch.tensor(
        [[[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [9.0, 1.0], [9, 1.0]]]
    )
    targets = torch.tensor([[0, 1, IGNORE], [1, IGNORE, IGNORE]])
    assert float(accuracy(logits, targets)) == pytest.approx(2 / 3)


def stanet() -> STANet:
    torch.manual_seed(0)
    return STANet(1, 8, "conv4-6", max_way=4, layers=1, key_dim=4, value_dim=4).eval()


@pytest.mark.parametrize("labels", ["class", "group", "both"])
def test_the_semantic_loss_is_equations_11_to_13(labels: str) -> None:
    episode = mixed_episode()
    learner, draw = stanet(), sampler()
    config = ObjectiveConfig(name="semantic", weight=0.3, labels=labels)  # type: ignore[arg-type]
    objective = build_objective(config, learner, draw)
    assert isinstance(objective, SemanticLoss)
    parts = {
        "class": {"class": slice(0, 20)},
        "group": {"group": slice(0, 12)},
        "both": {"class": slice(0, 20), "group": slice(20, 32)},
    }[labels]
    assert objective.output.weight.shape == (max(part.stop for part in parts.values()), 6)

    def group_of(label: int) -> int:
        turn, base = divmod(label, 5)
        return turn * 3 + "abc".index(("a", "b", "a", "c", "b")[base])

    losses = []
    with torch.no_grad():
        found, metrics = objective(learner, episode)
        for images, classes in (
            (episode.support.x, episode.support_classes),
            (episode.query, episode.query_classes),
        ):
            for image, label in zip(images.flatten(0, 1), classes.flatten().tolist(), strict=True):
                if label == IGNORE:
                    continue
                pooled = learner.encode(image[None])[0].mean((1, 2))
                logits = objective.output.weight @ pooled + objective.output.bias  # Eq. 11
                losses.append(0.0)
                for kind, part in parts.items():
                    target = label if kind == "class" else group_of(label)
                    losses[-1] -= math.log(float(logits[part].softmax(0)[target]))
        task = float(EpisodeLoss()(learner, episode)[0])
    semantic = sum(losses) / len(losses)  # Eq. 12
    assert len(losses) == 3 * 2 + 2 * 3 + 3 + 2 * (3 + 2 + 3)
    assert float(metrics["semantic_loss"]) == pytest.approx(semantic, rel=1e-4)
    assert float(metrics["task_loss"]) == pytest.approx(task, rel=1e-4)
    assert float(found) == pytest.approx(task + 0.3 * semantic, rel=1e-4)  # Eq. 13


def test_a_mixed_query_has_a_rectangle_of_another_one_of_its_task() -> None:
    images = torch.arange(10.0).view(2, 5, 1, 1, 1).expand(2, 5, 3, 6, 8)
    shares = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = cut_mix(images)
        shares.add(mixed.share)
        assert sorted(mixed.order.tolist()) == list(range(5))
        partner = images[:, mixed.order]
        foreign = mixed.images != images
        assert torch.equal(mixed.images[foreign], partner[foreign])
        [moved] = (mixed.order != torch.arange(5)).nonzero()[:1].tolist()
        inside = foreign[0, moved[0], 0]
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None])
        assert 1 - float(inside.float().mean()) == pytest.approx(mixed.share)
    assert len(shares) > 5
    assert whole(images).share == 1


def test_mixed_queries_pay_for_both_labels_by_their_areas() -> None:
    episode, learner = mixed_episode(), stanet()
    objective = SemanticLoss(learner, sampler(), 0.3, "both", cutmix=1.0)
    torch.manual_seed(3)
    found, _ = objective(learner, episode)
    torch.manual_seed(3)
    torch.rand(())  # whether to mix
    mixed = cut_mix(episode.query)
    assert 0 < mixed.share < 1
    objective.cutmix = 0.0
    own = replace(episode, query=mixed.images)
    others = replace(
        own,
        targets=own.targets[:, mixed.order],
        query_classes=own.query_classes[:, mixed.order],
    )
    wanted = sum(
        share * float(objective(learner, one)[0])
        for share, one in ((mixed.share, own), (1 - mixed.share, others))
    )
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_the_semantic_branch_is_no_part_of_the_learner() -> None:
    learner = stanet()
    names = set(learner.state_dict())
    objective = SemanticLoss(learner, sampler(), 0.5)
    objective(learner, mixed_episode())
    assert set(learner.state_dict()) == names
    assert {name for name, _ in objective.named_parameters()} == {"output.weight", "output.bias"}


def test_padding_decides_nothing() -> None:
    """Mixed ways and shots in one batch: what fills the gaps must not reach the loss."""
    episode = mixed_episode()
    support = episode.support
    wild = torch.where(
        support.mask[..., None, None, None], support.x, 9 * torch.rand_like(support.x)
    )
    noisy = (episode.targets == IGNORE)[..., None, None, None]
    other = Episode(
        support.with_x(wild),
        torch.where(noisy, 9 * torch.rand_like(episode.query), episode.query),
        episode.targets,
        episode.support_classes,
        episode.query_classes,
    )
    learner = stanet()
    for objective in (
        EpisodeLoss(),
        MarginLoss(1),
        MatchingLoss(),
        SemanticLoss(learner, sampler(), 0.5),
        VerificationLoss("cross_entropy"),
        VerificationLoss("squared"),
    ):
        with torch.no_grad():
            a, b = objective(learner, episode)[0], objective(learner, other)[0]
        assert torch.allclose(a, b, rtol=1e-5)
