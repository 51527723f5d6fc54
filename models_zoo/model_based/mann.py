"""MANN, a memory-augmented neural network with least-recently-used access.

Santoro, Bartunov, Botvinick, Wierstra and Lillicrap, "Meta-Learning with Memory-Augmented Neural
Networks" (ICML 2016). Images come one after another, the label of each one step late, so that it
has to be kept in memory. At time t an LSTM controller sees (x_t, y_{t-1}) and what was read at
t - 1; each head reads and writes (equation numbers of the paper's section 3.2):

    w^w_t  = sigma(alpha_t) w^r_{t-1} + (1 - sigma(alpha_t)) w^lu_{t-1}                  (7)
    M_t(i) = M_{t-1}(i) + w^w_t(i) a_t, the least used slot having been erased           (8)
    w^r_t  = softmax(beta_t cos(k_t, M_t(i))),  r_t = sum w^r_t(i) M_t(i)                (2 to 4)
    w^u_t  = gamma w^u_{t-1} + w^r_t + w^w_t                                             (5)
    w^lu_t = the least used slots by w^u_t                                               (6)

and answers from h_t and r_t. `adapt` runs the support set; `predict` shows each query as the next
image, on a state of its own. The order of the examples matters.

What is written at t is made of (h_{t-1}, y_{t-1}), the image before and its label, which has come
by then. A query finds it written, so that a step here is: see x_t, read, answer, be told y_t, and
write what is time t + 1's.

Choices where the paper is silent or differs: images go through Conv4 first; the read has the key
strength beta and the write the add vector a apart from the key, both of the NTM (`ntm`); head h has
the h-th least used slot; nothing has been read at first, and slots are first used in their order;
padding is no step at all. At the start keys and what is added are one projection of h, beta is 10,
the LSTM forgets, and writes go to the least used slots, so that the first reads find the images
that are alike: else training stayed, for as long as was tried, at guessing the labels that had not
come yet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_zoo.backbones.conv4 import Conv4
from models_zoo.episode import Prediction, Support, TaskState, columns, mask_absent
from models_zoo.learner import Learner
from models_zoo.model_based import ntm

#: Where beta starts.
STRENGTH = 10.0

#: What a run carries from step to step: memory [B, M, W], hidden and cell [B, C], reads [B, H W],
#: usage [B, M] (gamma w^u + w^w, to which the next reads come), label [B, max_way] (y_{t-1},
#: one-hot), and origin [B, M, N], how much of each example was written to each slot since it was
#: last erased.
Carry = dict[str, Tensor]


class MANN(Learner):
    """LSTM controller and external memory.

    channels, image_size   of the (square) images
    hidden                 width of Conv4
    max_way                label slots
    controller             C, size of the LSTM (paper: 200)
    slots, width, heads    M, W, H (paper: 128, 40, 4)
    decay                  gamma (paper: 0.95)
    """

    order_dependent = True

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        hidden: int = 64,
        max_way: int = 5,
        controller: int = 200,
        slots: int = 128,
        width: int = 40,
        heads: int = 4,
        decay: float = 0.95,
    ) -> None:
        super().__init__()
        self.trunk = Conv4(channels, hidden)
        features = hidden * (image_size // self.trunk.reduction) ** 2
        self.gates = nn.Linear(features + max_way + heads * width + controller, 4 * controller)
        self.key = nn.Linear(controller, heads * width, bias=False)
        self.add = nn.Linear(controller + max_way, heads * width, bias=False)
        self.scalars = nn.Linear(controller, 2 * heads)  # of beta and alpha
        with torch.no_grad():
            self.add.weight[:, :controller].copy_(self.key.weight)
            self.scalars.bias[:heads] = STRENGTH - 1
            self.scalars.bias[heads:] -= 3
            self.gates.bias[controller : 2 * controller] -= 2
        self.output = nn.Linear(controller + heads * width, max_way)
        self.controller, self.slots, self.width = controller, slots, width
        self.heads, self.decay, self.max_way = heads, decay, max_way
        self.attention_layers = 1
        self.backbone_name = f"conv4-{hidden}"

    def encode(self, images: Tensor) -> Tensor:
        """Images -> feature vectors `[M, D]`: the whole map, flattened."""
        features: Tensor = self.trunk(images).flatten(1)
        return features

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        """The state after the support examples: `Carry` without usage, and masks.

        Raises `ValueError` for more classes than `max_way`.
        """
        carry = self._run(support)[0]
        kept = ("memory", "hidden", "cell", "reads", "label", "origin")
        masks = {"mask": support.mask, "class_mask": support.class_mask}
        return {name: carry[name] for name in kept} | masks

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        """Each query as the next image; it writes nothing that another would see.

        Task attention is the read weights, each slot's shared among the examples that were shown
        as it was written, the mean of the heads.
        """
        hidden, _ = self._control(state, query)
        keys, strength, _ = self._interface(hidden)
        focus = ntm.address(state["memory"], keys.flatten(1, 2), strength.flatten(1, 2))
        reads = ntm.read(state["memory"], focus).unflatten(1, (-1, self.heads)).flatten(2)
        logits = self._answer(hidden, reads, state["class_mask"])
        by_slot = focus.unflatten(1, (-1, self.heads)).mean(2)
        real = state["mask"].unsqueeze(1).to(by_slot.dtype)
        weights = (by_slot @ state["origin"] + 1e-9) * real
        weights = weights / weights.sum(-1, keepdim=True)
        return Prediction(logits, task_attention=weights.unsqueeze(1))

    def presented(self, support: Support) -> Tensor:
        features = self.encode_batch(support.x).to(support.x.dtype)
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack(self._run(support.with_x(features))[1], dim=1)

    def _run(self, support: Support) -> tuple[Carry, list[Tensor]]:
        """The carry after the last example, and (but in a graph) the answers on the way."""
        assert self.max_way is not None
        self.check_way(support)
        exporting = torch.compiler.is_exporting()
        places = torch.eye(support.x.shape[1], dtype=support.x.dtype, device=support.x.device)
        labels = support.one_hot(self.max_way)
        steps = (support.x.transpose(0, 1), labels.transpose(0, 1), support.mask.mT, places)
        carry, answers = self._start(support), []
        if exporting:  # becomes an ONNX Scan over a dynamic number of examples
            from torch._higher_order_ops.scan import scan

            def step(c: Carry, e: tuple[Tensor, ...]) -> tuple[Carry, Tensor]:
                return self._step(c, *e)[0], e[2].clone()

            return scan(step, carry, steps)[0], []
        for example in zip(*steps, strict=True):
            carry, hidden, reads = self._step(carry, *example)
            answers.append(self._answer(hidden, reads, support.class_mask).squeeze(1))
        return carry, answers

    def _start(self, support: Support) -> Carry:
        tasks, examples, _ = support.x.shape
        zeros = support.x.new_zeros
        order = torch.arange(self.slots, dtype=support.x.dtype, device=support.x.device)
        return {
            "memory": ntm.blank(tasks, self.slots, self.width, support.x),
            "hidden": zeros(tasks, self.controller),
            "cell": zeros(tasks, self.controller),
            "reads": zeros(tasks, self.heads * self.width),
            "usage": (1e-6 * order).expand(tasks, -1).clone(),
            "label": zeros(tasks, self.max_way or 0),
            "origin": zeros(tasks, self.slots, examples),
        }

    def _step(
        self, carry: Carry, x: Tensor, label: Tensor, real: Tensor, place: Tensor
    ) -> tuple[Carry, Tensor, Tensor]:
        """Show one example; `real` `[B]` is False where that changes nothing.

        Returns the carry, and h_t `[B, 1, C]` and r_t `[B, 1, H W]` for the answer.
        """
        memory = carry["memory"]
        hidden, cell = self._control(carry, x.unsqueeze(1))
        keys, strength, gate = (part.squeeze(1) for part in self._interface(hidden))
        focus = ntm.address(memory, keys, strength)  # Eq. 2 and 3
        reads = ntm.read(memory, focus).flatten(1)  # Eq. 4
        usage = carry["usage"] + focus.detach().sum(1)  # Eq. 5

        # The label is told: from here on, it is the next time step's write.
        least = usage.topk(self.heads, largest=False).indices  # Eq. 6, the least used first
        slots = torch.arange(self.slots, device=x.device)
        lru = (least.unsqueeze(-1) == slots).to(x.dtype)  # [B, H, M]
        gate = gate.unsqueeze(-1)
        write = gate * focus + (1 - gate) * lru  # Eq. 7
        vectors = self.add(torch.cat([hidden.squeeze(1), label], dim=-1)).tanh()
        first = lru[:, :1]
        memory = ntm.erase(memory, first, memory.new_ones(1, 1, self.width))
        memory = ntm.add(memory, write, vectors.unflatten(-1, (self.heads, -1)))  # Eq. 8
        written = write.detach().sum(1)
        origin = carry["origin"] * (1 - first.mT) + written.unsqueeze(-1) * place
        new = {
            "memory": memory,
            "hidden": hidden.squeeze(1),
            "cell": cell.squeeze(1),
            "reads": reads,
            "usage": self.decay * usage + written,
            "label": label,
            "origin": origin,
        }
        after = {
            name: torch.where(real.view(-1, *[1] * (value.ndim - 1)), value, carry[name])
            for name, value in new.items()
        }
        return after, hidden, reads.unsqueeze(1)

    def _control(self, carry: Carry, x: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's next h and c `[B, Q, C]`, for each of the images x `[B, Q, D]` by itself."""
        known = torch.cat([carry[name] for name in ("label", "reads", "hidden")], dim=-1)
        known = known.unsqueeze(1).expand(-1, x.shape[1], -1)
        i, f, g, o = self.gates(torch.cat([x, known], dim=-1)).chunk(4, dim=-1)
        cell = f.sigmoid() * carry["cell"].unsqueeze(1) + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    def _interface(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h `[B, Q, C]` -> keys `[B, Q, H, W]`, strengths and write gates `[B, Q, H]`."""
        keys = self.key(hidden).tanh().unflatten(-1, (self.heads, -1))
        strength, gate = self.scalars(hidden).chunk(2, dim=-1)
        return keys, 1 + F.softplus(strength), gate.sigmoid()

    def _answer(self, hidden: Tensor, reads: Tensor, class_mask: Tensor) -> Tensor:
        """Logits `[B, Q, way]` from h_t and r_t."""
        logits = self.output(torch.cat([hidden, reads], dim=-1))
        return mask_absent(columns(logits, class_mask.shape[1]), class_mask)
