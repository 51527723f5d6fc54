"""ALPaCA (Harrison, Sharma and Pavone 2018): Bayesian linear regression, learned prior.

The weights K [D, way] of a linear model of the features f have a learned prior, which the support
set turns into a posterior; a query's answer comes with the variance that is left. Targets are the
one-hot labels y, with noise of variance s^2. With features F [N, D]:

    prior          K ~ MN(K_0, L_0^-1, s^2 I),  precision L_0 = L L^T
    posterior      L_N = L_0 + F^T F,           K_N = L_N^-1 (F^T Y + L_0 K_0)
    prediction     y | x ~ N(K_N^T f, (1 + f^T L_N^-1 f) s^2 I)

The paper regresses; classes and what it leaves open:

- A class is drawn with the density that the prediction gives its one-hot vector, so p(y = k | x) =
  softmax_k(mean_k / variance): the query loss is the paper's predictive log-likelihood, given that
  y is a one-hot vector. What is uncertain gets probabilities that are nearly even.
- Which class has which number means nothing, so every column of K_0 is the same learned vector.
- `prior` "full" learns L, "isotropic" one number. What is held is the inverse of L: lower
  triangular with a positive diagonal, as L itself, so the priors are the same ones, and features
  whitened by it, g = L^-1 f, need no inversion. In these the posterior is the N x N system
  alpha = (I + G G^T)^-1 (Y - F K_0),  mean = K_0^T f + sum_i alpha_i g_i . g, and the variance
  (1 + |g|^2 - k^T (I + G G^T)^-1 k) s^2 with k_i = g_i . g (Woodbury's identity). With
  v = (I + G G^T)^-1 k that difference is |g - G^T v|^2 + |v|^2, which rounding leaves positive.
- All of it is float64: trained, s^2 is near 0.015, so that a mean's rounding counts sixty times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.backbones import build_backbone
from models_zoo.closed_form.kernel import example_weights, solve
from models_zoo.episode import Prediction, Support, TaskState, mask_absent
from models_zoo.learner import Learner


class ALPaCA(Learner):
    """Bayesian linear regression on one-hot labels; predictions carry `uncertainty`.

    dim         D, the number of features of an image
    prior       "full" or "isotropic"
    precision   where the prior precision starts: this times the identity
    noise       where the noise variance s^2 starts
    """

    takes_vectors = True

    def __init__(
        self,
        channels: int = 3,
        backbone: str = "conv4-64",
        pools: Sequence[bool] | None = None,
        dim: int = 64,
        prior: Literal["full", "isotropic"] = "full",
        precision: float = 50.0,
        noise: float = 0.05,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, pools)
        self.prior_mean = nn.Parameter(torch.zeros(dim))
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))
        # Of L^-1: the logarithm of its diagonal, and what is below it.
        log_diagonal = torch.tensor(-0.5 * math.log(precision))
        if prior == "full":
            self.log_diagonal = nn.Parameter(log_diagonal.repeat(dim))
            self.below = nn.Parameter(torch.zeros(dim, dim))
        else:
            self.log_diagonal = nn.Parameter(log_diagonal)
        self.prior = prior
        self.attention_layers = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors f `[M, D]`: the whole map, flattened."""
        return self.backbone(images).flatten(1)

    def whiten(self, features: Tensor) -> Tensor:
        """g = L^-1 f, of `[..., D]` in float64."""
        whitened = self.log_diagonal.double().exp() * features
        if self.prior == "full":
            whitened = whitened + features @ self.below.double().tril(-1).transpose(0, 1)
        return whitened

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """The posterior.

        State: whitened features `[B, N, D]` (zero where padded), alpha `[B, N, way]`,
        covariance (I + G G^T)^-1 `[B, N, N]`, mask `[B, N]`, class_mask `[B, way]`.
        """
        features = (support.x * support.mask.unsqueeze(-1)).double()
        g = self.whiten(features)
        residual = support.one_hot() - (features @ self.prior_mean.double()).unsqueeze(-1)
        identity = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
        sides = torch.cat([residual, identity.expand(g.shape[0], -1, -1)], dim=-1)
        solved = solve(g @ g.transpose(1, 2) + identity, sides)
        way = support.class_mask.shape[1]
        kind = support.x.dtype
        return {
            "whitened": g.to(kind),
            "alpha": solved[..., :way].to(kind),
            "covariance": solved[..., way:].to(kind),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Class probabilities, and as `uncertainty` the variance (1 + f^T L_N^-1 f) s^2."""
        wide = query.double()
        g = self.whiten(wide)
        examples, alpha, covariance = (
            state[name].double() for name in ("whitened", "alpha", "covariance")
        )
        kernel = g @ examples.transpose(1, 2)  # [B, Q, N]
        mean = (wide @ self.prior_mean.double()).unsqueeze(-1) + kernel @ alpha
        v = kernel @ covariance
        left = (g - v @ examples).square().sum(-1) + v.square().sum(-1)
        variance = (1 + left) * self.log_noise.exp()
        scores = (mean / variance.unsqueeze(-1)).to(query.dtype)
        logits = mask_absent(scores, state["class_mask"])
        weights = example_weights(
            state["alpha"], kernel.to(query.dtype), logits.softmax(-1), state["mask"]
        )
        return Prediction(logits, weights.unsqueeze(1), uncertainty=variance.to(query.dtype))
