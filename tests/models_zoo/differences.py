"""Gradients beside central finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models_zoo.optimization.inner_loop import InnerLoop
from models_zoo.optimization.network import Slope

#: A ReLU that turns within a step makes the difference jump; none turns within all of these.
STEPS = (1e-6, 1e-7, 1e-8)


def check_gradient(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
    """Autograd's gradient of a loss by each tensor, against the difference along one direction."""
    torch.manual_seed(2)
    for parameter, d in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction = torch.randn_like(parameter)
        expected = (d * direction).sum()
        assert d.any()
        found = (difference(loss, parameter, step * direction) / step for step in STEPS)
        assert any(torch.allclose(slope, expected, rtol=1e-5, atol=1e-8) for slope in found)


@torch.no_grad()
def difference(loss: Callable[[], Tensor], parameter: Tensor, by: Tensor) -> Tensor:
    """Half of what the loss gains from `parameter - by` to `parameter + by`."""
    kept = parameter.clone()
    parameter.copy_(kept + by)
    above = loss()
    parameter.copy_(kept - by)
    below = loss()
    parameter.copy_(kept)
    return (above - below) / 2


@contextmanager
def slopes_held(learner: InnerLoop, adapt: Callable[[], object]) -> Iterator[None]:
    """Within it, the steps of `adapt` see the losses and gradients that they see now.

    A first-order meta-gradient takes those for constants: it is the derivative of just that.
    """
    computed, held = learner.network.slope, list[Slope]()

    def record(*arguments: object) -> Slope:
        held.append(computed(*arguments))  # type: ignore[arg-type]
        return held[-1]

    learner.network.slope = record  # type: ignore[method-assign]
    adapt()
    calls = 0

    def replay(*arguments: object) -> Slope:
        nonlocal calls
        calls += 1
        return held[(calls - 1) % len(held)]

    learner.network.slope = replay  # type: ignore[method-assign]
    try:
        yield
    finally:
        del learner.network.slope
    assert calls >= 2 * len(held)
