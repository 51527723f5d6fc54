"""GET /metrics: what Prometheus reads. Open to everyone, like the probes."""

from __future__ import annotations

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from service.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])


@router.get(
    "/metrics",
    summary="Counters and histograms for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Of all worker processes together."""
    found: Metrics = request.app.state.metrics
    return Response(
        await run_in_threadpool(found.exposition), headers={"content-type": CONTENT_TYPE}
    )
