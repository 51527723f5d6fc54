"""A learner that depends on what it says it does not is not exported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo import registry
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import InputShape
from models_zoo.metric.prototypical import PrototypicalNetwork
from tests.models_zoo.making import stir
from tests.training.making import LEARNERS, SIDE
from training.independence import check_flags
from training.parity import ParityError

SHAPE = InputShape(1, SIDE, SIDE)


class Neighbourly(PrototypicalNetwork):
    """Takes the mean of the queries from each of them."""

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        return super().predict(state, query - query.mean(1, keepdim=True))


class Forgetful(PrototypicalNetwork):
    """Sees the last examples better than the first."""

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        fading = torch.linspace(0, 1, support.x.shape[1])[:, None]
        return super().adapt(support.with_x(support.x * fading))


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_every_learner_says_the_truth_of_itself(name: str) -> None:
    torch.manual_seed(0)
    learner = registry.build(name, LEARNERS[name])
    stir(learner, weights=0.05, means=0.1)
    check_flags(learner.eval(), SHAPE)


@pytest.mark.parametrize(
    ("kind", "flag", "reason"),
    [
        (Neighbourly, "transductive", "the other queries"),
        (Forgetful, "order_dependent", "the order of the support examples"),
    ],
)
def test_one_that_does_not_is_told_which_flag_to_set(
    kind: type[PrototypicalNetwork], flag: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    learner = kind(channels=1, backbone="conv4-8").eval()
    with pytest.raises(ParityError, match=f"{reason}.*`{flag} = True`"):
        check_flags(learner, SHAPE)
    monkeypatch.setattr(kind, flag, True)
    check_flags(learner, SHAPE)
