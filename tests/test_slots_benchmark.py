"""`benchmarks.slots` counts the answers that change with the classes' numbers, and no others."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.slots import compare
from models_zoo.episode import Prediction, Support
from models_zoo.learner import Learner
from training.data.sampler import Episode


class Nearest(Learner):
    """The class of the nearest example; `liked` is added to the logits by their number."""

    def __init__(self, liked: list[float]) -> None:
        super().__init__()
        self.liked = torch.tensor(liked)

    def forward(self, support: Support, query: Tensor, _: Tensor | None = None) -> Prediction:
        near = -(query.flatten(2).unsqueeze(2) - support.x.flatten(2).unsqueeze(1)).abs().sum(-1)
        return Prediction(near @ support.one_hot() + self.liked)


def test_what_treats_all_classes_alike_changes_no_answer_and_a_favourite_does() -> None:
    values = torch.tensor([[[0.0, 1.0, 2.0]], [[2.0, 0.0, 1.0]]])  # of the examples, by class
    support = Support.of(values.reshape(2, 3, 1, 1, 1), torch.tensor([[0, 1, 2]] * 2))
    labels = torch.tensor([[2, 0, 1, 1], [0, 1, 2, 2]])
    near = values[:, 0].gather(1, labels).reshape(2, 4, 1, 1, 1)
    nobody = torch.zeros(0)
    episode = Episode(support, near, labels, nobody, nobody)
    order = torch.tensor([[1, 2, 0], [0, 1, 2]])
    assert compare(Nearest([0.0, 0.0, 0.0]), episode, order).tolist() == [0, 8, 8, 8]
    # Number 0 always wins: first the class 0, afterwards the class 2 of the first task.
    assert compare(Nearest([9.0, 0.0, 0.0]), episode, order).tolist() == [4, 2, 2, 8]
