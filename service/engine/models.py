"""The zoo as the service sees it: cards read at start, runtimes loaded on first use."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from models_zoo.cards import CARD_NAME, Card, ZooError, load_card
from service.engine.runtime import Runtime
from service.problems import ModelUnavailable, UnknownModel

log = logging.getLogger(__name__)

Loader = Callable[[Card, Path], Runtime]


class Models:
    """Cards by id, and their runtimes.

    A malformed entry is logged and left out: it must not take the others down with it.
    """

    def __init__(self, root: Path, loader: Loader) -> None:
        self._root, self._loader = root, loader
        self._lock = threading.Lock()
        self._loading: dict[str, Future[Runtime]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.cards: dict[str, Card] = {}
        self._malformed: dict[str, ZooError] = {}
        for folder in sorted(path.parent for path in root.glob(f"*/{CARD_NAME}")):
            try:
                self.cards[folder.name] = load_card(folder)
            except ZooError as error:
                self._malformed[folder.name] = error
                log.warning("entry left out: %s", error)

    def card(self, entry: str) -> Card:
        """Raises `UnknownModel` with the list of known ones, or `ModelUnavailable`."""
        if entry in self._malformed:
            raise _unavailable(entry) from self._malformed[entry]
        try:
            return self.cards[entry]
        except KeyError:
            known = ", ".join(self.cards) or "none"
            shown = entry[:64] if entry.isprintable() else "with unprintable characters"
            detail = f"no model {shown!r}; known: {known}"
            raise UnknownModel(detail, known=list(self.cards)) from None

    async def runtime(self, entry: str) -> Runtime:
        """The entry's runtime, loaded once, off the event loop.

        Raises `UnknownModel` or `ModelUnavailable`; a failed load is tried again when next asked.
        """
        card = self.card(entry)
        with self._lock:
            future = self._loading.get(entry)
            if future is None or (future.done() and future.exception() is not None):
                future = self._threads.submit(self._load, card)
                self._loading[entry] = future
        # Shielded: one caller that gives up must not cancel the load for the others.
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, card: Card) -> Runtime:
        try:
            runtime = self._loader(card, self._root)
        except (ZooError, RuntimeError) as error:
            log.error("cannot load %s: %s", card.id, error)
            raise _unavailable(card.id) from error
        log.info("loaded %s %s", card.id, card.version)
        return runtime


def _unavailable(entry: str) -> ModelUnavailable:
    """Without the reason, which may name server paths: that is for the log."""
    return ModelUnavailable(f"{entry} cannot be loaded; the server's log says why")
