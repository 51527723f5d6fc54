"""Does a learner say of itself what is true of it? Two of its flags decide how it is measured and
served: a query that learns from its neighbours would be scored with them and asked alone."""

from __future__ import annotations

import copy

import torch

from models_zoo.learner import InputShape, Learner
from training.graphs import hyperparameters
from training.parity import ParityError, answer, random_episode

#: Tasks, classes, examples of each, queries; nothing padded.
CASE = (2, 3, 2, 6, 0)
#: Of a probability, beyond what rounding makes of it.
TOLERANCE = 1e-4


@torch.no_grad()
def check_flags(learner: Learner, shape: InputShape, rates: tuple[float, ...] = ()) -> None:
    """Raise `ParityError` where `transductive` or `order_dependent` is false and ought to be true.

    `rates` are those of the gradient steps, by default the learner's own. Such steps amplify what
    another order of the same sums rounds: a copy in double precision takes them.
    """
    judge, hyper = learner, hyperparameters(learner)
    support, query = random_episode(shape, CASE, torch.Generator().manual_seed(0))
    if hyper:
        judge = copy.deepcopy(learner).double()
        hyper = (torch.tensor(rates or hyper[0].tolist()).double(),)
        support, query = support.with_x(support.x.double()), query.double()
    together = answer(judge, support, query, *hyper).logits.softmax(-1)
    if not learner.transductive:
        parts = [answer(judge, support, one, *hyper).logits for one in query.split(1, dim=1)]
        if differ(torch.cat(parts, 1).softmax(-1), together):
            raise ParityError(
                "an answer depends on the other queries asked with it: set `transductive = True` "
                f"on {type(learner).__name__}, or make `predict` look at each query by itself"
            )
    if not learner.order_dependent:
        turned = type(support)(
            support.x.flip(1), support.labels.flip(1), support.mask.flip(1), support.class_mask
        )
        if differ(answer(judge, turned, query, *hyper).logits.softmax(-1), together):
            raise ParityError(
                "an answer depends on the order of the support examples: set "
                f"`order_dependent = True` on {type(learner).__name__}, or make `adapt` ignore it"
            )


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.allclose(a, b, rtol=0, atol=TOLERANCE)
