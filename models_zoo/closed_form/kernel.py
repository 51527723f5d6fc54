"""What the closed-form heads share: a linear solve that exports, and weights over the examples.

All of them predict class k with a sum over the support examples, sum_i alpha_ik k(x_i, x): few
examples and long features, so everything is N x N (the dual) and nothing D x D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

#: Keeps a division by a sum of weights defined where all of them are zero.
TINY = 1e-12


def solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """`matrix` X = `rhs` for symmetric positive definite `[B, N, N]` and `[B, N, R]`.

    By Cholesky's factors, with gradients. ONNX has no factorisations: exported, it is
    `gauss_jordan`, which agrees with `torch.linalg.solve` as well as Cholesky does.
    """
    if torch.compiler.is_exporting():
        return gauss_jordan(matrix, rhs)
    return torch.cholesky_solve(rhs, torch.linalg.cholesky(matrix))


def gauss_jordan(matrix: Tensor, rhs: Tensor) -> Tensor:
    """The same by elimination, one example after another: an ONNX Scan over a dynamic N.

    Pivots need no search: those of a positive definite matrix are positive, and at least its
    smallest eigenvalue.
    """
    places = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)

    def eliminate(both: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        size, at = place.shape[0], place.unsqueeze(-1)
        row = (both * at).sum(1, keepdim=True)  # [B, 1, N + R]
        column = (both[..., :size] * place).sum(-1, keepdim=True)  # [B, N, 1]
        pivot = (row[..., :size] * place).sum(-1, keepdim=True)  # [B, 1, 1]
        # `- at`: the pivot's own row becomes row / pivot.
        return both - (column - at) / pivot * row, place + 0

    # One tensor is carried: of two, the exporter takes the strides for inputs.
    reduced, _ = scan(eliminate, torch.cat([matrix, rhs], -1), places)
    return reduced[..., matrix.shape[-1] :]


def example_weights(alpha: Tensor, kernel: Tensor, probabilities: Tensor, mask: Tensor) -> Tensor:
    """How much each support example counted for each query: `[B, Q, N]`, summing to 1.

    alpha `[B, N, way]`, kernel k(x_i, x_q) `[B, Q, N]`, probabilities `[B, Q, way]`. Example i adds
    alpha_ik k(x_i, x) to the score of class k; its weight is the size of that, whatever its sign,
    averaged over the classes by their probability and divided by the sum over all examples.
    """
    size = kernel.abs() * (probabilities @ alpha.abs().transpose(1, 2))
    size = (size + TINY) * mask.unsqueeze(1)
    return size / size.sum(-1, keepdim=True)
