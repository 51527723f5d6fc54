"""The zoo as the service sees it: cards read at start, runtimes loaded on first use."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from models_zoo.cards import CARD_NAME, Card, ZooError, load_card
from models_zoo.names import unknown
from service.engine.events import Events
from service.engine.runtime import Runtime
from service.problems import ModelUnavailable, NotReady, UnknownModel

log = logging.getLogger(__name__)

Loader = Callable[[Card, Path], Runtime]

#: Loads at once; beyond it they wait for each other, and requests for loaded models never do.
_THREADS = 8
#: Memory of a loaded entry, as measured (docs/decisions/model-memory.md): the weights stand in the
#: graphs and again in the safetensors file, so this is about four times the weights.
_BYTES_PER_FILE_BYTE, _BYTES_PER_MODEL = 2, 8 << 20
_STOPPING = "the service is stopping"


class Models:
    """Cards by id, and their runtimes.

    A malformed entry is logged and left out: it must not take the others down with it.
    """

    def __init__(
        self,
        root: Path,
        loader: Loader,
        events: Events | None = None,
        budget: int | None = None,
        pinned: Sequence[str] = (),
    ) -> None:
        """Runtimes that together exceed `budget` bytes are let go, the one asked longest ago
        first, except those `pinned`. Raises `ZooError` where a pinned one does not exist.
        """
        self._root, self._loader = root, loader
        self._events, self._budget, self._pinned = events or Events(), budget, tuple(pinned)
        self._lock, self._closed = threading.Lock(), False
        self._loading: OrderedDict[str, Future[Runtime]] = OrderedDict()
        #: Those of them that are in memory, also where the future is yet to be told.
        self._ready = set[str]()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="load")
        self.cards: dict[str, Card] = {}
        self._malformed: dict[str, ZooError] = {}
        for folder in sorted(path.parent for path in root.glob(f"*/{CARD_NAME}")):
            try:
                self.cards[folder.name] = load_card(folder)
            except ZooError as error:
                self._malformed[folder.name] = error
                log.warning("entry left out: %s", error)
        for entry in self._pinned:
            if entry not in self.cards:
                listed = "`fewshot models list`"
                raise ZooError(unknown("pinned model", entry, self.cards, listed))

    def start(self) -> None:
        """Begin to load the pinned models, in the background."""
        for entry in self._pinned:
            self._future(self.cards[entry])

    def card(self, entry: str) -> Card:
        """Raises `UnknownModel` with the list of known ones, or `ModelUnavailable`."""
        if entry in self._malformed:
            raise _unavailable(entry) from self._malformed[entry]
        try:
            return self.cards[entry]
        except KeyError:
            shown = entry[:64] if entry.isprintable() else "with unprintable characters"
            detail = unknown("model", shown, self.cards, "`GET /v1/models`")
            raise UnknownModel(detail, known=list(self.cards)) from None

    def gradient(self, *entries: str) -> bool:
        """Whether one of them adapts by gradient steps; unknown ones do not."""
        cards = filter(None, map(self.cards.get, entries))
        return any(card.adaptation is not None for card in cards)

    @property
    def loaded(self) -> list[str]:
        """Ids of the models in memory, the one asked longest ago first."""
        with self._lock:
            return [entry for entry, future in self._loading.items() if _is_loaded(future)]

    def check(self, entry: str) -> None:
        """Raises `UnknownModel`, or `ModelUnavailable` where the entry could not be loaded when it
        was asked last."""
        future = self._loading.get(self.card(entry).id)
        if future is not None and future.done() and not _is_loaded(future):
            raise _unavailable(entry)

    async def runtime(self, entry: str) -> Runtime:
        """The entry's runtime, loaded once, off the event loop.

        Who has it may use it even when it is let go meanwhile. Raises `UnknownModel` or
        `ModelUnavailable`, or `NotReady` once closed; a failed load is tried again when next asked.
        """
        future = self._future(self.card(entry))
        if _is_loaded(future):
            return future.result()
        try:
            # Shielded: one caller that gives up must not cancel the load for the others.
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if future.cancelled():  # by `close`, and not the caller
                raise NotReady(_STOPPING) from None
            raise

    def close(self) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _future(self, card: Card) -> Future[Runtime]:
        with self._lock:
            future = self._loading.get(card.id)
            if future is None or (future.done() and not _is_loaded(future)):
                try:
                    future = self._threads.submit(self._load, card)
                except RuntimeError as error:
                    if self._closed:
                        raise NotReady(_STOPPING) from None
                    log.error("cannot load %s: %s", card.id, error)  # no more threads now
                    raise _unavailable(card.id) from error
                self._loading[card.id] = future
            self._loading.move_to_end(card.id)
        return future

    def _load(self, card: Card) -> Runtime:
        start = time.perf_counter()
        try:
            runtime = self._loader(card, self._root)
        except Exception as error:  # graphs that do not fit their card raise a dozen kinds
            log.error("cannot load %s: %s", card.id, error)
            raise _unavailable(card.id) from error
        seconds = time.perf_counter() - start
        log.info("loaded %s %s in %.2f s", card.id, card.version, seconds)
        self._events.loaded(card.id, seconds)
        self._make_room(card.id)
        return runtime

    def _make_room(self, newest: str) -> None:
        """Let go of what was asked longest ago. Jobs that wait or run keep their runtimes."""
        with self._lock:
            if newest in self._loading:  # else nobody waits for it
                self._ready.add(newest)
            sizes = {e: memory_of(self.cards[e]) for e in self._loading if e in self._ready}
            gone = []
            for entry in list(sizes):
                if self._budget is None or sum(sizes.values()) <= self._budget:
                    break
                if entry != newest and entry not in self._pinned:
                    gone.append(entry)
                    del sizes[entry], self._loading[entry]
                    self._ready.remove(entry)
        for entry in gone:
            log.info("unloaded %s", entry)
            self._events.unloaded(entry)
        self._events.models(len(sizes), sum(sizes.values()))


def memory_of(card: Card) -> int:
    """About how many bytes the entry takes once loaded."""
    files = sum(fact.bytes for fact in card.files.values())
    return files * _BYTES_PER_FILE_BYTE + _BYTES_PER_MODEL


def _is_loaded(future: Future[Runtime]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _unavailable(entry: str) -> ModelUnavailable:
    """Without the reason, which may name server paths: that is for the log."""
    return ModelUnavailable(f"{entry} cannot be loaded; the server's log says why")
