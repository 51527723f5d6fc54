"""What the protocol serves of each zoo entry, by name.

    ID           whole tasks: support images, labels and queries in, probabilities out
    ID.encode    images -> features (only where the encoder is a graph of its own)
    ID.adapt     support features (or images), labels and masks -> the task's state
    ID.predict   state and query features (or images) -> logits and attention

The last three are the entry's graphs as they are. Whole tasks go the way of every request, through
the engine and its batches; graphs run one at a time on a thread of their own, and gradient steps
one task at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models_zoo.cards import Card
from service.classifier import Classifier
from service.engine.episode import Answer, Episode
from service.engine.runtime import Runtime
from service.inference.tensors import DTYPES, Array, Arrays, Declared
from service.problems import InvalidTensor, TooManyImages, UnknownModel
from service.tasks import check_limits, learning_rates
from service.together import gathered

log = logging.getLogger(__name__)

#: What a class that a task does not have gets, where the tasks of a request differ in way.
ABSENT = -1e9
GraphName = Literal["encode", "adapt", "predict"]
GRAPHS: tuple[GraphName, ...] = ("encode", "adapt", "predict")
_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
Part = Literal["task"] | GraphName


@runtime_checkable
class HasGraphs(Protocol):
    """A runtime whose graphs can be run by themselves: ONNX Runtime's."""

    def graph(self, part: GraphName) -> Any: ...


@dataclass(frozen=True)
class Served:
    """One name: what it takes and gives. `usual` is answered where no outputs are named."""

    name: str
    card: Card
    part: Part
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    usual: tuple[str, ...]

    @property
    def takes_steps(self) -> bool:
        """Whether it adapts by gradient steps."""
        return self.card.adaptation is not None and self.part in ("task", "adapt")


