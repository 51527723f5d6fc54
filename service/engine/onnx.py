"""Zoo entries in ONNX Runtime: graphs checked against the card, shapes checked before each run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models_zoo.cards import Card, ZooError, read_file
from service.engine.episode import Floats, State
from service.engine.providers import CPU, CUDA, OPTIONS, Device, choose
from service.engine.runtime import CPU_CHUNK, GPU_CHUNK, Prediction

log = logging.getLogger(__name__)

#: How many images are encoded together, to see whether that changes a bit of any.
_PROBES = (2, 7)


class TensorType(NamedTuple):
    """An input or output as the graph declares it; a size that varies is a name or None."""

    name: str
    type: str
    shape: list[int | str | None]


class Session:
    """One ONNX graph, read from bytes that were checked against the card.

    `lean` gives the memory of a run back after it; else it is kept for the next, up to what the
    largest one needed.
    """

    def __init__(
        self, data: bytes, options: ort.SessionOptions, providers: list[str], lean: bool = False
    ) -> None:
        chosen = [(name, OPTIONS.get(name, {})) for name in providers]
        self._session = ort.InferenceSession(data, options, providers=chosen)
        self._options = ort.RunOptions()
        if lean:
            arena = "gpu:0" if self._session.get_providers()[0] != CPU else "cpu:0"
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        self.inputs = {item.name: item.shape for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]
        self.providers: list[str] = self._session.get_providers()

    def signature(self) -> tuple[list[TensorType], list[TensorType]]:
        """The graph's inputs and outputs."""
        sides = (self._session.get_inputs(), self._session.get_outputs())
        inputs, outputs = ([TensorType(t.name, t.type, t.shape) for t in side] for side in sides)
        return inputs, outputs

    def run(
        self, feed: Mapping[str, NDArray[np.generic]], outputs: list[str]
    ) -> dict[str, NDArray[np.generic]]:
        """Run once. Raises `ValueError` where the feed is not what the graph declares."""
        self._check(feed)
        return dict(
            zip(outputs, self._session.run(outputs, dict(feed), self._options), strict=True)
        )

    def _check(self, feed: Mapping[str, NDArray[np.generic]]) -> None:
        """Names, ranks, fixed dims, and one size per symbol: ONNX Runtime broadcasts silently."""
        if feed.keys() != self.inputs.keys():
            raise ValueError(f"the graph takes {sorted(self.inputs)}, not {sorted(feed)}")
        symbols: dict[str, int] = {}
        for name, declared in self.inputs.items():
            shape = feed[name].shape
            if len(shape) != len(declared):
                raise ValueError(f"{name} is {shape}; the graph declares {declared}")
            for size, dim in zip(shape, declared, strict=True):
                if size != (symbols.setdefault(dim, size) if isinstance(dim, str) else dim or size):
                    raise ValueError(f"{name} is {shape}; the graph declares {declared}")


class OnnxRuntime:
    """An entry's graphs in ONNX Runtime. One instance may be used from many threads."""

    def __init__(
        self,
        card: Card,
        root: Path,
        device: Device = "auto",
        threads: int = 0,
        chunk: int = 0,
        lean: bool = False,
    ) -> None:
        """Load and check an entry; `chunk` images are encoded at once, 0: as suits the device.
        `lean` as of `Session`.

        Raises `ZooError` when a file differs from its card or is not a graph of this kind, and
        `RuntimeError` when the device cannot be had.
        """
        self.card = card
        providers = choose(device, ort.get_available_providers())
        if CUDA in providers:
            ort.preload_dlls()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised as well

        def load(name: str) -> Session:
            try:
                session = Session(read_file(card, name, root), options, providers, lean)
            except ZooError:
                raise
            except Exception as error:  # the binding raises a dozen unrelated classes
                raise ZooError(f"{card.id}: {name} cannot be loaded: {error}") from None
            if session.providers[0] != providers[0]:
                if device in ("cuda", "tensorrt"):
                    raise RuntimeError(f"{card.id}: {name} got {session.providers}, not {device}")
                log.warning("%s: %s runs on %s", card.id, name, session.providers[0])
            return session

        self._encode = load("encode.onnx") if card.encodes else None
        self._adapt = load("adapt.onnx")
        self._predict = load("predict.onnx")
        self.device = "cpu" if self._predict.providers[0] == CPU else "cuda"
        self.joins_tasks = self.device != "cpu"
        self._chunk = chunk or (GPU_CHUNK if self.joins_tasks else CPU_CHUNK)
        if (card.adaptation is not None) != ("inner_lr" in self._adapt.inputs):
            raise ZooError(f"{card.id}: the card and adapt.onnx disagree about inner_lr")
        if self.device == "cpu" and self._encode is not None and not self._encodes_alike():
            log.warning(
                "%s: its encoder runs image by image, to answer alike in any batch", card.id
            )
            self._chunk = 1

    def _encodes_alike(self) -> bool:
        """Whether an image's features are the same to the bit alone and in company.

        So they were for every shipped entry; an answer must not depend on its neighbours, nor on
        which examples' features came from a cache.
        """
        spec = self.card.input
        shape = (max(_PROBES), spec.channels, spec.height, spec.width)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        alone = np.concatenate([self.encode(image[None]) for image in images])
        return all(np.array_equal(self.encode(images[:n]), alone[:n]) for n in _PROBES)

    def encode(self, images: NDArray[np.uint8]) -> Floats:
        """See `Runtime`."""
        chunks = []
        for start in range(0, len(images), self._chunk):
            scaled = images[start : start + self._chunk].astype(np.float32) / np.float32(255)
            if self._encode is not None:
                features = self._encode.run({"images": scaled}, ["features"])["features"]
                scaled = np.asarray(features, np.float32)
            chunks.append(scaled)
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def adapt(
        self,
        support: Floats,
        labels: NDArray[np.int64],
        mask: NDArray[np.bool_],
        class_mask: NDArray[np.bool_],
        inner_lr: Floats | None = None,
    ) -> State:
        """See `Runtime`."""
        size, n = support.shape[:2]
        if labels.shape != (size, n) or mask.shape != (size, n) or len(class_mask) != size:
            raise ValueError("support, labels, mask and class_mask disagree in shape")
        feed: State = {"support": support, "labels": labels, "mask": mask, "class_mask": class_mask}
        if inner_lr is not None:
            feed["inner_lr"] = inner_lr
        # A graph drops the inputs that its learner has no use for.
        known = {name: value for name, value in feed.items() if name in self._adapt.inputs}
        return self._adapt.run(known, self._adapt.outputs)

    def predict(self, state: State, query: Floats, attention: bool = False) -> Prediction:
        """See `Runtime`."""
        feed: State = {**state, "query": query}
        if {len(value) for value in feed.values()} != {len(query)}:
            raise ValueError("state and query differ in the number of tasks")
        known = {name: value for name, value in feed.items() if name in self._predict.inputs}
        maps = ("task_attention", "query_attention", "support_attention") if attention else ()
        extra = [name for name in ("uncertainty", *maps) if name in self._predict.outputs]
        wanted = ["logits", *extra]
        found = self._predict.run(known, wanted)
        return Prediction(**{name: np.asarray(v, np.float32) for name, v in found.items()})

    def graph(self, part: Literal["encode", "adapt", "predict"]) -> Session:
        """One of the entry's graphs, as it is. Raises `KeyError` where it has none of this kind."""
        graphs = {"encode": self._encode, "adapt": self._adapt, "predict": self._predict}
        if (found := graphs[part]) is None:
            raise KeyError(part)
        return found
