"""POST /v1/predictions: a whole few-shot task in one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from pydantic import BeforeValidator

from service.answers import build
from service.api.dependencies import ClassifierDep, TimeoutDep, problems, unless_gone
from service.archives import read_archive
from service.classifier import Classifier, Outcome
from service.images import Upload, clean_name
from service.problems import FileRef, InvalidRequest, NotMultipart
from service.schemas import AttentionMode, Predictions
from service.settings import Settings
from service.tasks import Ask, Example, clean_label, pair

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])


def _drop_blanks(values: object) -> object:
    """File inputs that were left empty: some forms send them as empty text."""
    return [value for value in values if value != ""] if isinstance(values, list) else values


def _require_multipart(request: Request) -> None:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotMultipart("send the fields and files as multipart/form-data")


Files = Annotated[list[UploadFile], BeforeValidator(_drop_blanks)]

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

Each model's limits on classes, images per class and queries stand on its card
(`GET /v1/models/{id}`), the service's in `GET /v1/limits`. Images: PNG, JPEG, WebP, BMP, GIF or
TIFF; of an animation the first frame. Photos are uprighted, transparency becomes white.
"""


@router.post(
    "",
    summary="Classify images from a few labelled examples",
    description=DESCRIPTION,
    response_model=Predictions,
    dependencies=[Depends(_require_multipart)],
    responses=problems(400, 404, 413, 415, 422, 429, 503, 504),
)
async def predict(
    request: Request,
    classifier: ClassifierDep,
    timeout: TimeoutDep,
    model: Annotated[str, Form(description="Id of a model, from `GET /v1/models`.")],
    support_images: Annotated[
        Files,
        File(default_factory=list, description="Labelled images, of at least two classes."),
    ],
    support_labels: Annotated[
        list[str],
        Form(default_factory=list, description="One label per support image, in the same order."),
    ],
    query_images: Annotated[Files, File(description="The images to classify.")],
    support_archive: Annotated[
        UploadFile | None,
        File(description="Instead of images and labels: a zip with one folder per class."),
    ] = None,
    attention: Annotated[
        AttentionMode,
        Form(description="Also answer what the model looked at, as numbers or as pictures."),
    ] = AttentionMode.none,
    top_k: Annotated[
        int | None, Form(ge=1, description="Only the `top_k` most probable classes of each query.")
    ] = None,
    steps: Annotated[
        int | None,
        Form(ge=0, description="Gradient steps of the adaptation; only for models that have them."),
    ] = None,
    inner_lr: Annotated[
        float | None, Form(gt=0, description="Learning rate of these steps.")
    ] = None,
) -> Response:
    settings = classifier.settings
    support = await _support(classifier, support_images, support_labels, support_archive)
    queries = await _read("query_images", query_images)
    ask = Ask(model, tuple(support), tuple(queries), steps, inner_lr)

    async def answer() -> bytes:
        wanted, keep = attention is not AttentionMode.none, attention is AttentionMode.overlay
        async with classifier.admission.admit(ask.images, timeout) as deadline:
            outcome = await classifier.classify(ask, wanted, keep, deadline)
            # Serialised off the event loop: overlays and maps may run to megabytes.
            return await classifier.off_loop(_serialised, outcome, attention, top_k, settings)

    return Response(await unless_gone(request, answer()), media_type="application/json")


def _serialised(
    outcome: Outcome, mode: AttentionMode, top_k: int | None, settings: Settings
) -> bytes:
    return build(outcome, mode, top_k, settings).model_dump_json().encode()


async def _support(
    classifier: Classifier,
    images: Sequence[UploadFile],
    labels: Sequence[str],
    archive: UploadFile | None,
) -> list[Example]:
    """The labelled examples, from pairs or from an archive."""
    uploads = await _read("support_images", images)
    archives = await _read("support_archive", [archive] if archive else [])
    longest = classifier.settings.max_label_length
    if not archives:
        return pair(uploads, labels, longest)
    if uploads or labels:
        raise InvalidRequest("send either support_archive, or support_images with support_labels")
    upload = archives[0]
    members = await classifier.off_loop(
        read_archive, upload.data, upload.ref, classifier.archive_limits
    )
    return [
        Example(
            clean_label(member.label, index, longest),
            Upload(FileRef("support_archive", index, clean_name(member.path)), member.data),
        )
        for index, member in enumerate(members)
    ]


async def _read(field: str, files: Sequence[UploadFile]) -> list[Upload]:
    """Bytes of each file. A browser's empty file input (no name, no bytes) counts as none."""
    read = [
        Upload(FileRef(field, index, clean_name(file.filename)), await file.read())
        for index, file in enumerate(files)
    ]
    return [
        upload
        for upload, file in zip(read, files, strict=True)
        if upload.data or (file.filename or "")
    ]