class Inference:
    """Finds and runs what is served. Close after use."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        # Gradient steps have a thread of their own, as in the engine: they may take seconds.
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="graphs")
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="graphs-adapt")

    def close(self) -> None:
        for thread in (self._quick, self._steps):
            thread.shutdown(wait=False, cancel_futures=True)

    def card(self, name: str) -> tuple[Card, Part]:
        """The entry and part behind a name. Raises `UnknownModel` or `ModelUnavailable`."""
        models = self._classifier.models
        entry, _, part = name.rpartition(".")
        if name not in models.cards and entry in models.cards:
            for graph in GRAPHS:
                if part == graph and f"{graph}.onnx" in models.cards[entry].files:
                    return models.cards[entry], graph
        return models.card(name), "task"

    async def find(self, name: str) -> Served:
        """What is behind a name; for graphs the entry is loaded.

        Raises `UnknownModel` or `ModelUnavailable`.
        """
        card, part = self.card(name)
        if part == "task":
            return _task(card)
        return _graph(name, card, part, await self._classifier.models.runtime(card.id))

    async def run(
        self,
        served: Served,
        sizes: dict[str, int],
        arrays: Arrays,
        names: set[str],
        images: int,
        deadline: float | None = None,
    ) -> Arrays:
        """Run it, unless the deadline passes first; `images` is what its permit counts. Raises the
        `Problem`s of a prediction, or `InvalidTensor`."""
        if served.part == "task":
            return await self._tasks(served, arrays, names, deadline)
        runtime = await self._classifier.models.runtime(served.card.id)
        feed = _masked(served, sizes, arrays)
        found = [
            await self._on_thread(served, runtime, task, names, images)
            for task in _turns(served, sizes, feed)
        ]
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([answer[name] for answer in found]) for name in names}

    async def _on_thread(
        self, served: Served, runtime: Runtime, feed: Arrays, names: set[str], images: int
    ) -> Arrays:
        slow = served.takes_steps
        thread = self._steps if slow else self._quick
        job = thread.submit(self._run_graph, served, runtime, feed, names)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel():  # it runs on, and who comes next waits for it
                self._classifier.admission.keep(images, job, slow)
            raise

    async def _tasks(
        self, served: Served, arrays: Arrays, names: set[str], deadline: float | None
    ) -> Arrays:
        attention = any(name.endswith("attention") for name in names)
        episodes = _episodes(served.card, arrays, attention)
        submit = self._classifier.engine.submit
        # One task's fault is the request's: the others need not run.
        answers = await gathered(submit(episode, deadline) for episode in episodes)
        return _joined(arrays, answers, names)

    def _run_graph(self, served: Served, runtime: Runtime, feed: Arrays, names: set[str]) -> Arrays:
        assert served.part != "task" and isinstance(runtime, HasGraphs)
        start = time.perf_counter()
        try:
            found: Arrays = runtime.graph(served.part).run(feed, sorted(names))
        except Exception as error:  # the binding raises a dozen unrelated classes
            log.warning("%s: %s", served.name, error)
            raise InvalidTensor(f"{served.name} cannot be run on these values") from error
        self._classifier.events.stage(served.card.id, served.part, time.perf_counter() - start)
        return found


def images_of(served: Served, sizes: dict[str, int], most: int) -> int:
    """The images that a request counts as. Raises where it is more than the model or one request
    may have."""
    limits = served.card.limits
    bounds = {"N": limits.max_support, "Q": limits.max_query, "way": limits.max_way}
    if served.card.adaptation is not None:
        bounds["S"] = max(1, served.card.adaptation.max_steps)
    for name, bound in bounds.items():
        if sizes.get(name, 0) > bound:
            raise TooManyImages(f"{name} is {sizes[name]}; {served.card.id} takes at most {bound}")
    tasks = sizes.get("B", 1)
    images = sizes.get("M", 0) + tasks * (sizes.get("N", 0) + sizes.get("Q", 0))
    if images > most:
        raise TooManyImages(f"{images} images in one request; at most {most} are taken")
    return images


def _task(card: Card) -> Served:
    spec, attention = card.input, card.attention
    image = (spec.channels, spec.height, spec.width)
    inputs = [
        Declared("support", "UINT8", ("B", "N", *image)),
        Declared("labels", "INT64", ("B", "N")),
        Declared("mask", "BOOL", ("B", "N"), optional=True),
        Declared("query", "UINT8", ("B", "Q", *image)),
    ]
    if card.adaptation is not None:
        inputs.append(Declared("inner_lr", "FP32", ("S",), optional=True))
    outputs = [
        Declared("logits", "FP32", ("B", "Q", "way")),
        Declared("probabilities", "FP32", ("B", "Q", "way")),
    ]
    layers = attention.layers
    if attention.task:
        outputs.append(Declared("task_attention", "FP32", ("B", layers, "Q", "N")))
    if attention.query is not None:
        shape = ("B", layers, "Q", *attention.query)
        outputs.append(Declared("query_attention", "FP32", shape))
    if attention.support is not None:
        wide = ("B", layers, "Q", "N", *attention.support)
        outputs.append(Declared("support_attention", "FP32", wide))
    if card.uncertainty:
        outputs.append(Declared("uncertainty", "FP32", ("B", "Q")))
    usual = ("logits", "probabilities")
    return Served(card.id, card, "task", tuple(inputs), tuple(outputs), usual)


def _graph(name: str, card: Card, part: GraphName, runtime: Runtime) -> Served:
    """Raises `UnknownModel` where the runtime has no graphs, as PyTorch's has not."""
    if not isinstance(runtime, HasGraphs):
        raise UnknownModel(f"{name} is a graph: only the onnx runtime has it", known=[card.id])

    def declared(found: Any) -> Declared:
        sizes = enumerate(found.shape)
        shape = tuple(f"{found.name}.{i}" if size is None else size for i, size in sizes)
        return Declared(found.name, _TYPES[found.type], shape)

    inputs, outputs = (tuple(map(declared, side)) for side in runtime.graph(part).signature())
    return Served(name, card, part, inputs, outputs, tuple(spec.name for spec in outputs))


