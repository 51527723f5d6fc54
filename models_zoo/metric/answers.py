"""From scores to a `Prediction`, and how much each support example weighed in it.

Either the examples are scored and a class collects what its examples weigh (Matching Networks), or
the classes are scored and an example weighs its share of its class (Prototypical Networks).
"""

from __future__ import annotations

from torch import Tensor

from models_zoo.episode import ABSENT, Prediction, Support, mask_absent


def class_shares(support: Support) -> Tensor:
    """1/shots in the column of an example's own class, else 0: `[B, N, way]`."""
    hot = support.one_hot()
    return hot / hot.sum(1, keepdim=True).clamp(min=1)


def by_classes(logits: Tensor, shares: Tensor, class_mask: Tensor) -> Prediction:
    """Scores of the classes `[B, Q, way]`; an example's weight is its share of its class."""
    logits = mask_absent(logits, class_mask)
    weights = logits.softmax(-1) @ shares.transpose(1, 2)
    return Prediction(logits, task_attention=weights.unsqueeze(1))


def by_examples(scores: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Prediction:
    """Scores of the examples `[B, Q, N]`; P(y) = the softmax weights of those labelled y, summed.

    labels: one-hot or shares `[B, N, way]`; mask: which examples are real `[B, N]`.
    """
    scores = scores.masked_fill(~mask.unsqueeze(1), ABSENT)
    log_weights = scores.log_softmax(-1)
    own = labels.transpose(1, 2).unsqueeze(1) > 0  # [B, 1, way, N]
    per_class = log_weights.unsqueeze(2).masked_fill(~own, ABSENT)
    logits = mask_absent(per_class.logsumexp(-1), class_mask)
    return Prediction(logits, task_attention=log_weights.exp().unsqueeze(1))
