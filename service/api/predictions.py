"""POST /v1/predictions: a whole few-shot task in one request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response

from service.answers import build, check_asked
from service.api.auth import Reader
from service.api.dependencies import ClassifierDep, TimeoutDep, problems, unless_gone
from service.api.fields import Archive, Attention, InnerLr, Model, Orders, QueryImages, Steps, TopK
from service.api.forms import (
    Files,
    known_fields,
    read,
    read_support,
    require_multipart,
    support_size,
)
from service.classifier import Classifier, Outcome
from service.engine.admission import in_time
from service.schemas import AttentionMode, Predictions
from service.settings import Settings
from service.tasks import Ask

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])

#: So many probabilities are written sooner than a thread is woken to do it.
_FEW = 200

DESCRIPTION = """\
Send a few labelled images (the support set) and the images to classify (the queries); nothing
is stored. The classes are whatever labels you send.

From the repository's root, with the sample drawings:

    curl http://127.0.0.1:8000/v1/predictions \\
      -F model=MODEL \\
      -F support_images=@samples/support/hook/1.png -F support_labels=hook \\
      -F support_images=@samples/support/cross/1.png -F support_labels=cross \\
      -F support_images=@samples/support/loop/1.png -F support_labels=loop \\
      -F query_images=@samples/queries/cross.png

Or with the support set as a zip, one folder per class, and several queries:

    curl http://127.0.0.1:8000/v1/predictions \\
      -F model=MODEL -F attention=maps \\
      -F support_archive=@samples/support.zip \\
      -F query_images=@samples/queries/hook.png -F query_images=@samples/queries/loop.png

Some models read the examples one after another, and their order matters: their cards say
`order_dependent`. With `orders=8` such a model is shown them in eight fixed orders, the first as
sent, and the answer is the mean of probabilities and of attention; the request then counts for
eight times its images.

Each model's limits on classes, images per class and queries stand on its card
(`GET /v1/models/{id}`), the service's in `GET /v1/limits`. Images: PNG, JPEG, WebP, BMP, GIF or
TIFF; of an animation the first frame. Photos are uprighted, transparency becomes white.
"""


@router.post(
    "",
    summary="Classify images from a few labelled examples",
    description=DESCRIPTION,
    response_model=Predictions,
    dependencies=[Depends(require_multipart), Depends(known_fields)],
    responses=problems(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
)
async def predict(
    request: Request,
    caller: Reader,
    classifier: ClassifierDep,
    timeout: TimeoutDep,
    model: Model,
    support_images: Annotated[
        Files,
        File(default_factory=list, description="Labelled images, of at least two classes."),
    ],
    support_labels: Annotated[
        list[str],
        Form(default_factory=list, description="One label per support image, in the same order."),
    ],
    query_images: QueryImages,
    support_archive: Archive = None,
    attention: Attention = AttentionMode.none,
    top_k: TopK = None,
    steps: Steps = None,
    inner_lr: InnerLr = None,
    orders: Orders = None,
) -> Response:
    archive = ("support_archive", support_archive)

    async def answer() -> bytes:
        wanted, keep = attention is not AttentionMode.none, attention is AttentionMode.overlay
        sizing = support_size(classifier, support_images, archive)
        count, rest = await in_time(sizing, timeout)
        count = (count + len(query_images)) * (orders or 1)  # each order is a task of its own
        slow = classifier.models.gradient(model)
        permit = classifier.admission.admit(count, rest, slow, asked_s=timeout, key=caller.id)
        async with permit as deadline:
            images = ("support_images", support_images)
            support = await read_support(classifier, images, support_labels, archive)
            queries = await read("query_images", query_images)
            card = classifier.models.card(model)
            check_asked(card, len(support), len(queries), attention, classifier.settings)
            ask = Ask(model, tuple(support), tuple(queries), steps, inner_lr, orders)
            outcome = await classifier.classify(ask, wanted, keep, deadline)
            return await rendered(classifier, outcome, attention, top_k)

    return Response(await unless_gone(request, answer()), media_type="application/json")


async def rendered(
    classifier: Classifier, outcome: Outcome, mode: AttentionMode, top_k: int | None
) -> bytes:
    """The answer as JSON; off the event loop where it is large: overlays and maps may run to
    megabytes. Raises `AnswerTooLarge`."""
    small = mode is AttentionMode.none and outcome.answer.logits.size <= _FEW
    if small:
        return _serialised(outcome, mode, top_k, classifier.settings)
    return await classifier.off_loop(_serialised, outcome, mode, top_k, classifier.settings)


def _serialised(
    outcome: Outcome, mode: AttentionMode, top_k: int | None, settings: Settings
) -> bytes:
    return build(outcome, mode, top_k, settings).model_dump_json().encode()
