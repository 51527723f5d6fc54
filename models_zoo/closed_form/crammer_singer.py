"""The dual of Crammer and Singer's multi-class SVM, solved in a fixed number of steps.

With K_ij = x_i . x_j, one-hot labels Y and alpha [N, way] (Lee et al. 2019, Eq. 9 to 11):

    min_alpha  1/2 sum_m alpha_m^T K alpha_m - sum_i alpha_i,y(i)
    subject to alpha_im <= C Y_im  and  sum_m alpha_im = 0 for every example i

The authors solve it by the interior point of a QP package: an N way x N way system in each of its
steps, which does not export. ADMM (Boyd et al. 2011) needs one N x N inverse for all its steps,
because the rows of alpha meet in K alone and its columns in the constraint alone:

    a = (K + rho I)^-1 (Y + rho (z - u))        the quadratic, column by column
    z = nearest feasible to r a + (1 - r) z + u  the constraint, row by row
    u = u + r a + (1 - r) z_before - z

The derivative is that of the steps. Twenty of them come within 1% of C of the solution for all the
tasks tried (`tests/models_zoo/test_crammer_singer.py`), for most of them much closer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models_zoo.closed_form.kernel import solve
from models_zoo.episode import ABSENT

#: r above, Boyd's over-relaxation; rho as a share of the mean |x|^2. Measured to converge fastest.
RELAXATION, SHARE = 1.6, 0.5


def solve_svm(
    gram: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor, cost: float, steps: int
) -> Tensor:
    """The dual variables alpha `[B, N, way]`.

    gram `[B, N, N]`, positive definite where real; labels one-hot `[B, N, way]`, mask `[B, N]`,
    class_mask `[B, way]`. Padded examples and absent classes get zeros and change nothing.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    real = mask.to(gram.dtype)
    size = (gram * identity).sum(-1)  # |x_i|^2
    rho = SHARE * (size * real).sum(-1) / real.sum(-1)
    rho = rho[:, None, None]
    inverse = solve(gram + rho * identity, identity.expand(gram.shape[0], -1, -1))
    z = u = torch.zeros_like(labels)
    for _ in range(steps):
        a = inverse @ (labels + rho * (z - u))
        relaxed = RELAXATION * a + (1 - RELAXATION) * z + u
        z = project(relaxed, labels, class_mask, cost)
        u = relaxed - z
    return z


def project(values: Tensor, labels: Tensor, class_mask: Tensor, cost: float) -> Tensor:
    """The nearest feasible alpha `[B, N, way]`.

    C y - alpha >= 0 sums to C: a simplex, whose projection lowers all by one number and cuts at
    zero (Held, Wolfe and Crowder 1974). The number is found among the sorted values.
    """
    slack = (cost * labels - values).masked_fill(~class_mask.unsqueeze(1), ABSENT)
    total = cost * labels.sum(-1, keepdim=True)  # C; 0 for padding, which leaves only zeros
    falling, _ = slack.sort(dim=-1, descending=True)
    above = falling.cumsum(-1) - total
    rank = torch.arange(1, slack.shape[-1] + 1, dtype=slack.dtype, device=slack.device)
    kept = (falling * rank > above).sum(-1, keepdim=True).clamp(min=1)
    level = above.gather(-1, kept - 1) / kept
    return cost * labels - (slack - level).clamp(min=0)
