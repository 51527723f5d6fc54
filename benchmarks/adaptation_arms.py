"""The same adaptation and meta-gradient, ours and the peers', for `benchmarks.adaptation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.episode import Support
from models_zoo.optimization.maml import MAML

RATE, HIDDEN, SIDE, LAYERS = 0.4, 64, 28, 4

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    tasks: int = 4
    way: int = 5
    shot: int = 1
    steps: int = 5
    queries: int = 15
    dtype: torch.dtype = torch.float32

    def learner(self) -> MAML:
        torch.manual_seed(0)
        learner = MAML(1, SIDE, HIDDEN, self.way, self.steps, RATE, learn_rates=False)
        return learner.to(self.dtype)

    def episode(self) -> tuple[Support, Tensor, Tensor]:
        """Made tasks whose classes can be told apart: support set, queries, targets."""
        torch.manual_seed(1)
        patterns = torch.rand(self.tasks, self.way, 1, SIDE, SIDE, dtype=self.dtype)

        def images(each: int) -> tuple[Tensor, Tensor]:
            labels = torch.arange(self.way).repeat(each).expand(self.tasks, -1)
            chosen = patterns.repeat(1, each, 1, 1, 1)
            return 0.6 * chosen + 0.4 * torch.rand_like(chosen), labels

        (x, labels), (query, targets) = images(self.shot), images(self.queries)
        return Support.of(x, labels.contiguous()), query, targets


class Network(nn.Module):
    """Finn's network as the peers take it: layers of PyTorch, normalised by the support set."""

    def __init__(self, initial: nn.ParameterDict) -> None:
        super().__init__()
        self.values = nn.ParameterDict({k: v.detach().clone() for k, v in initial.items()})

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        """Logits of images `[n, 1, H, W]`, by their own statistics or by those of a support set."""
        w = self.values
        for layer in range(LAYERS):
            kernel = w[f"kernel{layer}"].unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
            gain, shift = w[f"gain{layer}"][0], w[f"shift{layer}"][0]
            x = F.conv2d(x, kernel, stride=2, padding=1)
            if support is None:
                x = F.batch_norm(x, None, None, gain, shift, training=True, eps=1e-5).relu()
                continue
            support = F.conv2d(support, kernel, stride=2, padding=1)
            variance, mean = torch.var_mean(support, (0, 2, 3), correction=0)
            scale = gain * (variance + 1e-5).rsqrt()
            offset = (shift - mean * scale).view(-1, 1, 1)
            x, support = ((part * scale.view(-1, 1, 1) + offset).relu() for part in (x, support))
        logits: Tensor = x.mean((2, 3)) @ w["head"] + w["offset"]
        return logits


Arm = Callable[[], Gradients]
#: What a support set makes of the network: a function of images and support set.
Adapted = Callable[[Network, Tensor, Tensor], Iterator[Callable[..., Tensor]]]


def ours(case: Case) -> Arm:
    learner, (support, query, targets) = case.learner(), case.episode()

    def run() -> Gradients:
        learner.zero_grad()
        logits = learner(support, query).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        return {name: grad(value) for name, value in learner.initial.items()}

    return run


def peer(case: Case, adapted: Adapted) -> Arm:
    """Task by task, gradients summed: `adapted` yields what a support set made of the network."""
    network, (support, query, targets) = Network(case.learner().initial), case.episode()

    def run() -> Gradients:
        network.zero_grad()
        for x, labels, asked, wanted in zip(support.x, support.labels, query, targets, strict=True):
            for function in adapted(network, x, labels):
                loss = F.cross_entropy(function(asked, x), wanted) / case.tasks
                loss.backward()
        return {name: grad(value) for name, value in network.values.items()}

    return run


def learn2learn(case: Case) -> Arm:
    def adapted(network: Network, x: Tensor, labels: Tensor) -> Iterator[Callable[..., Tensor]]:
        weights = {name: value.clone() for name, value in network.named_parameters()}
        for _ in range(case.steps):
            loss = F.cross_entropy(torch.func.functional_call(network, weights, (x,)), labels)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: value - RATE * slope
                for (name, value), slope in zip(weights.items(), slopes, strict=True)
            }
        yield lambda *images: torch.func.functional_call(network, weights, images)

    return peer(case, adapted)


def higher(case: Case) -> Arm:
    import higher as library

    def adapted(network: Network, x: Tensor, labels: Tensor) -> Iterator[Callable[..., Tensor]]:
        optimizer = torch.optim.SGD(network.parameters(), RATE)
        with library.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (net, steps):
            for _ in range(case.steps):
                steps.step(F.cross_entropy(net(x), labels))
            yield net

    return peer(case, adapted)


def torchopt(case: Case) -> Arm:
    import torchopt as library

    def adapted(network: Network, x: Tensor, labels: Tensor) -> Iterator[Callable[..., Tensor]]:
        optimizer = library.MetaSGD(network, lr=RATE)
        before = library.extract_state_dict(network, by="reference")
        for _ in range(case.steps):
            optimizer.step(F.cross_entropy(network(x), labels))
        yield network
        library.recover_state_dict(network, before)

    return peer(case, adapted)


def grad(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad.clone()


#: Peers that are libraries, by the name that pip knows them by.
LIBRARIES = {"higher": higher, "torchopt": torchopt}


def arms(case: Case) -> dict[str, Arm]:
    """Those that can be had here; `LIBRARIES` only where they are installed."""
    found = {"ours": ours(case), "learn2learn": learn2learn(case)}
    for name, make in LIBRARIES.items():
        with suppress(ImportError):
            found[name] = make(case)
    return found
