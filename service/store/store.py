"""What the service keeps: one database, and the support sets and keys in it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from service.problems import StoreUnavailable
from service.settings import Settings
from service.store.database import ANSWER_S, Database
from service.store.keys import Keys
from service.store.records import Limits
from service.store.sets import SupportSets
from service.store.threads import in_time
from service.store.usage import Usage

log = logging.getLogger(__name__)


class Store:
    """`start` before use, `close` after. `sets`, `keys` and `usage` block: call by `run`, or by
    `run_write` what writes."""

    def __init__(self, settings: Settings) -> None:
        """Raises `StoreUnavailable` for a database that cannot be used at all."""
        self.database = Database(settings.database, settings.store_threads)
        self.run, self.run_write = self.database.run, self.database.run_write
        limits = Limits(settings.max_sets, settings.max_set_examples, settings.max_set_bytes)
        self.sets = SupportSets(self.database, limits)
        self.keys = Keys(self.database)
        self.usage = Usage(self.database)
        self._sweep_s = settings.sweep_s
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring the tables up to date. A database that is gone is tried again when asked for: the
        service starts regardless, and is not ready until it comes."""
        with suppress(StoreUnavailable):
            await self.run(self.database.open)
        self._sweeping = asyncio.create_task(self._sweep())

    async def check(self) -> None:
        """Raises `StoreUnavailable` unless the database answers in time and takes writes."""
        threads = self.database.writers if self.database.faulted else self.database.readers
        async with in_time(ANSWER_S):
            await threads.run(self.database.check)

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.to_thread(self.database.close)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            try:
                # As a reader: writers of requests are let through between its many writes. It may
                # take its time, and is not begun again before its end.
                await self.database.readers.run(self.sets.sweep)
            except StoreUnavailable:
                pass  # it has been logged
            except Exception:  # must not end the sweeping
                log.exception("expired support sets could not be deleted")
