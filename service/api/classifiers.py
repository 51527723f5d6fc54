"""/v1/support-sets/{id}/classifier.onnx: a task to take away."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.auth import Reader
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.fields import INNER_LR, MODEL, STEPS
from service.api.forms import known_parameters
from service.api.set_requests import IfNoneMatch, matches
from service.api.set_use import use_set
from service.export import etag, export_stored
from service.stored import StoredSupport

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

MEDIA_TYPE = "application/octet-stream"

EXPORT = """\
The classifier that a model makes of the set's examples, as one ONNX file that needs ONNX Runtime
and nothing else, and answers as `POST .../predictions` does, with the examples in stored order
(`orders` is not for files).

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F archive=@samples/support.zip \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl -o classifier.onnx http://127.0.0.1:8000/v1/support-sets/$SET/classifier.onnx?model=MODEL

Input `images`: uint8 `[N, C, H, W]`, images brought to the model's size. Output `probabilities`:
float32 `[N, way]`. The file's metadata hold `labels` (a JSON list, one per column), `model` and
`support_set` with version and revision, `preprocessing` (JSON: how an image becomes
pixels, each step in words and their `order`), `license`, and `inner_lr` (a JSON list, one rate per
step) where the model adapts by gradient steps.

It is made anew each time; with `If-None-Match` only if it would be another file.
"""


@router.get(
    "/{set_id}/classifier.onnx",
    summary="Take the classifier away as one ONNX file",
    description=EXPORT,
    response_class=Response,
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 409, 410, 422, 429, 503, 504)
    | {
        200: {
            "description": "The file",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "You have this very file"},
    },
)
async def get_support_set_classifier(
    set_id: str,
    request: Request,
    caller: Reader,
    classifier: ClassifierDep,
    store: StoreDep,
    timeout: TimeoutDep,
    model: Annotated[str, Query(description=MODEL)],
    steps: Annotated[int | None, Query(ge=0, description=STEPS)] = None,
    inner_lr: Annotated[float | None, Query(gt=0, description=INNER_LR)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async def export(stored: StoredSupport, deadline: float) -> Response:
        tag = etag(classifier, model, stored, steps, inner_lr)
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if matches(tag, if_none_match):
            return Response(status_code=304, headers=headers)
        name, data = await export_stored(classifier, model, stored, steps, inner_lr, deadline)
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return Response(data, media_type=MEDIA_TYPE, headers=headers)

    def images(stored: StoredSupport) -> int:
        return classifier.images_to_run(model, stored, 1, steps, inner_lr)

    work = use_set(classifier, store, caller, set_id, timeout, [model], images, export)
    return await unless_gone(request, work)
