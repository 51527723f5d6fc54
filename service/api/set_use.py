"""Work on a support set as it is now, under a permit and until a deadline."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from service.api.auth import Caller
from service.classifier import Classifier
from service.engine.admission import in_time
from service.problems import SetChanged, StoreUnavailable
from service.store.store import Store
from service.stored import StoredSupport

T = TypeVar("T")

#: A set that is edited again and again while it is asked is told so in the end.
_TRIES = 3


async def use_set(
    classifier: Classifier,
    store: Store,
    caller: Caller,
    set_id: str,
    timeout: float,
    models: Sequence[str],
    images: Callable[[StoredSupport], int],
    work: Callable[[StoredSupport, float], Awaitable[T]],
) -> T:
    """`work` asks `models`, and gets the set and the deadline; `images` is what it counts for in
    the queue.

    Begun again where an example was deleted meanwhile. Raises what `work` does, `Overloaded`,
    `DeadlineExceeded`, and the problems of the store.
    """
    until = time.perf_counter() + timeout
    slow = classifier.models.gradient(*models)
    for left in reversed(range(_TRIES)):
        reading = _read(store, caller, set_id)
        stored, rest = await in_time(reading, until - time.perf_counter(), timeout)
        permit = classifier.admission.admit(
            images(stored), rest, slow, asked_s=timeout, key=caller.id
        )
        async with permit as deadline:
            try:
                return await work(stored, deadline)
            except SetChanged:
                if not left:
                    raise
    raise AssertionError("unreachable")


async def _read(store: Store, caller: Caller, set_id: str) -> StoredSupport:
    """The set, and its use written down where that is due: no harm is done where the deadline
    comes first, for a question is all that is then told to have failed."""
    stored, due = await store.run(store.sets.stored, caller.id, set_id)
    if due:
        with suppress(StoreUnavailable):  # no reason to refuse an answer that needs no write
            await store.run_write(store.sets.touch, caller.id, set_id)
    return stored
