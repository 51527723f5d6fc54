"""Accuracies by hand: mean, interval, and a learner left as it was found."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner
from training.data.sampler import Episode, EpisodeSampler
from training.data.store import DataError
from training.evaluate import evaluate, rounded_down

#: Right answers among four queries, task by task.
RIGHT = [4, 1, 0, 3, 3, 2, 4]
EXPECTED = [right / 4 for right in RIGHT]


class Script(EpisodeSampler):
    """Tasks whose query pixels say which answer the learner below shall give."""

    def __init__(self) -> None:
        self.done = 0
        self.asked: list[tuple[int, object, object, int]] = []

    def sample(
        self, tasks: int, way: int | list[int], shot: int | list[int], queries: int
    ) -> Episode:
        self.asked.append((tasks, way, shot, queries))
        targets = torch.tensor([0, 0, 1, 1]).expand(tasks, -1)
        rights = torch.tensor(RIGHT[self.done : self.done + tasks])
        answers = torch.where(torch.arange(4) < rights[:, None], targets, 1 - targets)
        self.done += tasks
        support = Support.of(torch.zeros(tasks, 2, 1), torch.tensor([[0, 1]]).expand(tasks, -1))
        return Episode(support, answers[..., None].float(), targets, targets, targets)


class Obedient(Learner):
    encodes = False

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.modes: list[bool] = []

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        assert not torch.is_grad_enabled()
        self.modes.append(self.training or self.norm.training)
        return {}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        return Prediction(torch.nn.functional.one_hot(query[..., 0].long(), 2).float())


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_mean_and_interval_are_over_tasks(batch: int) -> None:
    score = evaluate(Obedient(), Script(), tasks=7, way=2, shot=1, queries=2, batch=batch)
    assert score.tasks == 7
    assert score.mean == pytest.approx(sum(EXPECTED) / 7)
    assert score.ci95 == pytest.approx(1.96 * statistics.stdev(EXPECTED) / 7**0.5)


class Wavering(Obedient):
    """Its answers come with these probabilities of the second class, one after another."""

    shares = torch.linspace(0.02, 0.9, 28, dtype=torch.float64)
    told = 0

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        start, self.told = self.told, self.told + query[..., 0].numel()
        second = self.shares[start : self.told].view(query.shape[:2])
        return Prediction(torch.stack([1 - second, second], -1).log())


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_one_answer_in_twenty_is_less_confident(batch: int) -> None:
    score = evaluate(Wavering(), Script(), tasks=7, way=2, shot=1, queries=2, batch=batch)
    confidences = sorted(max(share, 1 - share) for share in Wavering.shares.tolist())
    below = sum(confidence < score.confidence_p5 for confidence in confidences)
    assert below == 2  # of 28: the least two lie below 5%, which falls between the second and third
    assert confidences[1] < score.confidence_p5 < confidences[2]


@pytest.mark.parametrize(
    ("confidence", "told"),
    [(0.9427568, 0.942756), (0.99999951, 0.999999), (1.0, 0.999999), (0.25, 0.25)],
)
def test_the_least_usual_confidence_is_rounded_down_and_never_to_one(
    confidence: float, told: float
) -> None:
    assert rounded_down(confidence) == told


def test_exactly_the_tasks_asked_for_are_drawn_and_told() -> None:
    script, told = Script(), []
    evaluate(Obedient(), script, tasks=7, way=2, shot=1, queries=2, batch=3, on_batch=told.append)
    assert script.asked == [(3, 2, 1, 2), (3, 2, 1, 2), (1, 2, 1, 2)]
    assert told == [3, 3, 1]


def test_one_task_has_no_interval() -> None:
    score = evaluate(Obedient(), Script(), tasks=1, way=2, shot=1, queries=2)
    assert (score.mean, score.ci95) == (1.0, 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_learner_is_asked_in_evaluation_mode_and_given_back_as_it_was(training: bool) -> None:
    learner = Obedient().train(training)
    evaluate(learner, Script(), tasks=7, way=2, shot=1, queries=2, batch=4)
    assert learner.modes == [False, False]
    assert learner.training is learner.norm.training is training


def test_the_mode_comes_back_after_a_fault_too() -> None:
    class Poor(Script):
        def sample(self, *_: object) -> Episode:  # type: ignore[override]
            raise DataError("too few classes")

    learner = Obedient().train()
    with pytest.raises(DataError):
        evaluate(learner, Poor(), tasks=2, way=2, shot=1, queries=2)
    assert learner.training


class Shown(EpisodeSampler):
    """One sequence for each task; its images say what the learner below answers to them."""

    LABELS = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0]])
    ANSWERS = torch.tensor([[0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0]])

    def __init__(self) -> None:
        pass

    def sample(
        self, tasks: int, way: int | list[int], shot: int | list[int], queries: int
    ) -> Episode:
        assert (tasks, way, shot, queries) == (2, 2, 3, 0)
        support = Support.of(self.ANSWERS.unsqueeze(-1).float(), self.LABELS)
        return Episode(support, torch.zeros(2, 0, 1), *[torch.zeros(2, 0).long()] * 3)


class OnTheWay(Learner):
    def presented(self, support: Support) -> Tensor:
        return torch.nn.functional.one_hot(support.x[..., 0].long(), 2).float()


@pytest.mark.parametrize("presentation", [1, 2, 3])
def test_a_presentation_is_the_kth_image_of_every_class(presentation: int) -> None:
    expected = []
    for labels, answers in zip(Shown.LABELS.tolist(), Shown.ANSWERS.tolist(), strict=True):
        places = [
            [i for i, label in enumerate(labels) if label == c][presentation - 1] for c in (0, 1)
        ]
        expected.append(sum(answers[i] == labels[i] for i in places) / 2)
    score = evaluate(
        OnTheWay(), Shown(), tasks=2, way=2, shot=3, queries=5, presentation=presentation
    )
    assert score.mean == pytest.approx(sum(expected) / 2)


class Crowd(Obedient):
    """Right where the query has company."""

    transductive = True

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        alone = query.shape[1] == 1
        return Prediction(super().predict(state, 1 - query if alone else query).logits)


def test_queries_kept_apart_have_no_company() -> None:
    options = {"tasks": 7, "way": 2, "shot": 1, "queries": 2}
    together = evaluate(Crowd(), Script(), **options)
    apart = evaluate(Crowd(), Script(), apart=True, **options)
    assert apart.mean == pytest.approx(1 - together.mean)
    plain = evaluate(Obedient(), Script(), apart=True, **options)
    assert plain == together
