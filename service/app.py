"""The application: parts put together, nothing decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from service import faults, openapi, tracing
from service.api import (
    classifiers,
    evaluations,
    examples,
    health,
    inference,
    metrics,
    models,
    pages,
    predictions,
    set_predictions,
    support_sets,
)
from service.api.allowance import Allowance
from service.api.auth import Authentication, warn_if_open
from service.classifier import Classifier
from service.inference.served import Inference
from service.lifecycle import Drain, Lifecycle, draining
from service.metrics import Metrics
from service.middleware import AnswerLimit, BodyLimit, Head, SecurityHeaders
from service.observe import Observe
from service.settings import MB, Settings
from service.store.store import Store

DESCRIPTION = """\
Show a model a few labelled images of classes it has never seen, and it classifies further images
at once. Pick a model under **models**, then send a task under **predictions**.

Faults are answered as problem documents (RFC 9457, `application/problem+json`) whose `type` is
stable; where a file is at fault, `file` names its field, position and name.
"""

#: Every router, in the document's order.
NOUNS = (
    pages, models, predictions, support_sets, examples, set_predictions, evaluations, classifiers,
    inference, health, metrics,
)  # fmt: skip
#: What pages of `cors_origins` may send, and read of an answer.
ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Inference-Header-Content-Length",
    "X-Api-Key",
    "X-Request-Id",
    "X-Request-Timeout",
)
EXPOSED_HEADERS = (
    "Content-Disposition",
    "ETag",
    "Idempotency-Replayed",
    "Inference-Header-Content-Length",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-Id",
)


def create_app(
    settings: Settings, classifier: Classifier | None = None, store: Store | None = None
) -> FastAPI:
    """The service over a classifier and a store, which it starts and closes; by default those of
    the settings."""
    traces = tracing.Tracing(settings.otlp_endpoint) if tracing.wanted(settings) else None
    if classifier is None:
        classifier = Classifier(settings, events=Metrics(settings.device != "cpu", traces))
    store = store or Store(settings)
    events = classifier.events
    counts = events if isinstance(events, Metrics) else Metrics()
    protocol = Inference(classifier)
    lifecycle = Lifecycle()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await store.start()
        await warn_if_open(settings, store)
        classifier.start()
        try:
            async with draining(lifecycle, settings.shutdown_s, settings.drain_s):
                yield
        finally:
            protocol.close()
            classifier.close()
            await store.close()
            if traces is not None:
                await run_in_threadpool(traces.close)

    app = FastAPI(
        title="Few-shot image classification",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # it would lead out of `root_path`
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        generate_unique_id_function=_operation_id,
        form_limits={
            "max_files": settings.max_files,
            "max_fields": settings.max_files,
            "max_part_size": settings.max_field_kb << 10,
        },
    )
    app.state.classifier = classifier
    app.state.store = store
    app.state.lifecycle = lifecycle
    app.state.metrics = counts
    app.state.inference = protocol
    for noun in NOUNS:
        app.include_router(noun.router)
    app.mount("/static", StaticFiles(directory=pages.WEB), name="static")
    every = (route for noun in NOUNS for route in noun.router.routes)
    faults.install(app, [route for route in every if isinstance(route, Route)])
    openapi.install(app, list(classifier.models.cards), settings.port or openapi.PORT)
    # The last added is the outermost.
    app.add_middleware(Head)
    app.add_middleware(Allowance, store=store, workers=settings.workers)
    app.add_middleware(Authentication, store=store, settings=settings)
    app.add_middleware(
        AnswerLimit, most=settings.queue_mb * MB, largest=settings.max_body, events=events
    )
    app.add_middleware(
        BodyLimit,
        limit=settings.max_body,
        seconds=settings.body_timeout_s,
        most=settings.queue_mb * MB,
        events=events,
    )
    app.add_middleware(Drain, lifecycle=lifecycle)
    app.add_middleware(SecurityHeaders)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_credentials=settings.cors_credentials,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
    if traces is not None:
        app.add_middleware(tracing.Trace, tracing=traces)
    app.add_middleware(Observe, metrics=counts)
    return app


def _operation_id(route: APIRoute) -> str:
    """Function names as operation ids: generated clients get clean methods."""
    return route.name
