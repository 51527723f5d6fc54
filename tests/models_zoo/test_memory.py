"""MM-Net's write controller against Eq. 4 of Cai et al. 2018 with the key vectors themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo.metric.memory import write_memory

DIM = 4


def naive(keys: Tensor, labels: list[int], slots: int) -> tuple[list[Tensor], list[int]]:
    """One task: keys `[N, D]` one after another into a list of (key, value) slots."""
    memory: list[Tensor] = []
    values: list[int] = []
    for key, label in zip(keys, labels, strict=True):
        if not memory:
            memory.append(key)
            values.append(label)
            continue
        similarity = [float(m @ key) for m in memory]
        nearest = similarity.index(max(similarity))
        if values[nearest] == label or len(memory) == slots:
            joined = memory[nearest] + key
            memory[nearest] = joined / joined.norm()
        else:
            memory.append(key)
            values.append(label)
    return memory, values


def tasks(batch: int, examples: int, way: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that cluster loosely by class, labels, and a mask with holes anywhere."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(way, (batch, examples), generator=generator)
    centres = torch.randn(way, DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, examples, DIM, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, examples, generator=generator) < 0.75
    mask[:, examples // 2] = True
    return centres[labels] + 0.7 * noise, labels, mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 100])
def test_the_memory_is_that_of_the_equation(slots: int, seed: int) -> None:
    keys, labels, mask = tasks(12, 9, 3, seed)
    memory, _, used, _ = write_memory(keys, labels, mask, slots)
    for task in range(12):
        kept = mask[task]
        expected, _ = naive(keys[task, kept], labels[task, kept].tolist(), slots)
        assert used[task] == len(expected)
        assert torch.allclose(memory[task, : len(expected)], torch.stack(expected), atol=1e-10)
        assert (memory[task, len(expected) :] == 0).all()


def test_the_cases_above_join_open_and_overflow() -> None:
    """The reference takes every branch, so that agreeing with it means something."""
    seen = set()
    for seed in range(4):
        keys, labels, mask = tasks(12, 9, 3, seed)
        for task in range(12):
            kept = mask[task]
            chosen = labels[task, kept].tolist()
            memory, values = naive(keys[task, kept], chosen, 100)
            seen.add("joined" if len(memory) < len(chosen) else "each its own")
            seen.add("two slots of a class" if len(set(values)) < len(values) else "one each")
            if len(memory) > 3:
                seen.add("overflow")
    assert seen == {"joined", "each its own", "two slots of a class", "one each", "overflow"}


def test_small_cases_by_hand() -> None:
    e1, e2 = torch.eye(2, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)

    def write(first: Tensor, second: Tensor, labels: list[int], slots: int = 4) -> Tensor:
        memory, _, used, _ = write_memory(
            torch.stack([first, second])[None], torch.tensor([labels]), mask, slots
        )
        return memory[0, : int(used)]

    half = 0.5**0.5
    assert torch.allclose(write(e1, e2, [0, 0]), torch.tensor([[half, half]]).double())
    assert torch.allclose(
        write(3 * e1, 2 * e2, [0, 1]), torch.diag(torch.tensor([3.0, 2.0]).double())
    )
    assert torch.allclose(write(e1, e2, [0, 1], slots=1), torch.tensor([[half, half]]).double())
    assert torch.allclose(write(e1, 5 * e1, [2, 2]), torch.tensor([[1.0, 0.0]]).double())


def test_masked_examples_leave_the_memory_as_it_is() -> None:
    keys, labels, mask = tasks(6, 10, 3, 7)
    memory, _, used, _ = write_memory(keys, labels, mask, 8)
    wild = torch.where(mask.unsqueeze(-1), keys, 1e3 * torch.randn_like(keys))
    again, _, same, _ = write_memory(wild, labels.masked_fill(~mask, 0), mask, 8)
    assert torch.equal(used, same)
    assert torch.allclose(memory, again, atol=1e-10)


@pytest.mark.parametrize("slots", [2, 9])
def test_gradients_are_those_of_finite_differences(slots: int) -> None:
    keys, labels, mask = tasks(3, 6, 2, 11)
    assert torch.autograd.gradcheck(
        lambda k: write_memory(k, labels, mask, slots)[0], keys.requires_grad_(), atol=1e-6
    )
