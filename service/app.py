"""The application: parts put together, nothing decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from service import faults, openapi
from service.api import health, models, pages, predictions
from service.classifier import Classifier
from service.middleware import BodyLimit, SecurityHeaders
from service.settings import Settings

DESCRIPTION = """\
Show a model a few labelled images of classes it has never seen, and it classifies further images
at once. Pick a model under **models**, then send a task under **predictions**.

Faults are answered as problem documents (RFC 9457, `application/problem+json`) whose `type` is
stable; where a file is at fault, `file` names its field, position and name.
"""


def create_app(settings: Settings, classifier: Classifier | None = None) -> FastAPI:
    """The service over a classifier, which it starts and closes; by default one of the settings."""
    classifier = classifier or Classifier(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        classifier.start()
        try:
            yield
        finally:
            classifier.close()

    app = FastAPI(
        title="Few-shot image classification",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        form_limits={
            "max_files": settings.max_files,
            "max_fields": settings.max_files,
            "max_part_size": settings.max_field_kb << 10,
        },
    )
    app.state.classifier = classifier
    for noun in (pages, models, predictions, health):
        app.include_router(noun.router)
    app.mount("/static", StaticFiles(directory=pages.WEB), name="static")
    faults.install(app)
    openapi.install(app, list(classifier.models.cards))
    # The last added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_body)
    app.add_middleware(SecurityHeaders)
    return app


def _operation_id(route: APIRoute) -> str:
    """Function names as operation ids: generated clients get clean methods."""
    return route.name
