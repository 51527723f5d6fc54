"""From an `Ask` to an `Outcome`: what the REST service and the command line share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from models_zoo.cards import Card
from service.archives import ArchiveLimits
from service.engine.admission import Admission
from service.engine.caches import feature_cache, state_cache
from service.engine.engine import Engine
from service.engine.episode import Answer, Episode, Floats, State
from service.engine.events import Events
from service.engine.models import Models
from service.engine.runtime import Runtime
from service.images import ImageLimits, Picture, Upload, decode
from service.problems import NoSupport
from service.settings import MB, Settings
from service.stored import StoredSupport
from service.tasks import Ask, check_limits, classes_of, learning_rates, order_count
from service.together import gathered

#: Most bytes of files that one thread reads in a row, and about how long it may take.
_PART_BYTES, _TURN_S = 64 << 10, 0.05

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """An answered `Ask`. `answer` speaks of classes and examples by index, in these orders.

    `support` is empty where the examples' pictures were not needed; `support_key` is that of a
    stored support set.
    """

    card: Card
    classes: list[str]
    labels: list[str]
    support: list[Picture]
    queries: list[Picture]
    answer: Answer
    decode_seconds: float
    support_key: str | None = None


@dataclass(frozen=True)
class Learned:
    """What a model learned from a stored support set.

    rates     the learning rates of its steps; None for learners without them
    state     `[1, ...]` each; where tasks were adapted together, of at least so many classes
    features  `[N, ...]` of the examples; None unless asked for
    """

    card: Card
    classes: list[str]
    rates: tuple[float, ...] | None
    state: State
    features: Floats | None = None


@dataclass(frozen=True)
class _Task:
    """What was asked, checked: `labels` one per example, `rates` one per adaptation step."""

    card: Card
    labels: list[str]
    rates: tuple[float, ...] | None
    orders: int = 1

    @property
    def classes(self) -> list[str]:
        return classes_of(self.labels)

    def pictured(self, keep: bool) -> bool:
        """Whether what is drawn on copies that are kept is drawn on examples, too."""
        return keep and self.card.attention.support is not None

    def episode(
        self, support: Sequence[Picture], queries: Sequence[Picture], attention: bool = False
    ) -> Episode:
        """Without `queries` a blank image is asked about, to learn the task alone."""
        index = {label: i for i, label in enumerate(self.classes)}
        none = blank(self.card, 0)
        return Episode(
            model=self.card.id,
            support=np.stack([picture.pixels for picture in support]) if support else none,
            labels=np.array([index[label] for label in self.labels], np.int64),
            way=len(index),
            query=np.stack([p.pixels for p in queries]) if queries else blank(self.card, 1),
            inner_lr=self.rates,
            attention=attention,
            orders=self.orders,
        )


class Classifier:
    """Owns the parts that a request passes through. `start` before use, `close` after."""

    def __init__(
        self, settings: Settings, models: Models | None = None, events: Events | None = None
    ) -> None:
        self.settings = settings
        self.events = events or Events()
        self.models = models or Models(
            settings.zoo,
            self._load,
            self.events,
            settings.model_memory_mb * MB or None,
            settings.pinned_models,
        )
        batch_images = (settings.batch_images or None) if settings.batching else 0
        self.engine = Engine(self.models, batch_images, self.events)
        self.admission = Admission(settings.queue_images, settings.request_timeout_s, self.events)
        self.features = feature_cache(settings.feature_cache_mb * MB, self.events)
        self.states = state_cache(settings.state_cache_mb * MB, self.events)
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @property
    def archive_limits(self) -> ArchiveLimits:
        return ArchiveLimits(self.settings.max_files, self.settings.max_archive)

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.settings.max_pixels, self.settings.max_image_side)

    def start(self) -> None:
        self.engine.start()
        # In the background, so that the first request need not wait for it.
        self._threads.submit(import_module, f"service.engine.{self.settings.runtime}")
        self.models.start()

    def close(self, grace_s: float = 1.0) -> None:
        """Give up what waits; a run that goes on for longer than `grace_s` is left behind."""
        self.engine.close(grace_s)
        self.models.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def classify(
        self,
        ask: Ask,
        attention: bool = False,
        keep: bool = False,
        deadline: float | None = None,
        remember: bool = False,
    ) -> Outcome:
        """Check, decode and run one request; `keep` retains small copies of the images, and
        `remember` what was learned, in the outcome's answer.

        Cancelling drops what has not started, and so does `deadline`, a time of
        `time.perf_counter`. Raises the `Problem`s of `tasks`, `images` and `engine`. Servers call
        it under a permit of `admission`, which gives the deadline.
        """
        labels = [example.label for example in ask.support]
        task = self._task(ask.model, labels, len(ask.queries), ask.steps, ask.inner_lr, ask.orders)
        start = time.perf_counter()
        uploads = [*(example.upload for example in ask.support), *ask.queries]
        pictures = await self._decode(uploads, task.card, keep)
        seconds = time.perf_counter() - start
        self.events.stage(task.card.id, "decode", seconds)
        self.events.request(task.card.id, start, {"decode": seconds})
        support, queries = pictures[: len(labels)], pictures[len(labels) :]
        episode = replace(task.episode(support, queries, attention), remember=remember)
        answer = await self.engine.submit(episode, deadline)
        return Outcome(task.card, task.classes, labels, support, queries, answer, seconds)

    async def classify_stored(
        self,
        model: str,
        stored: StoredSupport,
        queries: Sequence[Upload],
        steps: int | None = None,
        inner_lr: float | None = None,
        attention: bool = False,
        keep: bool = False,
        deadline: float | None = None,
        orders: int | None = None,
    ) -> Outcome:
        """The same of a registered support set: the answer is that of sending its images.

        What was learned from the set before is used again, and so are the features of examples
        that were encoded before; only what is missing is loaded. The outcome's `support` holds
        pictures only where `keep` asks for them and the model looks at support images.
        Raises as `classify`, and `SetChanged` where an example was deleted meanwhile.
        """
        task = self._task(model, stored.labels, len(queries), steps, inner_lr, orders)
        start = time.perf_counter()
        entry = task.card.ref
        state = self.states.get((entry, stored.key, task.rates, task.orders))
        known = {} if state is not None else self._known(entry, stored)
        count = len(stored.labels)
        missing = [] if state is not None else [i for i in range(count) if i not in known]
        pictured = task.pictured(keep)
        wanted = list(range(count)) if pictured else missing
        uploads = await self.off_loop(stored.load, wanted) if wanted else []
        pictures = await self._decode([*uploads, *queries], task.card, keep)
        seconds = time.perf_counter() - start
        self.events.stage(task.card.id, "decode", seconds)
        self.events.request(task.card.id, start, {"decode": seconds})
        support, asked = pictures[: len(wanted)], pictures[len(wanted) :]
        absent = set(missing)
        fresh = [picture for i, picture in zip(wanted, support, strict=True) if i in absent]
        episode = replace(
            task.episode(fresh, asked, attention), known=known, state=state, remember=True
        )
        answer = await self.engine.submit(episode, deadline)
        if answer.state is not None:
            await self.off_loop(self._remember, entry, stored, task, missing, answer)
            answer = replace(answer, features=None, state=None)
        shown = support if pictured else []
        return Outcome(
            task.card, task.classes, task.labels, shown, asked, answer, seconds, stored.key
        )

    def images_to_run(
        self,
        model: str,
        stored: StoredSupport,
        queries: int,
        steps: int | None = None,
        inner_lr: float | None = None,
        orders: int | None = None,
        keep: bool = False,
    ) -> int:
        """How many images `classify_stored` would decode or encode now, in each order: the permit
        that it needs.

        Raises the `Problem`s of `tasks`.
        """
        self.models.card(model)
        if not stored.labels:
            raise NoSupport("the support set has no examples; add some")
        task = self._task(model, stored.labels, queries, steps, inner_lr, orders)
        entry, images = task.card.ref, queries
        if task.pictured(keep):
            images += len(stored.labels)
        elif (entry, stored.key, task.rates, task.orders) not in self.states:
            images += sum(key not in self.features for key in _feature_keys(entry, stored))
        return images * task.orders

    async def learn(
        self,
        model: str,
        stored: StoredSupport,
        steps: int | None = None,
        inner_lr: float | None = None,
        features: bool = False,
        deadline: float | None = None,
    ) -> Learned:
        """Adapt to a registered support set, or recall having done so. Raises as
        `classify_stored`."""
        task = self._task(model, stored.labels, 1, steps, inner_lr)
        entry = task.card.ref
        state = self.states.get((entry, stored.key, task.rates, task.orders))
        known = self._known(entry, stored) if state is None or features else {}
        count = len(stored.labels)
        if state is not None and (not features or len(known) == count):
            found = np.stack([known[i] for i in range(count)]) if features else None
            return Learned(task.card, task.classes, task.rates, state, found)
        missing = [i for i in range(count) if i not in known]
        uploads = await self.off_loop(stored.load, missing) if missing else []
        pictures = await self._decode(uploads, task.card, keep=False)
        episode = replace(task.episode(pictures, []), known=known, remember=True)
        answer = await self.engine.submit(episode, deadline)
        await self.off_loop(self._remember, entry, stored, task, missing, answer)
        assert answer.state is not None
        found = answer.features if features else None
        return Learned(task.card, task.classes, task.rates, answer.state, found)

    def _known(self, entry: str, stored: StoredSupport) -> dict[int, Floats]:
        """Features of those examples that were encoded before, by position."""
        found = map(self.features.get, _feature_keys(entry, stored))
        return {i: features for i, features in enumerate(found) if features is not None}

    def _remember(
        self, entry: str, stored: StoredSupport, task: _Task, fresh: Sequence[int], answer: Answer
    ) -> None:
        """Keep what was computed, as copies that do not hold a batch in memory."""
        assert answer.features is not None and answer.state is not None
        keys = _feature_keys(entry, stored)
        for i in fresh:
            features = answer.features[i].copy()
            features.flags.writeable = False
            self.features.put(keys[i], features)
        for value in answer.state.values():
            value.flags.writeable = False
        self.states.put((entry, stored.key, task.rates, task.orders), answer.state)

    def _task(
        self,
        model: str,
        labels: Sequence[str],
        queries: int,
        steps: int | None,
        inner_lr: float | None,
        orders: int | None = None,
    ) -> _Task:
        """What can be told before any image is read. Raises the `Problem`s of `tasks`."""
        card = self.models.card(model)
        check_limits(labels, queries, card)
        rates = learning_rates(steps, inner_lr, card)
        return _Task(card, list(labels), rates, order_count(orders, card))

    def _load(self, card: Card, root: Path) -> Runtime:
        # Imported on first use: the service answers /readyz before ONNX Runtime is in memory.
        settings = self.settings
        if settings.runtime == "torch":
            from service.engine.torch import TorchRuntime

            chunk, compiled = settings.encode_batch, settings.torch_compile
            return TorchRuntime(card, root, settings.device, settings.threads, chunk, compiled)
        from service.engine.onnx import OnnxRuntime

        lean = settings.model_memory_mb > 0
        return OnnxRuntime(
            card, root, settings.device, settings.threads, settings.encode_batch, lean
        )

    async def off_loop(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in the bounded pool that decodes images and draws overlays."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _decode(self, uploads: Sequence[Upload], card: Card, keep: bool) -> list[Picture]:
        """Decode all uploads; raises the problem of the first one at fault, in their order."""
        side = self.settings.overlay_side if keep else None
        work = partial(decode, spec=card.input, limits=self.image_limits, keep_side=side)
        return await self.in_turns(work, uploads, [len(upload.data) for upload in uploads])

    async def in_turns(
        self, work: Callable[[T], R], items: Sequence[T], sizes: Sequence[int]
    ) -> list[R]:
        """`work` on each item, of so many bytes, in the pool of `off_loop`; in their order.

        No more turns at a time than there are threads, and none once nobody waits: whoever sends
        many or slow images shares the threads with the others, turn about. Raises what `work` does
        on the first item at fault.
        """
        turns = asyncio.Semaphore(self.settings.decode_threads)

        async def done(part: Sequence[T]) -> list[R]:
            found: list[R] = []
            while len(found) < len(part):
                async with turns:
                    found += await self.off_loop(_one_turn, work, part[len(found) :])
            return found

        parts = await gathered(done(part) for part in _parts(items, sizes))
        return [result for part in parts for result in part]


def _feature_keys(entry: str, stored: StoredSupport) -> list[tuple[str, str, str]]:
    """Of each example's features in their cache."""
    return [(entry, stored.owner, digest) for digest in stored.digests]


def _parts(items: Sequence[T], sizes: Sequence[int]) -> list[list[T]]:
    """Runs of small files, each handed to a thread at once: for a drawing, the handing over and
    the waking up would cost as much as the decoding. A photo makes a part of its own."""
    parts: list[list[T]] = []
    room = 0
    for item, size in zip(items, sizes, strict=True):
        if not parts or size > room:
            parts.append([])
            room = _PART_BYTES
        parts[-1].append(item)
        room -= size
    return parts


def _one_turn(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The first of them: a few bytes may be many pixels, and a turn ends with the next image."""
    end, found = time.perf_counter() + _TURN_S, list[R]()
    while len(found) < len(items) and (not found or time.perf_counter() < end):
        found.append(work(items[len(found)]))
    return found


def blank(card: Card, count: int) -> NDArray[np.uint8]:
    """So many black images of the card's size."""
    spec = card.input
    return np.zeros((count, spec.channels, spec.height, spec.width), np.uint8)
