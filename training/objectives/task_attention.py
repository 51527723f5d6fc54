"""Task attention: learn how much each task of a batch should count (Aimen et al., Algorithm 1).

Aimen, Sidheekh and Krishnan, "Task Attended Meta-Learning for Few-Shot Learning" (2021). In every
step, for a learner theta whose adapted tasks are phi_i and an attention network delta:

    I_i    = (|grad_phi_i L_i|, L_i, accuracy_i, L_i / L_i before adaptation)             Eq. 1
    w      = softmax(network(I; delta)), one weight for each task of the batch
    theta' = theta - beta grad_theta sum_i w_i L_i                                        Eq. 2
    delta  = delta - gamma grad_delta sum_j L_j(theta'), over the tasks j of another batch  Eq. 3

No gradient reaches theta through w: I is detached. Both gradients are those of one differentiable
step, Eq. 2; what the optimiser then does with them (Adam in the paper) is the recipe's matter.
Nothing here knows the learner: phi_i is the task's `TaskState`, whatever that holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.episode import TaskState
from models_zoo.learner import Learner
from training.data.sampler import Episode
from training.objectives import Metrics, Objective, Step
from training.objectives.episode import mean_over_each_task, query_hits, query_losses
from training.objectives.initial import ask_aside, initial_losses

INPUTS = ("gradient norm", "loss", "accuracy", "loss ratio")
NEURONS = 32
#: Adam's epsilon for the network. Its gradient carries the factor beta of Eq. 2, which falls to
#: nothing: an epsilon of 1e-8 would swallow it in the end.
EPS = 1e-14
#: Least loss before adaptation that the ratio divides by.
LEAST = 1e-6


class BatchNetwork(nn.Module):
    """The paper's network (section 5.1): 1x1 convolution 4 -> 1, two layers of 32 over the batch.

    The layers are fully connected over the *places* of the batch, so the number of tasks is fixed
    and a task's weight depends on where it stands: docs/decisions/task-attention.md. The inputs
    are never negative; the convolution starts with weights that are not either, else its single
    ReLU would be off for every task in half of all starts, and stay so.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(len(INPUTS), 1, 1)
        self.first = nn.Linear(tasks, NEURONS)
        self.second = nn.Linear(NEURONS, NEURONS)
        self.score = nn.Linear(NEURONS, tasks)
        with torch.no_grad():
            self.mix.weight.abs_()
            self.mix.bias.abs_()  # type: ignore[union-attr]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs `[B, 4]` -> weights `[B]` that sum to 1."""
        mixed = self.mix(inputs.T).squeeze(0).relu()
        return self.score(self.second(self.first(mixed).relu()).relu()).softmax(-1)


class SharedNetwork(nn.Module):
    """The same two layers of 32 for every task; permuting the tasks permutes the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(len(INPUTS), NEURONS)
        self.second = nn.Linear(NEURONS, NEURONS)
        self.score = nn.Linear(NEURONS, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs `[B, 4]` -> weights `[B]` that sum to 1, for any B."""
        scores = self.score(self.second(self.first(inputs).relu()).relu())
        return scores.squeeze(-1).softmax(-1)


