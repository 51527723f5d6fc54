"""What the service counts, for Prometheus. One `Metrics` per application.

With several worker processes, prometheus-client keeps every value in a file per process, in the
folder that PROMETHEUS_MULTIPROC_DIR named when it was imported; `fewshot serve` makes and removes
that folder. A scrape of any worker then adds up all of them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.engine.events import CacheName, Dropped, Events, Lane, Stage
from service.gpu import GpuMemory
from service.version import version

if TYPE_CHECKING:
    from service.tracing import Tracing

CONTENT_TYPE = CONTENT_TYPE_LATEST
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
#: In the environment of a worker that was started in the place of one that died.
REPLACEMENT = "WORKER_REPLACEMENT"

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_LOAD_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics(Events):
    """Counts requests, and as `Events` what the engine does."""

    def __init__(self, gpu: bool = False, tracing: Tracing | None = None) -> None:
        """`gpu`: also tell the memory of the machine's NVIDIA GPUs, where they can be read.
        `tracing`: where the stages of each request go as well."""
        self._tracing = tracing
        self._registry = registry = CollectorRegistry()
        self._gpu = GpuMemory() if gpu else None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fewshot_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: str = "livesum") -> Gauge:
            return Gauge(
                f"fewshot_{name}",
                text,
                labels,
                registry=registry,
                multiprocess_mode=mode,  # type: ignore[arg-type]
            )

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"fewshot_{name}", text, labels, registry=registry, buckets=buckets)

        self._requests = counter(
            "http_requests_total", "Requests answered.", "method", "route", "status"
        )
        self._seconds = histogram(
            "http_request_duration_seconds",
            "From a request's first line to its answer's last byte.",
            _REQUEST_SECONDS,
            "method",
            "route",
            "status",
        )
        self._errors = counter("http_server_errors_total", "Requests answered 500 and above.")
        self._open = gauge("http_requests_in_progress", "Requests being answered.")
        self._queue = gauge("queue_images", "Images of the requests that wait or run.")
        self._refused = counter("refused_requests_total", "Requests answered 429 for want of room.")
        self._dropped = counter(
            "dropped_requests_total", "Requests given up before they ran.", "model", "reason"
        )
        self._batch_requests = histogram(
            "batch_requests", "Requests run together.", _BATCH_SIZES, "model", "lane"
        )
        self._batch_images = histogram(
            "batch_images", "Images encoded together.", _BATCH_SIZES, "model", "lane"
        )
        self._stages = histogram(
            "stage_duration_seconds",
            "decode, queue: a request's images, its wait; encode, adapt, predict: a batch's run.",
            _STAGE_SECONDS,
            "model",
            "stage",
        )
        self._halved = counter(
            "batches_halved_total", "Batches that ran out of memory.", "model", "lane"
        )
        self._restarts = counter(
            "engine_restarts_total", "Engine threads started anew after their death.", "lane"
        )
        counter(
            "worker_restarts_total", "Worker processes started in the place of one that died."
        ).inc(REPLACEMENT in os.environ)
        self._loads = histogram(
            "model_load_duration_seconds", "Reading a model into memory.", _LOAD_SECONDS, "model"
        )
        self._unloads = counter(
            "model_unloads_total", "Models put out of memory to stay within the budget.", "model"
        )
        self._models = gauge("models_loaded", "Models in memory.")
        self._model_bytes = gauge("models_loaded_bytes", "About what they take.")
        self._lookups = counter(
            "cache_lookups_total", "Look-ups in a cache; result is hit or miss.", "cache", "result"
        )
        self._cache_entries = gauge("cache_entries", "Entries that a cache holds.", "cache")
        self._cache_bytes = gauge("cache_bytes", "Bytes that a cache holds.", "cache")
        # A rate needs the count before the first event: there from the start where the labels are
        # known, and from a model's loading on (see `loaded`).
        for cache in get_args(CacheName):
            for result in ("hit", "miss"):
                self._lookups.labels(cache, result)
        for lane in get_args(Lane):
            self._restarts.labels(lane)
        build = gauge("build_info", "Always 1.", "version", "python", mode="livemax")
        build.labels(version(), platform.python_version()).set(1)

    def exposition(self) -> bytes:
        """The text that Prometheus reads: of all workers where there are several."""
        registry = self._registry
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = generate_latest(registry)
        if self._gpu is not None:
            machine = CollectorRegistry()
            machine.register(self._gpu)
            text += generate_latest(machine)
        return text

    # Requests

    def started(self) -> None:
        self._open.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template, never the path, so that there are few."""
        self._open.dec()
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route, str(status)).observe(seconds)
        if status >= 500:
            self._errors.inc()

    # The engine: see `Events`

    def queue(self, images: int) -> None:
        self._queue.set(images)

    def refused(self, images: int) -> None:
        self._refused.inc()

    def dropped(self, model: str, why: Dropped) -> None:
        self._dropped.labels(model, why).inc()

    def batch(self, model: str, lane: Lane, episodes: int, images: int) -> None:
        self._batch_requests.labels(model, lane).observe(episodes)
        self._batch_images.labels(model, lane).observe(images)

    def stage(self, model: str, stage: Stage, seconds: float) -> None:
        self._stages.labels(model, stage).observe(seconds)

    def request(self, model: str, start: float, seconds: Mapping[str, float]) -> None:
        if self._tracing is not None:
            self._tracing.stages(model, start, seconds)

    def halved(self, model: str, lane: Lane, episodes: int) -> None:
        self._halved.labels(model, lane).inc()

    def restarted(self, lane: Lane) -> None:
        self._restarts.labels(lane).inc()

    def loaded(self, model: str, seconds: float) -> None:
        self._loads.labels(model).observe(seconds)
        self._unloads.labels(model)
        for why in get_args(Dropped):
            self._dropped.labels(model, why)
        for lane in get_args(Lane):
            self._halved.labels(model, lane)

    def unloaded(self, model: str) -> None:
        self._unloads.labels(model).inc()

    def models(self, count: int, size: int) -> None:
        self._models.set(count)
        self._model_bytes.set(size)

    def cache(self, name: CacheName, hit: bool) -> None:
        self._lookups.labels(name, "hit" if hit else "miss").inc()

    def cached(self, name: CacheName, entries: int, size: int) -> None:
        self._cache_entries.labels(name).set(entries)
        self._cache_bytes.labels(name).set(size)
