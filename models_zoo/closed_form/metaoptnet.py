"""MetaOptNet (Lee, Maji, Ravichandran and Soatto 2019; seed 002): a convex classifier on top.

The base learner A is a linear classifier trained to its optimum on the support features, so that
its solution has a derivative; the features are learned to suit it. Ridge regression (Bertinetto et
al. 2019, as in Lee et al.'s Table 2): with features X [N, D], one-hot labels Y [N, way],

    W* = argmin_W |X W - Y|^2 + lambda |W|^2 = X^T alpha,   alpha = (X X^T + lambda I)^-1 Y
    p(y = k | x) = softmax_k(scale w_k . f(x)),         w_k . f(x) = sum_i alpha_ik f(x_i) . f(x)

Classes do not meet in the regression, and a padded example has no features and no label, so that
neither an absent class nor padding changes anything. The scale is learned (the paper's gamma, Eq.
12), through its logarithm, so that it stays positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.closed_form.kernel import example_weights, solve
from models_zoo.episode import Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner


class MetaOptNet(Learner):
    """Ridge regression as the base learner.

    regularization   lambda of the ridge (the authors' code: 50)
    scale            where the learned scale of the scores starts
    """

    takes_vectors = True

    def __init__(
        self,
        channels: int = 3,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        regularization: float = 50.0,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        self.regularization = regularization
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
        x = support.x * support.mask.unsqueeze(-1)
        gram = x @ x.transpose(1, 2)
        ridge = self.regularization * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return {
            "features": x,
            "alpha": solve(gram + ridge, support.one_hot()),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Scores of the optimum; an example's weight is its share of them (`example_weights`)."""
        kernel = query @ state["features"].transpose(1, 2)
        scores = self.log_scale.exp() * (kernel @ state["alpha"])
        logits = mask_absent(scores, state["class_mask"])
        weights = example_weights(state["alpha"], kernel, logits.softmax(-1), state["mask"])
        return Prediction(logits, task_attention=weights.unsqueeze(1))