def _episodes(card: Card, arrays: Arrays, attention: bool) -> list[Episode]:
    """One episode per task. Raises as a prediction whose support set is wrong does."""
    support, labels, query = arrays["support"], arrays["labels"], arrays["query"]
    mask = _mask(arrays)
    rates = _rates(card, arrays.get("inner_lr"))
    episodes = []
    for row in range(len(labels)):
        own = labels[row][mask[row]].astype(np.int64)
        check_limits([str(label) for label in own.tolist()], query.shape[1], card)
        way = len(np.unique(own))
        if own.min() != 0 or own.max() != way - 1:
            raise InvalidTensor(f"task {row}: labels must be 0..way-1, each with an example")
        episodes.append(
            Episode(
                model=card.id,
                support=support[row][mask[row]].astype(np.uint8, copy=False),
                labels=own,
                way=way,
                query=query[row].astype(np.uint8, copy=False),
                inner_lr=rates,
                attention=attention,
            )
        )
    return episodes


def _rates(card: Card, given: Array | None) -> tuple[float, ...] | None:
    if given is None:
        return learning_rates(None, None, card)
    for rate in given.tolist():
        learning_rates(len(given), rate, card)
    return tuple(given.tolist())


def _joined(arrays: Arrays, answers: list[Answer], names: set[str]) -> Arrays:
    """The answers of B tasks as one array each: absent classes and masked examples filled up."""
    n = arrays["labels"].shape[1]
    mask = _mask(arrays)
    way = max(answer.logits.shape[1] for answer in answers)

    def stacked(rows: Sequence[NDArray[np.floating]], fill: float) -> Array:
        wide = [np.pad(r, ((0, 0), (0, way - r.shape[1])), constant_values=fill) for r in rows]
        return np.stack(wide).astype(np.float32)

    found: Arrays = {}
    if "logits" in names:
        found["logits"] = stacked([answer.logits for answer in answers], ABSENT)
    if "probabilities" in names:
        found["probabilities"] = stacked([answer.probabilities for answer in answers], 0.0)
    if "uncertainty" in names:
        told = [answer.uncertainty for answer in answers]
        found["uncertainty"] = np.stack([value for value in told if value is not None])
    for name in names & {"task_attention", "query_attention", "support_attention"}:
        parts = [getattr(answer.attention, name.removesuffix("_attention")) for answer in answers]
        if name != "query_attention":
            parts = [_spread(part, mask[row], n) for row, part in enumerate(parts)]
        found[name] = np.stack(parts).astype(np.float32)
    return found


def _mask(arrays: Arrays) -> NDArray[np.bool_]:
    """Which examples there are; all where the request does not say."""
    given = arrays.get("mask")
    return np.ones(arrays["labels"].shape, np.bool_) if given is None else given.astype(np.bool_)


def _spread(weights: Array, mask: NDArray[np.bool_], n: int) -> Array:
    """Weights `[L, Q, shots, ...]` of the unmasked examples -> `[L, Q, n, ...]`, 0 elsewhere."""
    full = np.zeros((*weights.shape[:2], n, *weights.shape[3:]), np.float32)
    full[:, :, mask] = weights
    return full


def _turns(served: Served, sizes: dict[str, int], feed: Arrays) -> list[Arrays]:
    """What is run at a time: of gradient steps one task, so that others take turns with it and no
    more than that goes on once nobody waits."""
    if not served.takes_steps or any(spec.shape[:1] != ("B",) for spec in served.outputs):
        return [feed]
    batched = {spec.name for spec in served.inputs if spec.shape[:1] == ("B",)}
    return [
        {name: value[i : i + 1] if name in batched else value for name, value in feed.items()}
        for i in range(sizes.get("B", 1))
    ]


def _masked(served: Served, sizes: dict[str, int], arrays: Arrays) -> Arrays:
    """Labels checked, and those of padding set to 0: graphs index by them."""
    feed = dict(arrays)
    if (labels := feed.get("labels")) is not None and labels.dtype == DTYPES["INT64"]:
        mask = _mask(feed)
        way = sizes.get("way", served.card.limits.max_way)
        own = labels[mask]
        if own.size and not ((own >= 0) & (own < way)).all():  # type: ignore[operator]
            raise InvalidTensor(f"labels must lie in 0..{way - 1}")
        feed["labels"] = np.where(mask, labels, np.int64(0))
    if (given := feed.get("inner_lr")) is not None:
        _rates(served.card, given)
    return feed
