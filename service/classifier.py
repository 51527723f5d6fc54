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

from models_zoo.cards import Card
from service.archives import ArchiveLimits
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.episode import Answer, Episode
from service.engine.events import Events
from service.engine.models import Models
from service.engine.runtime import Runtime
from service.images import ImageLimits, Picture, Upload, decode
from service.settings import Settings
from service.stored import StoredSupport
from service.tasks import Ask, check_limits, classes_of, learning_rates

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome:
    """An answered `Ask`. `answer` speaks of classes and examples by index, in these orders."""

    card: Card
    classes: list[str]
    labels: list[str]
    support: list[Picture]
    queries: list[Picture]
    answer: Answer
    decode_seconds: float


@dataclass(frozen=True)
class _Task:
    """What was asked, checked: `labels` one per example, `rates` one per adaptation step."""

    card: Card
    labels: list[str]
    rates: tuple[float, ...] | None


class Classifier:
    """Owns the parts that a request passes through. `start` before use, `close` after."""

    def __init__(
        self, settings: Settings, models: Models | None = None, events: Events | None = None
    ) -> None:
        self.settings = settings
        self.events = events or Events()
        self.models = models or Models(settings.zoo, self._load)
        self.engine = Engine(self.models)
        self.admission = Admission(settings.queue_images, settings.request_timeout_s)
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @property
    def archive_limits(self) -> ArchiveLimits:
        return ArchiveLimits(self.settings.max_files, self.settings.max_archive)

    def start(self) -> None:
        self.engine.start()
        # In the background, so that the first request need not wait for it.
        self._threads.submit(import_module, "service.engine.onnx")

    def close(self) -> None:
        self.engine.close()
        self.models.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def classify(self, ask: Ask, attention: bool = False, keep: bool = False) -> Outcome:
        """Check, decode and run one request; `keep` retains small copies of the images.

        Cancelling drops what has not started. Raises the `Problem`s of `tasks`, `images` and
        `engine`. Servers call it under a permit of `admission`.
        """
        labels = [example.label for example in ask.support]
        task = self._task(ask.model, labels, len(ask.queries), ask.steps, ask.inner_lr)
        support = [example.upload for example in ask.support]
        return await self._run(task, support, ask.queries, attention, keep)

    async def classify_stored(
        self,
        model: str,
        stored: StoredSupport,
        queries: Sequence[Upload],
        steps: int | None = None,
        inner_lr: float | None = None,
        attention: bool = False,
        keep: bool = False,
    ) -> Outcome:
        """The same of a registered support set: the answer is that of sending its images.

        Raises as `classify`, and `SetChanged` where an example was deleted meanwhile.
        """
        task = self._task(model, stored.labels, len(queries), steps, inner_lr)
        start = time.perf_counter()
        support = await self.off_loop(stored.load, range(len(stored.labels)))
        load_seconds = time.perf_counter() - start
        outcome = await self._run(task, support, queries, attention, keep)
        return replace(outcome, decode_seconds=outcome.decode_seconds + load_seconds)

    def _task(
        self,
        model: str,
        labels: Sequence[str],
        queries: int,
        steps: int | None,
        inner_lr: float | None,
    ) -> _Task:
        """What can be told before any image is read. Raises the `Problem`s of `tasks`."""
        card = self.models.card(model)
        check_limits(labels, queries, card)
        return _Task(card, list(labels), learning_rates(steps, inner_lr, card))

    async def _run(
        self,
        task: _Task,
        support: Sequence[Upload],
        queries: Sequence[Upload],
        attention: bool,
        keep: bool,
    ) -> Outcome:
        start = time.perf_counter()
        pictures = await self._decode([*support, *queries], task.card, keep)
        decode_seconds = time.perf_counter() - start
        classes = classes_of(task.labels)
        examples, asked = pictures[: len(support)], pictures[len(support) :]
        episode = Episode(
            model=task.card.id,
            support=np.stack([picture.pixels for picture in examples]),
            labels=np.array([classes.index(label) for label in task.labels], np.int64),
            way=len(classes),
            query=np.stack([picture.pixels for picture in asked]),
            inner_lr=task.rates,
            attention=attention,
        )
        answer = await self.engine.submit(episode)
        return Outcome(task.card, classes, task.labels, examples, asked, answer, decode_seconds)

    def _load(self, card: Card, root: Path) -> Runtime:
        # Imported on first use: the service answers /readyz before ONNX Runtime is in memory.
        from service.engine.onnx import OnnxRuntime

        settings = self.settings
        return OnnxRuntime(card, root, settings.device, settings.threads, settings.encode_batch)

    async def off_loop(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in the bounded pool that decodes images and draws overlays."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _decode(self, uploads: Sequence[Upload], card: Card, keep: bool) -> list[Picture]:
        """Decode all uploads; raises the problem of the first one at fault, in their order."""
        limits = ImageLimits(self.settings.max_pixels, self.settings.max_image_side)
        side = self.settings.overlay_side if keep else None
        waiting = [
            asyncio.wrap_future(self._threads.submit(decode, upload, card.input, limits, side))
            for upload in uploads
        ]
        try:
            return [await picture for picture in waiting]
        finally:
            for left in waiting:
                left.cancel()
