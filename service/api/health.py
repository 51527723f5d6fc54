"""Liveness, readiness and limits: open to everyone, no work behind them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.api.dependencies import ClassifierDep, StoreDep, problems
from service.api.forms import known_parameters
from service.api.set_requests import MAX_METADATA, MAX_NAME, MAX_TTL
from service.images import FORMATS
from service.lifecycle import Lifecycle
from service.problems import NotReady

router = APIRouter(tags=["service"])


class Live(BaseModel):
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    models: int = Field(description="Models that may be asked; each is loaded on its first use.")


class ServiceLimits(BaseModel):
    """What the service takes, whatever the model. A model's own limits stand on its card."""

    body_bytes: int
    files: int
    archive_bytes: int = Field(description="Of an archive, once unpacked.")
    image_pixels: int
    image_side: int
    image_formats: list[str]
    label_characters: int
    support_sets: int = Field(description="Support sets of one API key.")
    support_set_examples: int
    support_set_bytes: int = Field(description="Of all images of one support set.")
    set_name_characters: int = Field(description="Of a support set's name.")
    metadata_bytes: int = Field(description="Of a support set's metadata, as JSON.")
    ttl_s: int = Field(description="Most that a support set's `ttl` may be.")
    queue_images: int
    request_timeout_s: float
    max_request_timeout_s: float = Field(description="Most that `X-Request-Timeout` may ask for.")
    overlay_side: int
    overlays: int = Field(description="Overlay pictures in one answer.")
    map_values: int = Field(description="Numbers in the attention maps of one answer.")


@router.get("/livez", summary="Is the process working?", responses=problems(503))
async def live(classifier: ClassifierDep) -> Live:
    """503 when a worker of the engine has died and no other could be started: restart it."""
    if not classifier.engine.alive:
        raise NotReady("a worker of the engine has stopped")
    return Live()


@router.get("/readyz", summary="May requests be sent?", responses=problems(503))
async def ready(request: Request, classifier: ClassifierDep, store: StoreDep) -> Ready:
    """503 while there is nothing to answer with, as soon as the service is to stop, and while the
    database does not answer or, after a write has failed, takes no new one."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    if lifecycle.stopping:
        raise NotReady("the service is stopping")
    if not classifier.engine.alive:
        raise NotReady("the engine is not running")
    if not classifier.models.cards:
        raise NotReady("the zoo has no entries")
    await store.check()
    return Ready(models=len(classifier.models.cards))


@router.get(
    "/v1/limits",
    summary="What the service takes",
    dependencies=[Depends(known_parameters)],
    responses=problems(422),
)
async def limits(classifier: ClassifierDep) -> ServiceLimits:
    """Sizes in bytes, pixels, characters or seconds, as the names say."""
    settings = classifier.settings
    return ServiceLimits(
        body_bytes=settings.max_body,
        files=settings.max_files,
        archive_bytes=settings.max_archive,
        image_pixels=settings.max_pixels,
        image_side=settings.max_image_side,
        image_formats=list(FORMATS),
        label_characters=settings.max_label_length,
        support_sets=settings.max_sets,
        support_set_examples=settings.max_set_examples,
        support_set_bytes=settings.max_set_bytes,
        set_name_characters=MAX_NAME,
        metadata_bytes=MAX_METADATA,
        ttl_s=MAX_TTL,
        queue_images=settings.queue_images,
        request_timeout_s=settings.request_timeout_s,
        max_request_timeout_s=settings.max_request_timeout_s,
        overlay_side=settings.overlay_side,
        overlays=settings.max_overlays,
        map_values=settings.max_map_values,
    )
