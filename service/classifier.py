"""From an `Ask` to an `Outcome`: what the REST service and the command line share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
        card = self.models.card(ask.model)
        check_limits(ask, card)
        rates = learning_rates(ask, card)
        start = time.perf_counter()
        uploads = [*(example.upload for example in ask.support), *ask.queries]
        pictures = await self._decode(uploads, card, keep)
        decode_seconds = time.perf_counter() - start
        classes = classes_of(ask.support)
        labels = [example.label for example in ask.support]
        support, queries = pictures[: len(labels)], pictures[len(labels) :]
        episode = Episode(
            model=card.id,
            support=np.stack([picture.pixels for picture in support]),
            labels=np.array([classes.index(label) for label in labels], np.int64),
            way=len(classes),
            query=np.stack([picture.pixels for picture in queries]),
            inner_lr=rates,
            attention=attention,
        )
        answer = await self.engine.submit(episode)
        return Outcome(card, classes, labels, support, queries, answer, decode_seconds)

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
