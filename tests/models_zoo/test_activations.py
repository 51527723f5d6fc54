"""Parameters from activations: phi of each class's mean activation, class by class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.metric.activations import ParametersFromActivations
from tests.models_zoo.making import MIXED, make, support_of

DIM = 8


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def predicted(learner: ParametersFromActivations, activations: list[Tensor]) -> Tensor:
    """The last layer's weights for a class of these activations."""
    mean = unit(torch.stack([unit(a) for a in activations]).mean(0))
    first, last = learner.phi[0], learner.phi[2]
    hidden = F.relu(first.weight @ mean + first.bias)
    return unit(mean + last.weight @ hidden + last.bias)


@torch.no_grad()
def test_weights_are_predicted_from_mean_activations() -> None:
    learner = make("activations")
    assert isinstance(learner, ParametersFromActivations)
    support = support_of(MIXED, DIM)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    state = learner.adapt(support)
    found = learner.predict(state, query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        for k in range(support.way):
            own = support.mask[task] & (support.labels[task] == k)
            if not own.any():
                continue
            weights = predicted(learner, list(support.x[task, own]))
            assert torch.allclose(state["weights"][task, k], weights)
            for number, a in enumerate(query[task]):
                expected = learner.log_scale.exp() * (weights @ unit(a))
                assert torch.allclose(found.logits[task, number, k], expected)
            share = found.probabilities[task, :, k] / own.sum()
            assert torch.allclose(
                found.task_attention[task, 0, :, own], share[:, None].expand(3, int(own.sum()))
            )


@torch.no_grad()
def test_activations_are_the_mean_of_the_map() -> None:
    learner = make("activations")
    assert isinstance(learner, ParametersFromActivations)
    images = torch.rand(2, 2, 32, 32, dtype=torch.float64)
    assert torch.allclose(learner.encode(images), learner.backbone(images).mean((2, 3)))
