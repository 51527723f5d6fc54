"""What routes are given.

Dependencies are coroutines, though none waits: any other would be sent to a thread and back, at ten
times its cost, five times in a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header
from starlette.requests import ClientDisconnect, Request

from service.classifier import Classifier
from service.schemas import ProblemDocument
from service.store.store import Store

T = TypeVar("T")


async def _classifier(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    return classifier


ClassifierDep = Annotated[Classifier, Depends(_classifier)]


async def _timeout(
    classifier: ClassifierDep,
    x_request_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            description="Seconds that the answer may take; later it is worth nothing to you, and "
            "the work is dropped with 504. Cut to the service's maximum (`GET /v1/limits`).",
        ),
    ] = None,
) -> float:
    """Seconds, for `admission.admit`."""
    settings = classifier.settings
    if x_request_timeout is None:
        return settings.request_timeout_s
    return min(x_request_timeout, settings.max_request_timeout_s)


TimeoutDep = Annotated[float, Depends(_timeout)]


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


StoreDep = Annotated[Store, Depends(_store)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer, for OpenAPI."""
    return {status: {"model": ProblemDocument} for status in statuses}


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, or cancel it as soon as the client has gone. The body must have been read.

    Raises `ClientDisconnect`.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect()
    finally:
        working.cancel()
        watching.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
