"""How a learner does before it has taken a step on a task's support set.

One that normalises by the support images has seen these, unlabelled, all the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.func import functional_call

from models_zoo.episode import Prediction
from models_zoo.learner import Learner
from training.data.sampler import Episode
from training.objectives.episode import mean_over_each_task, query_losses


def ask_aside(
    learner: Learner,
    episode: Episode,
    parameters: Mapping[str, Tensor] | None = None,
    inner_lr: Tensor | None = None,
) -> Prediction:
    """The answer the learner would give with other parameters or inner rates.

    Running statistics are copied first, so that an encoder in training mode does not take in what
    it only tried.
    """
    copies = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    state = copies | dict(parameters or {})
    answer: Prediction = functional_call(learner, state, (episode.support, episode.query, inner_lr))
    return answer


def initial_losses(learner: Learner, episode: Episode) -> Tensor:
    """L*^0 of Algorithm 1 in Aimen et al. 2021: each task's query loss before adaptation `[B]`.

    Learners that adapt by gradient steps take none. The others have no weights of before: one that
    has seen no support set can only guess, and its loss is the logarithm of the number of classes.
    """
    rates = learner.default_inner_lr()
    if rates is None:
        return episode.support.class_mask.sum(1).to(episode.query.dtype).log()
    logits = ask_aside(learner, episode, inner_lr=rates[:0]).logits
    return mean_over_each_task(query_losses(logits, episode.targets), episode.targets)
