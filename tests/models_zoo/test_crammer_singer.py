"""The SVM's dual solution: feasible, optimal by the primal problem, and no worse than its steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from models_zoo.closed_form.crammer_singer import admm, project, solve_svm

C = 0.1
#: Classes, shots, mean squared length of the features.
TASKS = [(2, 1, 10.0), (5, 1, 50.0), (5, 5, 50.0), (5, 5, 500.0), (20, 1, 50.0), (20, 5, 50.0)]
TASKS += [(20, 1, 1.0), (5, 3, 0.2)]  # short features: most examples are at the bound
LARGEST = (60, 5, 85.0)


def task(way: int, shot: int, length: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features `[N, D]` of classes that share a direction and overlap, and one-hot labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    labels = torch.arange(way * shot) % way
    x = draw(way, 64)[labels] + draw(64) + 0.7 * draw(way * shot, 64)
    x = x * (length / x.square().sum(-1).mean()).sqrt()
    # A coordinate of its own for every example: Gram matrix + I, as MetaOptNet gives it.
    x = torch.cat([x, torch.eye(way * shot, dtype=torch.float64)], dim=1)
    return x, torch.eye(way, dtype=torch.float64)[labels]


def solved(x: Tensor, y: Tensor, steps: int) -> Tensor:
    everything = (
        torch.ones(1, len(x), dtype=torch.bool),
        torch.ones(1, y.shape[1], dtype=torch.bool),
    )
    return solve_svm((x @ x.T)[None], y[None], *everything, C, steps)[0]


def primal(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """1/2 sum_m |w_m|^2 + C sum_i max_m (1 - y_im + w_m . x_i - w_y(i) . x_i)."""
    scores = x @ weights
    hinge = (1 - y + scores - (scores * y).sum(-1, keepdim=True)).max(-1).values
    return 0.5 * weights.square().sum() + C * hinge.sum()


@pytest.mark.parametrize(("way", "shot", "length"), TASKS)
def test_the_solution_is_feasible_and_its_primal_value_is_its_dual_value(
    way: int, shot: int, length: float
) -> None:
    """No dual value exceeds a primal one: where they are equal both problems are solved."""
    x, y = task(way, shot, length)
    alpha = solved(x, y, 2000)
    assert alpha.sum(-1).abs().max() < 1e-10
    assert (alpha <= C * y + 1e-12).all()
    weights = x.T @ alpha
    dual = (alpha * y).sum() - 0.5 * weights.square().sum()
    assert float(primal(x, y, weights) - dual) == pytest.approx(0, abs=1e-7 * len(x))


@pytest.mark.parametrize("sizes", [*TASKS, LARGEST])
def test_fifty_steps_come_close(sizes: tuple[int, int, float]) -> None:
    """In the scores of the examples, whose margins are 1."""
    x, y = task(*sizes)
    away = (x @ x.T @ (solved(x, y, 50) - solved(x, y, 600))).abs().max()
    assert away < (0.05 if sizes == LARGEST else 0.01)


@pytest.mark.parametrize("sizes", [(2, 1, 10.0), (3, 2, 5.0), (3, 2, 0.5)])
def test_the_derivative_is_the_solution_s(sizes: tuple[int, int, float]) -> None:
    """Against finite differences, with some alpha at their bounds and some off them."""
    x, y = task(*sizes)
    mask, present = torch.ones(1, len(x), dtype=torch.bool), torch.ones(1, y.shape[1]).bool()

    def alpha(gram: Tensor) -> Tensor:
        return solve_svm((gram + gram.transpose(1, 2)) / 2, y[None], mask, present, C, 200)

    assert torch.autograd.gradcheck(alpha, (x @ x.T)[None].requires_grad_(), atol=1e-6)


def test_the_derivative_is_that_of_many_steps_where_padding_and_absent_classes_are() -> None:
    x, y = task(5, 3, 20.0)
    y[3::5] = 0  # a class that is absent: its examples are padding
    mask, present = (y.sum(-1) > 0)[None], (y.sum(0) > 0)[None]
    torch.manual_seed(0)
    weights = torch.randn(1, 15, 5, dtype=torch.float64)
    gradients = []
    for solver in (solve_svm, admm):
        own = (x * mask[0, :, None]).requires_grad_()
        gram = (own @ own.T + torch.eye(len(x)).double())[None]
        alpha = solver(gram, y[None], mask, present, C, 200)
        gradients += torch.autograd.grad((alpha * weights).sum(), own)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-8)


@pytest.mark.parametrize(("way", "shot", "length"), TASKS[:3])
def test_kkt_conditions(way: int, shot: int, length: float) -> None:
    """An example's alpha_im is below its bound only for the classes nearest to its own margin."""
    x, y = task(way, shot, length)
    alpha = solved(x, y, 2000)
    gradient = x @ (x.T @ alpha) - y  # of the dual, `[N, way]`
    for i, m in itertools.product(range(len(x)), range(way)):
        largest = gradient[i].max()
        if alpha[i, m] < C * y[i, m] - 1e-8:
            assert float(gradient[i, m]) == pytest.approx(float(largest), abs=1e-6)


def test_the_projection_is_the_nearest_feasible_point() -> None:
    """Against each face of the simplex in turn."""
    torch.manual_seed(0)
    values, y = torch.randn(1, 6, 4, dtype=torch.float64), torch.eye(4).double()[[0, 1, 2, 3, 0, 1]]
    present = torch.tensor([[True, True, False, True]])
    y[2] = 0  # padding, for its class is absent
    found = project(values, y[None], present, C)[0]
    assert (found[2] == 0).all() and (found[:, 2] == 0).all()
    free = [0, 1, 3]
    for i in (0, 1, 3, 4, 5):
        candidates = []
        for face in (list(f) for n in (1, 2, 3) for f in itertools.combinations(free, n)):
            bound = C * y[i]  # those off the face are at it; the others are lowered alike
            level = (values[0, i, face].sum() + bound.sum() - bound[face].sum()) / len(face)
            candidate = bound.clone()
            candidate[face] = values[0, i, face] - level
            if (candidate <= bound + 1e-12).all():
                candidates.append(candidate)
        nearest = min(candidates, key=lambda c: float((c - values[0, i])[free].square().sum()))
        assert torch.allclose(found[i], nearest, atol=1e-12)


@pytest.mark.parametrize("sizes", TASKS)
def test_in_single_precision_the_derivative_is_the_same(sizes: tuple[int, int, float]) -> None:
    x, y = task(*sizes)
    mask, present = torch.ones(1, len(x), dtype=torch.bool), torch.ones(1, y.shape[1]).bool()
    gradients = []
    for kind in (torch.float64, torch.float32):
        gram = (x @ x.T)[None].to(kind).requires_grad_()
        alpha = solve_svm(gram, y[None].to(kind), mask, present, C, 50)
        weights = torch.arange(alpha.numel()).remainder(7).view_as(alpha).to(kind)
        gradients += torch.autograd.grad((alpha * weights).sum(), gram)
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()