class TaskAttention(Objective):
    """Algorithm 1 of Aimen et al. 2021 around any learner.

    tasks     B, the number of tasks in a batch
    network   "batch" as in the paper, or "shared", which treats the tasks alike
    lr        gamma, the network's learning rate; the recipe's schedule scales it as it does theta's
    fresh     where the tasks j of Eq. 3 come from: a "new" batch, as in the paper, or the "next"
              step's, so that a run sees no more tasks than one without attention

    Raises `ValueError` for batches of one task.
    """

    def __init__(
        self,
        tasks: int,
        network: Literal["batch", "shared"] = "batch",
        lr: float = 1e-3,
        fresh: Literal["new", "next"] = "new",
    ) -> None:
        super().__init__()
        self.network = BatchNetwork(tasks) if network == "batch" else SharedNetwork()
        self.tasks = tasks if network == "batch" else None
        if tasks < 2:
            raise ValueError("task attention weighs the tasks of a batch; set episodes.tasks")
        # Its gradients are so small that any decay would outweigh them.
        self.settings, self.fresh = {"lr": lr, "eps": EPS, "weight_decay": 0.0}, fresh

    def forward(self, learner: Learner, episode: Episode) -> tuple[Tensor, Metrics]:
        """The loss of Eq. 2, w held constant."""
        with torch.enable_grad():  # Eq. 1 needs a gradient, whoever asks
            losses, inputs = meta_information(learner, episode)
            weights = self.network(inputs)
            return weights.detach() @ losses, metrics_of(inputs, weights)

    def backward(self, learner: Learner, episode: Episode, step: Step) -> tuple[Tensor, Metrics]:
        """One step of Algorithm 1: lines 7 to 14 leave theta's gradient, lines 15 to 20 delta's."""
        theta = {name: value for name, value in learner.named_parameters() if value.requires_grad}
        delta = list(self.network.parameters())
        losses, inputs = meta_information(learner, episode, step.autocast)
        weights = self.network(inputs)
        loss = weights @ losses
        # With w attached the step is a function of delta. To theta w is a constant all the same,
        # because its inputs are: the values are those of Eq. 2 with w detached.
        gradient = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, allow_unused=True
        )
        ahead = {
            name: value - step.rate * d  # theta', Eq. 2
            for (name, value), d in zip(theta.items(), gradient, strict=True)
            if d is not None
        }
        fresh = step.new() if self.fresh == "new" else step.next()
        with step.autocast():
            logits = ask_aside(learner, fresh, ahead).logits
        goal = mean_over_each_task(
            query_losses(logits, fresh.targets), fresh.targets
        ).mean()  # Eq. 3
        for value, d in zip(delta, torch.autograd.grad(goal, delta), strict=True):
            value.grad = d
        for value, d in zip(theta.values(), gradient, strict=True):
            value.grad = None if d is None else d.detach()
        # Detached, else whoever logs them keeps the graph of a whole step.
        metrics = metrics_of(inputs, weights.detach())
        return loss.detach(), metrics | {"fresh_loss": goal.detach()}


def meta_information(
    learner: Learner,
    episode: Episode,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """The tasks' query losses after adaptation `[B]`, and the constants of Eq. 1 `[B, 4]`."""
    with autocast():
        state, prediction = learner.solve(*learner.encoded(episode.support, episode.query))
        with torch.no_grad():
            before = initial_losses(learner, episode)
    losses = mean_over_each_task(query_losses(prediction.logits, episode.targets), episode.targets)
    hits = mean_over_each_task(query_hits(prediction.logits, episode.targets), episode.targets)
    after = losses.detach()
    inputs = (
        gradient_norms(losses, state).to(after),
        after,
        hits.to(after),
        after / before.to(after).clamp(min=LEAST),
    )
    return losses, torch.stack(inputs, dim=1)


def gradient_norms(losses: Tensor, state: TaskState) -> Tensor:
    """|grad_phi_i L_i| `[B]`: of each task's loss `[B]` by all that was learned for it."""
    learned = [value for value in state.values() if value.requires_grad]
    if not learned:
        return torch.zeros_like(losses)
    # Tasks do not mix, so the gradient of the sum holds each task's in its own rows.
    gradient = torch.autograd.grad(losses.sum(), learned, retain_graph=True, allow_unused=True)
    squares = [d.to(losses).square().flatten(1).sum(1) for d in gradient if d is not None]
    return torch.stack(squares).sum(0).sqrt()


def metrics_of(inputs: Tensor, weights: Tensor) -> Metrics:
    return {
        "accuracy": inputs[:, INPUTS.index("accuracy")].mean(),
        "attention_largest": weights.max(),
        "attention_smallest": weights.min(),
        "attention": weights,
        "attention_inputs": inputs,
    }
