"""The meta-gradient of every gradient-based learner is what differences find, in every weight.

Whatever a learner holds constant is held here too: then its meta-gradient is a derivative as well.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.optimization.inner_loop import InnerLoop
from tests.models_zoo import test_maml, test_metalstm, test_metasgd, test_reptile, test_sca
from tests.models_zoo.differences import check_gradient, slopes_held
from tests.models_zoo.test_maml import mixed_tasks

SECOND_ORDER: dict[str, Callable[[], InnerLoop]] = {
    "maml": lambda: test_maml.small(steps=2),
    "maml, rates of every step": lambda: test_maml.small(steps=2, per_step_rates=True),
    "maml, statistics of every step": lambda: with_statistics(
        test_maml.small(steps=2, statistics="per_step")
    ),
    "metasgd": lambda: test_metasgd.small(steps=2, inner_lr=1.0),
    "sca": lambda: test_sca.small(critic_steps=2, critic_lr=0.5),
}
FIRST_ORDER: dict[str, Callable[[], InnerLoop]] = {
    "fomaml": lambda: test_maml.small(steps=3, first_order=True),
    "metalstm": test_metalstm.small,
    "reptile": lambda: test_reptile.seasoned(test_reptile.small()),
}


def with_statistics(learner: InnerLoop) -> InnerLoop:
    """Evaluated with what it has seen in training, as constants, in place of the support set's."""
    learner.train()
    for _ in range(5):
        learner.adapt(mixed_tasks()[0])
    learner.eval()
    assert learner.statistics(torch.zeros((), dtype=torch.int64)) is not None
    return learner


def outer_loss(learner: InnerLoop) -> Callable[[], Tensor]:
    support, query, targets = mixed_tasks()

    def loss() -> Tensor:
        return F.cross_entropy(learner(support, query).logits.flatten(0, 1), targets.flatten())

    return loss


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_meta_gradient_is_the_finite_difference(name: str) -> None:
    learner = SECOND_ORDER[name]()
    check_gradient(outer_loss(learner), list(learner.parameters()))


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_the_meta_gradient_is_the_finite_difference_with_the_gradients_held(name: str) -> None:
    learner = FIRST_ORDER[name]()
    loss = outer_loss(learner)
    before = loss()
    with slopes_held(learner, lambda: learner.adapt(mixed_tasks()[0])):
        assert torch.equal(loss(), before)
        check_gradient(loss, list(learner.parameters()))
