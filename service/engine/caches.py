"""What was computed for stored examples and support sets, kept as long as it fits."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from service.engine.episode import Floats, State
from service.engine.events import CacheName, Events

V = TypeVar("V")

#: What an entry costs beside its arrays: the key, and the objects around the bytes.
_OVERHEAD = 500


class Cache(Generic[V]):
    """Bounded in bytes; what was used longest ago goes first. Safe in threads.

    What it holds must not be changed by anybody. `hits` and `misses` count look-ups.
    """

    def __init__(
        self, name: CacheName, most_bytes: int, size_of: Callable[[V], int], events: Events
    ) -> None:
        self._name, self._most, self._size_of = name, most_bytes, size_of
        self._events = events
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        """Whether it is here now; not counted as a look-up."""
        with self._lock:
            return key in self._entries

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
        self._events.cache(self._name, entry is not None)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value; one that would fill more than a quarter of the cache is not kept."""
        size = self._size_of(value) + _OVERHEAD
        if size > self._most // 4:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self.bytes += size - (old[1] if old else 0)
            self._entries[key] = value, size
            while self.bytes > self._most:
                _, (_, freed) = self._entries.popitem(last=False)
                self.bytes -= freed
            count, total = len(self._entries), self.bytes
        self._events.cached(self._name, count, total)


def feature_cache(most_bytes: int, events: Events) -> Cache[Floats]:
    return Cache("features", most_bytes, lambda features: features.nbytes, events)


def state_cache(most_bytes: int, events: Events) -> Cache[State]:
    return Cache("states", most_bytes, lambda s: sum(value.nbytes for value in s.values()), events)
