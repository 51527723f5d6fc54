"""SCA against a plain restatement: the critic's steps by autograd, one task at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.episode import ABSENT, Support
from models_zoo.optimization.maml import MAML
from models_zoo.optimization.sca import SCA, Critic
from tests.models_zoo.test_maml import mixed_tasks

LAYERS = range(4)


def small(**config: object) -> SCA:
    """A little SCA in float64 with a critic that has something to say."""
    torch.manual_seed(0)
    options = {"channels": 2, "image_size": 13, "hidden": 6, "critic_lr": 2.0} | config
    learner = SCA(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in learner.named_parameters():
            if "kernel" not in name or "rate" in name:
                value += 0.2 * torch.randn_like(value)
    return learner


def features_of(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The frozen network on `[n, C, H, W]`: convolution, bias, ReLU; spatial mean."""
    for layer in LAYERS:
        kernel = weights[f"kernel{layer}"].unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, weights[f"bias{layer}"][0], stride=2, padding=1).relu()
    return x.mean((2, 3))


def plain(learner: SCA, support: Support, query: Tensor) -> Tensor:
    """After MAML's steps, steps along autograd's gradient of the critic; logits `[B, Q, way]`."""
    rows, state = [], learner.adapt(support)
    for b, present in enumerate(support.class_mask):
        weights = {name: state[name][b].clone() for name in learner.critic_rates}
        before = {name: state[name][b] for name in learner.critic_rates}  # not what is followed
        shots = [
            support.x[b, support.mask[b] & (support.labels[b] == c)]
            for c in range(support.way)
            if present[c]
        ]
        centres = torch.stack([features_of(before, x).mean(0) for x in shots])
        for _ in range(learner.critic_steps):
            verdict = torch.zeros(()).double()
            for x in query[b]:
                z = features_of(weights, x[None])[0]
                p = (z @ weights["head"] + weights["offset"][0])[present].softmax(0)
                near = (-(z - centres).square().sum(1) / 6**0.5).softmax(0)
                order = p.argsort(descending=True)
                given = torch.zeros(1, 2, learner.slots).double()
                given[0, 0, : len(p)], given[0, 1, : len(p)] = p[order], near[order]
                verdict = verdict + learner.critic(given)[0][0] / len(query[b])
            slopes = torch.autograd.grad(verdict, list(weights.values()), create_graph=True)
            weights = {
                name: value - learner.critic_lr * learner.critic_rates[name].exp() * slope
                for (name, value), slope in zip(weights.items(), slopes, strict=True)
            }
        logits = features_of(weights, query[b]) @ weights["head"] + weights["offset"]
        rows.append(logits.masked_fill(~present, ABSENT))
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 2])
def test_outputs_and_meta_gradients_are_those_of_the_plain_loop(steps: int) -> None:
    learner = small(critic_steps=steps)
    support, query, targets = mixed_tasks()
    found, expected = learner(support, query).logits, plain(learner, support, query)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    gradients = [
        torch.autograd.grad(
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()), list(learner.parameters())
        )
        for logits in (found, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert mine.any()
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def test_the_critic_s_slope_is_its_derivative() -> None:
    torch.manual_seed(0)
    critic = Critic(5).double()
    x = torch.rand(3, 2, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(critic(x)[0].sum(), x)[0]
    assert torch.allclose(critic.slope(x), expected, atol=1e-12)
    assert expected.any()


def test_without_critic_s_steps_it_is_maml() -> None:
    learner, support = small(critic_steps=0), mixed_tasks()[0]
    maml = MAML(channels=2, image_size=13, hidden=6).double()
    maml.load_state_dict({k: v for k, v in learner.state_dict().items() if "critic" not in k})
    query = mixed_tasks()[1]
    assert torch.equal(learner(support, query).logits, maml(support, query).logits)


def test_how_the_classes_are_numbered_does_not_matter_to_the_critic() -> None:
    learner, query = small(), mixed_tasks()[1]
    support = Support.of(mixed_tasks()[0].x, torch.tensor([[0, 1, 2, 0, 1, 2, 2]] * 3))
    state = {name: value.detach() for name, value in learner.adapt(support).items()}
    order = torch.tensor([2, 0, 1])
    other = state | {
        "head": state["head"][:, :, order],
        "offset": state["offset"][:, :, order],
        "prototypes": state["prototypes"][:, order],
    }
    a, b = learner.predict(state, query).logits, learner.predict(other, query).logits
    assert torch.allclose(a[..., order], b, atol=1e-10)
