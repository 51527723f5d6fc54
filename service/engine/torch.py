"""Zoo entries in PyTorch, where the settings ask for it. The only module here that imports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models_zoo.cards import Card
from models_zoo.episode import Support
from models_zoo.weights import load_learner
from service.engine.episode import Floats, State
from service.engine.providers import Device
from service.engine.runtime import GPU_CHUNK, Prediction

_PREFIX = "state."  # of the state's names, as in the ONNX graphs


def choose_torch(device: Device) -> str:
    """ "cuda" or "cpu". Raises `RuntimeError` where a demanded device cannot be had."""
    usable = torch.cuda.is_available()
    if device == "tensorrt" or (device == "cuda" and not usable):
        raise RuntimeError(f"device is set to {device}, but PyTorch has no such device here")
    return "cuda" if usable and device != "cpu" else "cpu"


class TorchRuntime:
    """An entry's learner in PyTorch. One instance may be used from many threads."""

    def __init__(
        self,
        card: Card,
        root: Path,
        device: Device = "auto",
        threads: int = 0,
        chunk: int = 0,
        compiled: bool = False,
    ) -> None:
        """Load an entry's weights. On a GPU `chunk` images are encoded at once, by a `compiled`
        encoder if so asked; on a CPU one.

        Raises `ZooError`, and `RuntimeError` when the device cannot be had.
        """
        self.card, self._chunk = card, chunk or GPU_CHUNK
        self.device = choose_torch(device)
        self.joins_tasks = self.device == "cuda"
        if threads:
            torch.set_num_threads(threads)
        self._learner = load_learner(card, root).requires_grad_(False).to(self.device)
        self._encode: Callable[[Tensor], Tensor] = self._learner.encode
        if compiled and self.joins_tasks:
            # Compiled once for any number of images: a new size must not stop the service.
            self._encode = torch.compile(self._learner.encode, dynamic=True)

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> Floats:
        """See `Runtime`."""
        # On a CPU image by image: there, too, a neighbour could change the last bits.
        step = self._chunk if self.joins_tasks else 1
        chunks = []
        for start in range(0, len(images), step):
            scaled = self._tensor(images[start : start + step]).float() / 255
            chunks.append(self._encode(scaled))
        return np.asarray(torch.cat(chunks).cpu().numpy(), np.float32)

    @torch.no_grad()
    def adapt(
        self,
        support: Floats,
        labels: NDArray[np.int64],
        mask: NDArray[np.bool_],
        class_mask: NDArray[np.bool_],
        inner_lr: Floats | None = None,
    ) -> State:
        """See `Runtime`."""
        task = Support(*(self._tensor(array) for array in (support, labels, mask, class_mask)))
        rates = () if inner_lr is None else (self._tensor(inner_lr),)
        state = self._learner.adapt(task, *rates)
        return {_PREFIX + name: value.cpu().numpy() for name, value in state.items()}

    @torch.no_grad()
    def predict(self, state: State, query: Floats, attention: bool = False) -> Prediction:
        """See `Runtime`."""
        task = {name.removeprefix(_PREFIX): self._tensor(value) for name, value in state.items()}
        found = self._learner.predict(task, self._tensor(query))
        maps = ("task_attention", "query_attention", "support_attention") if attention else ()
        kept = {name: getattr(found, name) for name in ("logits", "uncertainty", *maps)}
        return Prediction(
            **{
                name: value.float().cpu().numpy()
                for name, value in kept.items()
                if value is not None
            }
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        # A copy where an array is read-only, such as one out of a cache.
        ready = array if array.flags.writeable else array.copy()
        return torch.from_numpy(ready).to(self.device)
