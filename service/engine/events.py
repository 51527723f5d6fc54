"""What the engine tells of itself while it works: the hook on which metrics hang."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Lane = Literal["forward", "gradient"]
#: "decode" comes before the engine, "queue" is the wait for the runtime; the others are what the
#: runtime does.
Stage = Literal["decode", "queue", "encode", "adapt", "predict"]
#: "features": of stored examples, by their bytes. "states": adapted support sets.
CacheName = Literal["features", "states"]
#: Why a request that waited was never run.
Dropped = Literal["gone", "deadline", "stopping"]


class Events:
    """Called where something happens; does nothing by default.

    Derive from it, override what is to be counted, and hand it to
    `Classifier(settings, events=...)`. Methods are called from worker threads and from the event
    loop, some at once: they must be quick and safe in threads, and must not raise. Seconds are
    wall time, sizes are bytes, `model` is an entry's id.
    """

    def queue(self, images: int) -> None:
        """The images of all requests that wait or run have become `images` (a gauge)."""

    def refused(self, images: int) -> None:
        """A request of `images` images was answered 429; 0 where a body or an answer
        found no room."""

    def dropped(self, model: str, why: Dropped) -> None:
        """A request was given up before it ran."""

    def batch(self, model: str, lane: Lane, episodes: int, images: int) -> None:
        """Some requests were run together; `images` went through the encoder."""

    def stage(self, model: str, stage: Stage, seconds: float) -> None:
        """One stage of one batch took `seconds`; "decode" and "queue" are told for each request."""

    def request(self, model: str, start: float, seconds: Mapping[str, float]) -> None:
        """A request passed some stages, one after another from `start` on, a time of
        `time.perf_counter`. Called from the request's own task, unlike the others."""

    def halved(self, model: str, lane: Lane, episodes: int) -> None:
        """A batch of so many requests ran out of memory and is tried again in halves."""

    def restarted(self, lane: Lane) -> None:
        """A lane's worker thread had died and was started anew."""

    def loaded(self, model: str, seconds: float) -> None:
        """A model was read into memory."""

    def unloaded(self, model: str) -> None:
        """A model was put out of memory, to stay within the budget."""

    def models(self, count: int, size: int) -> None:
        """So many models, of about `size` bytes, are now in memory (gauges)."""

    def cache(self, name: CacheName, hit: bool) -> None:
        """Something was looked up: an example's features, or a support set's state."""

    def cached(self, name: CacheName, entries: int, size: int) -> None:
        """A cache now holds so many entries and bytes (gauges)."""
