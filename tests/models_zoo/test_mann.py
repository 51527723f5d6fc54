"""MANN against its paper's equations, one task and one image at a time, with lists."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import Support
from models_zoo.learner import Learner
from models_zoo.model_based.mann import MANN
from models_zoo.model_based.sequence import occasions
from tests.models_zoo.making import MIXED, alone, images, make, support_of


@dataclass
class Naive:
    """One task's run; `show` gives the logits for an image and the weights it was read with."""

    learner: MANN
    memory: list[Tensor] = field(default_factory=list)
    usage: list[float] = field(default_factory=list)
    written: list[dict[int, float]] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        own = self.learner
        zeros = torch.zeros(own.controller).double()
        self.h, self.c = zeros, zeros
        self.reads = torch.zeros(own.heads, own.width).double()
        self.label = torch.zeros(own.max_way or 0).double()
        self.memory = [torch.full((own.width,), 1e-6).double() for _ in range(own.slots)]
        self.usage = [0.0] * own.slots
        self.written = [{} for _ in range(own.slots)]

    def look(self, x: Tensor) -> tuple[Tensor, ...]:
        own = self.learner
        inputs = torch.cat([x, self.label, self.reads.flatten(), self.h])
        i, f, g, o = (own.gates.weight @ inputs + own.gates.bias).chunk(4)
        c = torch.sigmoid(f) * self.c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        keys = torch.tanh(own.key.weight @ h).chunk(own.heads)
        strengths, gates = (own.scalars.weight @ h + own.scalars.bias).chunk(2)
        focus, reads = [], []
        for key, strength in zip(keys, strengths, strict=True):
            beta = 1 + torch.log(1 + torch.exp(strength))
            cosines = torch.stack([F.cosine_similarity(key, m, dim=0) for m in self.memory])
            focus.append((beta * cosines).softmax(0))
            reads.append(sum(w * m for w, m in zip(focus[-1], self.memory, strict=True)))
        logits = own.output.weight @ torch.cat([h, *reads]) + own.output.bias
        return logits, h, c, focus, reads, torch.sigmoid(gates)

    def show(self, x: Tensor, label: int) -> Tensor:
        """Steps of the paper's time: what is written at t + 1, of x_t and y_t, is written here."""
        own = self.learner
        logits, h, c, focus, reads, gates = self.look(x)
        told = F.one_hot(torch.tensor(label), own.max_way or 0).double()
        adds = torch.tanh(own.add.weight @ torch.cat([h, told])).chunk(own.heads)
        for i in range(own.slots):  # w^u_t; the writes of time t are in it already
            self.usage[i] += float(sum(w[i] for w in focus))
        least = sorted(range(own.slots), key=lambda i: (self.usage[i], i))[: own.heads]
        weights = []
        for number, gate in enumerate(gates):
            lru = F.one_hot(torch.tensor(least[number]), own.slots).double()
            weights.append(gate * focus[number] + (1 - gate) * lru)
        self.memory[least[0]] = torch.zeros(own.width).double()
        self.written[least[0]] = {}
        for i in range(own.slots):
            for w, add in zip(weights, adds, strict=True):
                self.memory[i] = self.memory[i] + w[i] * add
            amount = float(sum(w[i] for w in weights))
            self.written[i][self.seen] = amount
            self.usage[i] = own.decay * self.usage[i] + amount
        self.h, self.c, self.reads, self.label = h, c, torch.stack(reads), told
        self.seen += 1
        return logits

    def attention(self, x: Tensor) -> Tensor:
        focus = sum(self.look(x)[3]) / self.learner.heads
        weights = torch.zeros(self.seen).double()
        for i, amounts in enumerate(self.written):
            for example, amount in amounts.items():
                weights[example] += focus[i] * amount
        return weights / weights.sum()


def mann() -> MANN:
    learner = make("mann")
    assert isinstance(learner, MANN)
    return learner


@torch.no_grad()
def test_answers_are_those_of_the_equations() -> None:
    learner = mann()
    support = support_of(MIXED, 6, way=5)
    query = torch.randn(len(MIXED), 3, 6, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        kept, present = support.mask[task], support.class_mask[task]
        naive = Naive(learner)
        for x, y in zip(support.x[task, kept], support.labels[task, kept].tolist(), strict=True):
            naive.show(x, y)
        for number, x in enumerate(query[task]):
            logits = naive.look(x)[0]
            assert torch.allclose(found.logits[task, number, present], logits[present], atol=1e-6)
            got = found.task_attention[task, 0, number, kept]
            assert torch.allclose(got, naive.attention(x), atol=1e-5)


@torch.no_grad()
def test_slots_are_used_again_when_all_have_been() -> None:
    """Longer than the memory: what was used least goes first."""
    learner = mann()
    labels = [i % 3 for i in range(9)]
    assert learner.slots < len(labels)
    support = support_of([labels], 6, way=5)
    naive = Naive(learner)
    for x, y in zip(support.x[0], labels, strict=True):
        naive.show(x, y)
    state = learner.adapt(support)
    assert torch.allclose(state["memory"][0], torch.stack(naive.memory), atol=1e-6)


@torch.no_grad()
def test_what_is_presented_is_answered_as_a_query_after_all_before_it() -> None:
    learner = mann()
    support = support_of([(0, 1, None, 2, 1, 0), (1, 0, 1, None, None, None)], 2, 16, 16, way=5)
    answers = learner.presented(support)
    encoded = support.with_x(learner.encode_batch(support.x))
    for task in range(2):
        single = alone(encoded, task)
        kept = support.mask[task].nonzero().flatten().tolist()
        for number, place in enumerate(kept):
            if number == 0:
                continue
            before = Support.of(single.x[:, :number], single.labels[:, :number], way=5)
            state = learner.adapt(before) | {"class_mask": support.class_mask[task][None]}
            expected = learner.predict(state, single.x[:, number : number + 1])
            assert torch.allclose(answers[task, place], expected.logits[0, 0], atol=1e-9)


@torch.no_grad()
def test_a_label_comes_one_step_late() -> None:
    """The answer to an image knows the labels before it, and not its own."""
    learner = mann()
    support = support_of([(0, 1, 2, 1)], 2, 16, 16)
    other = Support.of(support.x, torch.tensor([[0, 1, 0, 1]]), way=3)
    other = Support(other.x, other.labels, other.mask, support.class_mask)
    a, b = learner.presented(support), learner.presented(other)
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3])


def test_learners_that_do_not_answer_on_the_way_say_so() -> None:
    with pytest.raises(NotImplementedError, match="Learner does not answer on the way"):
        Learner().presented(support_of([(0, 1)], 2, 16, 16))


def test_the_gradient_is_the_finite_difference() -> None:
    learner = mann()
    support = support_of([(0, 1, None, 0), (2, 0, 1, None)], 6, seed=3)

    def answer(x: Tensor) -> Tensor:
        state = learner.adapt(support.with_x(x))
        return learner.predict(state, x[:, :2]).probabilities

    x = support.x.clamp(max=1).requires_grad_()
    assert torch.autograd.gradcheck(answer, (x,), atol=1e-5)


def test_occasions_count_the_examples_of_the_same_class() -> None:
    labels = torch.tensor([[0, 1, 0, 0, 1, 0]])
    mask = torch.tensor([[True, True, True, False, True, True]])
    assert occasions(labels, mask).tolist() == [[0, 0, 1, -1, 1, 2]]


def test_encoding_keeps_the_map() -> None:
    assert mann().encode(images(2).double()).shape == (2, 6)
