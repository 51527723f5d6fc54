"""What a support set must be, and what is made of it."""

from __future__ import annotations

import pytest
import torch

from models_zoo.episode import ABSENT, Prediction, Support, mask_absent, present_classes

IMAGES = torch.rand(2, 3, 1, 8, 8)
LABELS = torch.tensor([[0, 1, 1], [2, 0, 0]])
FIRST_TWO = torch.tensor([[True, True, False]] * 2)


def test_the_way_is_read_off_the_largest_label_in_use() -> None:
    assert Support.of(IMAGES, LABELS).way == 3
    assert Support.of(IMAGES, LABELS, FIRST_TWO).way == 3
    assert Support.of(IMAGES[:1], LABELS[:1]).way == 2
    assert Support.of(IMAGES, LABELS, way=7).way == 7


def test_class_mask_and_one_hot_tell_who_is_there() -> None:
    support = Support.of(IMAGES, torch.tensor([[0, 1, 2], [2, 1, 0]]), FIRST_TWO, way=4)
    assert support.class_mask.tolist() == [[True, True, False, False], [False, True, True, False]]
    assert support.one_hot().tolist() == [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
    ]
    assert support.one_hot(6).shape == (2, 3, 6)
    assert support.one_hot().dtype == IMAGES.dtype


def test_labels_of_padding_may_be_anything_and_end_in_range() -> None:
    wild = LABELS.masked_fill(~FIRST_TWO, -100)
    support = Support.of(IMAGES, wild, FIRST_TWO)
    assert support.way == 3
    assert support.labels.min() >= 0
    assert support.labels.max() < 3


@pytest.mark.parametrize(
    ("x", "labels", "mask", "way", "message"),
    [
        (IMAGES, LABELS[:, :2], None, None, "disagree"),
        (IMAGES[:1], LABELS, None, None, "disagree"),
        (IMAGES[:, :, 0, 0, 0], LABELS, None, None, "disagree"),
        (IMAGES, LABELS, torch.ones(2, 2, dtype=torch.bool), None, "mask"),
        (IMAGES, LABELS, torch.ones(2, 3), None, "mask"),
        (IMAGES, LABELS, torch.tensor([[True] * 3, [False] * 3]), None, "without"),
        (IMAGES, LABELS, None, 2, r"0\.\.1"),
        (IMAGES, LABELS - 1, None, 3, r"0\.\.2"),
    ],
)
def test_shapes_and_labels_that_disagree_are_refused(
    x: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    way: int | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        Support.of(x, labels, mask, way)


def test_absent_classes_get_no_probability() -> None:
    present = present_classes(LABELS, FIRST_TWO, 4)
    logits = mask_absent(torch.full((2, 5, 4), 30.0), present)
    probabilities = Prediction(logits).probabilities
    assert (probabilities.sum(-1) - 1).abs().max() < 1e-6
    assert (probabilities[:, :, 3] == 0).all()
    assert (probabilities[0, :, :2] == 0.5).all()
    assert (logits[1, :, 1] == ABSENT).all()


def test_the_absent_logit_survives_the_half_precisions_of_training() -> None:
    assert torch.tensor(ABSENT).to(torch.bfloat16).isfinite()
    assert torch.tensor([0.0, ABSENT]).to(torch.bfloat16).softmax(-1).tolist() == [1, 0]
