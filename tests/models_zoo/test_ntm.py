"""The NTM memory against its equations, slot by slot and head by head."""

from __future__ import annotations

import math

import torch

from models_zoo.model_based import ntm

B, M, W, H = 2, 5, 3, 2


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weights = torch.rand(B, H, M, dtype=torch.float64).softmax(-1)
    return torch.randn(B, M, W).double(), weights, torch.randn(B, H, W).double()


def test_content_addressing_is_a_softmax_of_cosines_by_strength() -> None:
    memory, _, keys = drawn()
    strength = torch.tensor([[1.0, 4.0], [0.5, 9.0]]).double()
    found = ntm.address(memory, keys, strength)
    for b in range(B):
        for h in range(H):
            k, powers = keys[b, h], []
            for m in memory[b]:
                cosine = float(k @ m) / math.sqrt(float(k @ k) * float(m @ m))
                powers.append(math.exp(float(strength[b, h]) * cosine))
            expected = torch.tensor([p / sum(powers) for p in powers]).double()
            assert torch.allclose(found[b, h], expected, atol=1e-7)


def test_read_erase_and_add_are_those_of_the_equations() -> None:
    memory, weights, vectors = drawn()
    erasing = vectors.sigmoid()
    reads = ntm.read(memory, weights)
    erased = ntm.erase(memory, weights, erasing)
    added = ntm.add(memory, weights, vectors)
    for b in range(B):
        for h in range(H):
            expected = sum(float(weights[b, h, i]) * memory[b, i] for i in range(M))
            assert torch.allclose(reads[b, h], torch.as_tensor(expected))
        for i in range(M):
            kept, sum_ = memory[b, i].clone(), memory[b, i].clone()
            for h in range(H):
                w = float(weights[b, h, i])
                kept = kept * (1 - w * erasing[b, h])
                sum_ = sum_ + w * vectors[b, h]
            assert torch.allclose(erased[b, i], kept)
            assert torch.allclose(added[b, i], sum_)


def test_a_slot_that_is_wholly_erased_is_empty_and_the_others_stay() -> None:
    memory, _, _ = drawn()
    one = torch.zeros(B, 1, M).double()
    one[:, 0, 2] = 1
    found = ntm.erase(memory, one, torch.ones(B, 1, W).double())
    assert (found[:, 2] == 0).all()
    others = torch.arange(M) != 2
    assert torch.equal(found[:, others], memory[:, others])


def test_gradients_are_those_of_finite_differences() -> None:
    memory, weights, vectors = drawn()
    strength = torch.full((B, H), 2.0).double()

    def through(memory: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        focus = ntm.address(memory, vectors, strength)
        memory = ntm.add(ntm.erase(memory, weights, vectors.sigmoid()), focus, vectors)
        return ntm.read(memory, focus)

    assert torch.autograd.gradcheck(
        through, (memory.requires_grad_(), vectors.requires_grad_()), atol=1e-6
    )
