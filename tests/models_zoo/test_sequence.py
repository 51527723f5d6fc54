"""A masked support set as a sequence, by counting."""

from __future__ import annotations

import torch

from models_zoo.model_based.sequence import pick, places

MASK = torch.tensor([[True, True, False, True], [False, False, True, True]])


def test_places_count_the_real_examples_from_nought() -> None:
    found = places(MASK)
    for row, mask in zip(found.tolist(), MASK.tolist(), strict=True):
        real = [place for place, here in zip(row, mask, strict=True) if here]
        assert real == list(range(sum(mask)))


def test_pick_finds_the_example_at_a_place_and_nothing_beyond_the_ends() -> None:
    x = torch.randn(2, 4, 3)
    wanted = torch.tensor([[2, 0, 3, -1], [1, 0, 2, -1]])
    found = pick(MASK, wanted, x) @ x
    assert torch.equal(found[0, :2], x[0, [3, 0]])
    assert torch.equal(found[1, :2], x[1, [3, 2]])
    assert (found[:, 2:] == 0).all()
