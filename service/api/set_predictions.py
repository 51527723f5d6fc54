"""/v1/support-sets/{id}/predictions: ask a stored support set, with queries alone."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from service.answers import check_asked
from service.api.auth import Reader
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.fields import Attention, InnerLr, Model, Orders, QueryImages, Steps, TopK
from service.api.forms import known_fields, read, require_multipart
from service.api.predictions import rendered
from service.api.set_use import use_set
from service.schemas import AttentionMode, Predictions
from service.stored import StoredSupport

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

PREDICT = """\
Classify images from the set's examples. Any model can be asked; the classes are the set's labels.
The answer names the model's version and the set's revision that gave it.

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F archive=@samples/support.zip \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl http://127.0.0.1:8000/v1/support-sets/$SET/predictions \\
      -F model=MODEL -F query_images=@samples/queries/hook.png
"""


@router.post(
    "/{set_id}/predictions",
    summary="Classify images from the set's examples",
    description=PREDICT,
    response_model=Predictions,
    dependencies=[Depends(require_multipart), Depends(known_fields)],
    responses=problems(400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 503, 504),
)
async def predict_support_set(
    set_id: str,
    request: Request,
    caller: Reader,
    classifier: ClassifierDep,
    store: StoreDep,
    model: Model,
    query_images: QueryImages,
    timeout: TimeoutDep,
    attention: Attention = AttentionMode.none,
    top_k: TopK = None,
    steps: Steps = None,
    inner_lr: InnerLr = None,
    orders: Orders = None,
) -> Response:
    queries = await read("query_images", query_images)
    wanted, keep = attention is not AttentionMode.none, attention is AttentionMode.overlay

    def images(stored: StoredSupport) -> int:
        return classifier.images_to_run(model, stored, len(queries), steps, inner_lr, orders, keep)

    async def ask(stored: StoredSupport, deadline: float) -> bytes:
        card, count = classifier.models.card(model), len(stored.labels)
        check_asked(card, count, len(queries), attention, classifier.settings)
        outcome = await classifier.classify_stored(
            model, stored, queries, steps, inner_lr, wanted, keep, deadline, orders
        )
        return await rendered(classifier, outcome, attention, top_k)

    work = use_set(classifier, store, caller, set_id, timeout, [model], images, ask)
    return Response(await unless_gone(request, work), media_type="application/json")
