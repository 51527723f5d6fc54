"""The solve that exports, against torch.linalg; the weights of examples, sum by sum."""

from __future__ import annotations

import io

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from models_zoo.closed_form.kernel import example_weights, gauss_jordan, solve


def system(tasks: int, size: int, right: int, ridge: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A Gram matrix of non-negative features, as a ReLU gives them, plus a ridge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, size, 64, generator=generator).relu()
    matrix = x @ x.transpose(1, 2) + ridge * torch.eye(size)
    return matrix, torch.randn(tasks, size, right, generator=generator)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_elimination_solves_as_torch_linalg_does(size: int) -> None:
    matrix, rhs = system(3, size, 4, ridge=1.0)
    expected = torch.linalg.solve(matrix.double(), rhs.double())
    assert torch.allclose(gauss_jordan(matrix.double(), rhs.double()), expected, atol=1e-9)
    assert torch.allclose(solve(matrix.double(), rhs.double()), expected, atol=1e-9)


@pytest.mark.parametrize("ridge", [50.0, 1.0, 0.05])
def test_in_float32_elimination_errs_no_more_than_torch_linalg(ridge: float) -> None:
    matrix, rhs = system(4, 60, 5, ridge)
    truth = torch.linalg.solve(matrix.double(), rhs.double())
    error = (gauss_jordan(matrix, rhs) - truth).norm()
    theirs = (torch.linalg.solve(matrix, rhs) - truth).norm()
    assert error < 10 * theirs + 1e-6


class Solve(nn.Module):
    def forward(self, matrix: Tensor, rhs: Tensor) -> Tensor:
        return solve(matrix, rhs)


def test_the_exported_solve_takes_any_size() -> None:
    b, n, r = Dim("B"), Dim("N"), Dim("R")
    program = torch.onnx.export(
        Solve(),
        system(2, 7, 3, 1.0),
        input_names=["matrix", "rhs"],
        dynamic_shapes=({0: b, 1: n, 2: n}, {0: b, 1: n, 2: r}),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for tasks, size, right in ((1, 1, 2), (2, 7, 3), (3, 40, 20)):
        matrix, rhs = system(tasks, size, right, 1.0, seed=size)
        (found,) = session.run(None, {"matrix": matrix.numpy(), "rhs": rhs.numpy()})
        assert torch.allclose(torch.from_numpy(found), torch.linalg.solve(matrix, rhs), atol=1e-4)


def test_solve_has_the_derivatives_of_the_inverse() -> None:
    matrix, rhs = system(2, 4, 3, 1.0)
    start = matrix.double().requires_grad_(), rhs.double().requires_grad_()

    def symmetric(matrix: Tensor, rhs: Tensor) -> Tensor:
        return solve((matrix + matrix.transpose(1, 2)) / 2, rhs)

    assert torch.autograd.gradcheck(symmetric, start)


def test_an_example_weighs_what_it_adds_to_the_probable_classes() -> None:
    torch.manual_seed(0)
    alpha, kernel = torch.randn(2, 4, 3), torch.randn(2, 5, 4)
    probabilities = torch.randn(2, 5, 3).softmax(-1)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    found = example_weights(alpha, kernel, probabilities, mask)
    for task in range(2):
        for query in range(5):
            sizes = [
                sum(
                    float(probabilities[task, query, k] * abs(alpha[task, i, k]))
                    * abs(float(kernel[task, query, i]))
                    for k in range(3)
                )
                * bool(mask[task, i])
                for i in range(4)
            ]
            expected = [size / sum(sizes) for size in sizes]
            assert found[task, query].tolist() == pytest.approx(expected, abs=1e-6)


def test_examples_that_add_nothing_share_the_weight() -> None:
    """As where an encoder gives zeros: no division by zero."""
    mask = torch.tensor([[True, False, True]])
    none = example_weights(
        torch.zeros(1, 3, 2), torch.zeros(1, 1, 3), torch.ones(1, 1, 2) / 2, mask
    )
    assert none[0, 0].tolist() == [0.5, 0, 0.5]
