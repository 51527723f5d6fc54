"""MetaNet, Meta Networks: fast weights from the gradients of the slow weights' loss.

Munkhdalai and Yu (ICML 2017), in the six steps of "Learn how to Learn". An encoder u with slow
weights Q represents images, a classifier b with slow weights W labels them:

    1  Q*   = d({grad_Q L(u(x_i), y_i)}, i = 1..T)     d: an LSTM over T examples
    2  W*_i = m(grad_W L(b(x_i), y_i))                 m: an MLP, for every example
    3  R_i  = u(x_i; Q, Q*)
    4  a    = softmax(cos(R, u(x; Q, Q*))),  W* = sum_i a_i W*_i     for every query x
    5  y    = b(x; W, W*)

d and m work on every weight by itself, on its gradient as (log|g| / k, sign g), or (-1, e^k g)
where |g| < e^-k, k = 7. Gradients are constants to the loss that trains (step 6), and written out
here, so that the graphs need no autograd. Slow and fast outputs of a layer are added after its
nonlinearity, those of the last before the softmax (layer augmentation).

Sizes and choices: u and b share a Conv4 without fast weights, so that images are encoded once;
fast weights are u's one layer after it, and b's last. u's loss is the cross-entropy of its slow
representation under b's slow last layer. T are the first real examples: the order matters. The
softmax of step 4 has a learned temperature, since cosines alone cannot tell many examples apart.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.conv4 import Conv4
from models_zoo.episode import ABSENT, Prediction, Support, TaskState, columns, mask_absent
from models_zoo.learner import Learner
from models_zoo.model_based.sequence import pick

#: Where the learned temperature of step 4 starts.
SCALE = 10.0


def preprocess(gradient: Tensor, k: float = 7.0) -> Tensor:
    """A gradient's size and sign on scales that a network can read: `[...]` -> `[..., 2]`."""
    size = gradient.abs()
    small = size < math.exp(-k)
    first = size.clamp(min=math.exp(-k)).log() / k  # -1 where small
    return torch.stack([first, torch.where(small, math.exp(k) * gradient, gradient.sign())], -1)


class FastEmbedding(nn.Module):
    """d: for every weight, an LSTM over its gradients from T examples -> a fast weight."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, hidden, batch_first=True)
        self.output = nn.Linear(hidden, 1)
        # Fast weights that all start alike would add the same to every representation, and make
        # all cosines one; from next to nothing, the slow weights are what counts at first.
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()

    def forward(self, gradients: Tensor, count: Tensor) -> Tensor:
        """Gradients `[B, T, D, E]`, of which the first `count` `[B]` are real -> `[B, D, E]`."""
        tasks, steps, *weights = gradients.shape
        rows = preprocess(gradients.flatten(2).mT).flatten(0, 1)  # [B D E, T, 2]
        states = self.lstm(rows)[0].unflatten(0, (tasks, -1))
        last = torch.arange(steps, device=rows.device) == count.unsqueeze(1) - 1
        final = (states * last[:, None, :, None]).sum(2)
        fast: Tensor = self.output(final).squeeze(-1).unflatten(1, weights)
        return fast


class FastClassifier(nn.Module):
    """m: for every weight, an MLP from its gradient for one example to a fast weight."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, gradients: Tensor) -> Tensor:
        fast: Tensor = self.layers(preprocess(gradients)).squeeze(-1)
        return fast


class MetaNet(Learner):
    """Fast weights for the embedding and the classifier.

    channels, image_size   of the (square) images
    hidden, embedding      width of Conv4, and E, of the layers after it
    max_way                label slots
    samples                T, examples whose gradients make the embedding's fast weights
    lstm, mlp              hidden sizes of d and m (paper: 20)
    """

    order_dependent = True

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        embedding: int = 64,
        max_way: int = 20,
        samples: int = 5,
        lstm: int = 20,
        mlp: int = 20,
    ) -> None:
        super().__init__()
        self.trunk = Conv4(channels, hidden)
        width = hidden * (image_size // self.trunk.reduction) ** 2
        self.embed = nn.Parameter(torch.randn(width, embedding) * math.sqrt(2 / width))  # Q
        self.hidden = nn.Linear(width, embedding)  # W, but for its last layer
        self.last = nn.Parameter(torch.randn(embedding, max_way) * 0.1)  # W's last layer
        self.fast_embedding = FastEmbedding(lstm)
        self.fast_classifier = FastClassifier(mlp)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.samples, self.max_way, self.attention_layers = samples, max_way, 1
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """The part without fast weights: images -> `[M, D]`."""
        features: Tensor = self.trunk(images).flatten(1)
        return features

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """Steps 1 to 3.

        State: fast_embedding Q* [B, D, E], memory [B, N, E] (R), fast_classifier [B, N, E, way]
        (W*_i), mask [B, N], class_mask [B, way]. Raises `ValueError` for more classes than
        `max_way`.
        """
        self.check_way(support)
        with torch.no_grad():
            for_embedding, for_classifier = self._gradients(support)
        count = support.mask.sum(1).clamp(max=self.samples)
        fast = self.fast_embedding(for_embedding, count)
        return {
            "fast_embedding": fast,
            "memory": self._represent(support.x, fast),
            "fast_classifier": self.fast_classifier(for_classifier),
            "mask": support.mask,
            "class_mask": support.class_mask,
        }

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Steps 4 and 5; task attention is a."""
        represented = F.normalize(self._represent(query, state["fast_embedding"]), dim=-1)
        scores = self.log_scale.exp() * (represented @ F.normalize(state["memory"], dim=-1).mT)
        weights = scores.masked_fill(~state["mask"].unsqueeze(1), ABSENT).softmax(-1)
        fast = state["fast_classifier"]
        own = (weights @ fast.flatten(2)).unflatten(2, fast.shape[2:])  # W* [B, Q, E, way]
        h = self.hidden(query).relu()
        slow = columns(self.last, fast.shape[-1])
        logits = h @ slow + (h.unsqueeze(2) @ own).squeeze(2)
        return Prediction(
            mask_absent(logits, state["class_mask"]), task_attention=weights.unsqueeze(1)
        )

    def _represent(self, x: Tensor, fast: Tensor) -> Tensor:
        """u(x; Q, Q*): features `[B, N, D]`, Q* `[B, D, E]` -> `[B, N, E]`."""
        return (x @ self.embed).relu() + (x @ fast).relu()

    def _gradients(self, support: Support) -> tuple[Tensor, Tensor]:
        """Of the slow weights' cross-entropy, example by example.

        By Q of the first T examples `[B, T, D, E]`, by W's last layer of all `[B, N, E, way]`.
        """
        slow = columns(self.last, support.class_mask.shape[1])
        steps = torch.arange(self.samples, device=support.x.device)
        chosen = pick(support.mask, steps.expand(support.x.shape[0], -1), support.x)
        x, target = chosen @ support.x, chosen @ support.one_hot()
        z = (x @ self.embed).relu()
        d = mask_absent(z @ slow, support.class_mask).softmax(-1) - target
        d = (d @ slow.mT) * (z > 0)
        h = self.hidden(support.x).relu()
        e = mask_absent(h @ slow, support.class_mask).softmax(-1) - support.one_hot()
        return x.unsqueeze(-1) * d.unsqueeze(-2), h.unsqueeze(-1) * e.unsqueeze(-2)
