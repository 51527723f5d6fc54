"""MetaOptNet (Lee, Maji, Ravichandran and Soatto 2019): a convex classifier on top.

The base learner A is a linear classifier trained to its optimum on the support features, so that
its solution has a derivative; the features are learned to suit it. With features X [N, D] and
one-hot labels Y [N, way] both base learners give W = X^T alpha, and

    p(y = k | x) = softmax_k(scale w_k . f(x)),         w_k . f(x) = sum_i alpha_ik f(x_i) . f(x)

where the scale is learned (the paper's gamma), through its logarithm, so that it stays positive.

"ridge": regression (Bertinetto et al. 2019), W = argmin |X W - Y|^2 + lambda |W|^2, so that
alpha = (X X^T + lambda I)^-1 Y.

"svm": Crammer and Singer's, the authors' best; alpha is its dual's solution
(`crammer_singer`, in a fixed number of steps). As in the authors' code, the identity is added to
X X^T: it makes the solution unique, and is the same as a feature of its own for every example.

Padded examples and absent classes get no alpha and change nothing. All of it is float64: alike
features of length 30 make kernels whose condition number is in the thousands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.closed_form.crammer_singer import solve_svm
from models_zoo.closed_form.kernel import example_weights, solve
from models_zoo.episode import Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner


class MetaOptNet(Learner):
    """A linear classifier, trained to its optimum on each support set.

    head             the base learner: "ridge" or "svm"
    regularization   lambda of the ridge (the authors' code: 50)
    cost             C of the SVM (the authors' code: 0.1)
    steps            of the SVM's solver
    scale            where the learned scale of the scores starts
    """

    takes_vectors = True

    def __init__(
        self,
        channels: int = 3,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        head: Literal["ridge", "svm"] = "ridge",
        regularization: float = 50.0,
        cost: float = 0.1,
        steps: int = 50,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        self.head, self.regularization = head, regularization
        self.cost, self.steps = cost, steps
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`: the whole map, flattened."""
        return self.backbone(images).flatten(1)

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Train the base learner to its optimum.

        State: features `[B, N, D]` (zero where padded), alpha `[B, N, way]`, mask `[B, N]`,
        class_mask `[B, way]`.
        """
        x = (support.x * support.mask.unsqueeze(-1)).double()
        gram = x @ x.transpose(1, 2)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        labels, mask, present = support.one_hot().to(x), support.mask, support.class_mask
        if self.head == "svm":
            alpha = solve_svm(gram + identity, labels, mask, present, self.cost, self.steps)
        else:
            alpha = solve(gram + self.regularization * identity, labels)
        return {
            "features": x.to(support.x.dtype),
            "alpha": alpha.to(support.x.dtype),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Scores of the optimum; an example's weight is its share of them (`example_weights`)."""
        alpha = state["alpha"].double()
        kernel = query.double() @ state["features"].double().transpose(1, 2)
        scores = self.log_scale.exp() * (kernel @ alpha)
        logits = mask_absent(scores.to(query.dtype), state["class_mask"])
        probabilities = logits.softmax(-1)
        weights = example_weights(
            state["alpha"], kernel.to(query.dtype), probabilities, state["mask"]
        )
        return Prediction(logits, task_attention=weights.unsqueeze(1))
