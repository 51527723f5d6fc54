"""/v1/support-sets: register labelled images once, ask about them many times."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response

from service.api.auth import Reader, Writer
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.fields import Archive, Attention, InnerLr, Model, QueryImages, Steps, TopK
from service.api.forms import Files, form_or_nothing, read, read_support, require_multipart
from service.api.predictions import rendered
from service.api.set_documents import (
    AddedExamples,
    ExamplePage,
    FileResult,
    SetExample,
    SupportSet,
    SupportSetDetail,
    SupportSetPage,
    SupportSetPatch,
)
from service.api.set_requests import (
    IdempotencyKey,
    IfMatch,
    after_example,
    after_set,
    check_metadata,
    clean_set_name,
    clean_ttl,
    cursor,
    once,
    read_metadata,
)
from service.api.set_use import use_set
from service.classifier import Classifier, Outcome
from service.images import ImageLimits, Upload, inspect
from service.problems import NoSupport, Problem
from service.schemas import AttentionMode, Predictions
from service.store.records import Added, Created, ExampleRecord, NewExample, SetRecord
from service.store.replays import Answer
from service.stored import StoredSupport
from service.tasks import Example, clean_label

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

Images = Annotated[
    Files, File(default_factory=list, description="Labelled images, of any number of classes.")
]
Labels = Annotated[
    list[str],
    Form(
        default_factory=list,
        description="One label per image, in the same order; or one label for all of them.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=100, description="Most entries in one answer.")]
Cursor = Annotated[
    str | None, Query(max_length=500, description="`next_cursor` of the answer before.")
]

CREATE = """\
Make a support set, empty or with its images. It is kept until you delete it or, with a `ttl`,
until it has not been used for so long; it is yours alone. From the repository's root:

    curl http://127.0.0.1:8000/v1/support-sets \\
      -F name=glyphs -F archive=@samples/support.zip

One bad file does not sink the others: `results` says of each image what became of it. Where none of
them could be stored, nothing is made and the answer is 422.
"""

ADD = """\
Add labelled images. `results` says of each what became of it: `created`, `duplicate` (the set holds
these very bytes already) or `rejected` with the problem. 201 if any was stored, 200 if all were
there already, 422 if none could be.

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F name=glyphs \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl http://127.0.0.1:8000/v1/support-sets/$SET/examples \\
      -F images=@samples/support/hook/1.png -F labels=hook \\
      -F images=@samples/support/cross/1.png -F labels=cross
"""

PREDICT = """\
Classify images from the set's examples. Any model can be asked; the classes are the set's labels.
The answer names the model's version and the set's revision that gave it.

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F archive=@samples/support.zip \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl http://127.0.0.1:8000/v1/support-sets/$SET/predictions \\
      -F model=MODEL -F query_images=@samples/queries/hook.png
"""


@router.post(
    "",
    status_code=201,
    summary="Make a support set",
    description=CREATE,
    response_model=AddedExamples,
    dependencies=[Depends(form_or_nothing)],
    responses=problems(400, 401, 403, 409, 413, 415, 422, 429, 503, 504),
)
async def create_support_set(
    request: Request,
    caller: Writer,
    classifier: ClassifierDep,
    store: StoreDep,
    images: Images,
    labels: Labels,
    idempotency_key: IdempotencyKey,
    timeout: TimeoutDep,
    archive: Archive = None,
    name: Annotated[str, Form(description="For people; need not be unique.")] = "",
    metadata: Annotated[str, Form(description="A JSON object that is kept with the set.")] = "",
    ttl: Annotated[
        int | None, Form(description="Seconds to live after the last use; default: for ever.")
    ] = None,
) -> Response:
    name, kept, ttl = clean_set_name(name), read_metadata(metadata), clean_ttl(ttl)
    sent = await read_support(
        classifier, ("images", images), labels, ("archive", archive), one_for_all=True
    )

    async def work() -> Answer:
        async with classifier.admission.admit(max(1, len(sent)), timeout):
            asked = await store.run(once, idempotency_key, request, [name, kept, ttl], sent)
            checked = await _checked(classifier, sent)
            return await store.run(
                store.sets.create,
                caller.id,
                name,
                kept,
                ttl,
                checked,
                _rendered(sent, made=True),
                asked,
            )

    return _response(await unless_gone(request, work()))


@router.get(
    "", summary="Your support sets, the newest first", responses=problems(401, 403, 422, 503)
)
async def list_support_sets(
    caller: Reader, store: StoreDep, limit: Limit = 20, cursor: Cursor = None
) -> SupportSetPage:
    """Those of your API key. `next_cursor` leads to the older ones."""
    found = await store.run(store.sets.page, caller.id, limit + 1, after_set(cursor))
    shown, more = found[:limit], len(found) > limit
    return SupportSetPage(
        support_sets=[SupportSet.of(record) for record in shown],
        next_cursor=_next_set(shown[-1]) if more else None,
    )


@router.get("/{set_id}", summary="One support set", responses=problems(401, 403, 404, 410, 503))
async def get_support_set(
    set_id: str, caller: Reader, store: StoreDep, response: Response
) -> SupportSetDetail:
    """With its classes. The ETag is the revision."""
    record, classes = await store.run(store.sets.get, caller.id, set_id)
    response.headers["ETag"] = _etag(record)
    return SupportSetDetail.with_classes(record, classes)


@router.patch(
    "/{set_id}",
    summary="Change the name, the metadata or the ttl, or rename classes",
    responses=problems(400, 401, 403, 404, 410, 412, 422, 503),
)
async def patch_support_set(
    set_id: str,
    patch: SupportSetPatch,
    caller: Writer,
    classifier: ClassifierDep,
    store: StoreDep,
    if_match: IfMatch,
    response: Response,
) -> SupportSetDetail:
    """What is left out stays; `metadata` is replaced as a whole; `ttl: null` keeps it for ever."""
    changes = patch.model_dump(exclude_unset=True)
    longest = classifier.settings.max_label_length
    if "name" in changes:
        changes["name"] = clean_set_name(changes["name"])
    if "metadata" in changes:
        changes["metadata"] = check_metadata(changes["metadata"])
    if "ttl" in changes:
        changes["ttl"] = clean_ttl(changes["ttl"])
    labels = changes.pop("labels", {})
    labels = {old: clean_label(labels[old], i, longest) for i, old in enumerate(labels)}
    record, classes = await store.run(
        store.sets.patch, caller.id, set_id, changes, labels, if_match
    )
    response.headers["ETag"] = _etag(record)
    return SupportSetDetail.with_classes(record, classes)


@router.delete(
    "/{set_id}",
    status_code=204,
    summary="Delete a support set with all its examples",
    responses=problems(401, 403, 404, 410, 412, 503),
)
async def delete_support_set(
    set_id: str, caller: Writer, store: StoreDep, if_match: IfMatch
) -> None:
    """At once and for good."""
    await store.run(store.sets.delete, caller.id, set_id, if_match)


@router.post(
    "/{set_id}/examples",
    status_code=201,
    summary="Add labelled images",
    description=ADD,
    response_model=AddedExamples,
    dependencies=[Depends(require_multipart)],
    responses=problems(400, 401, 403, 404, 409, 410, 412, 413, 415, 422, 429, 503, 504)
    | {200: {"model": AddedExamples, "description": "Every image was there already"}},
)
async def add_examples(
    set_id: str,
    request: Request,
    caller: Writer,
    classifier: ClassifierDep,
    store: StoreDep,
    images: Images,
    labels: Labels,
    if_match: IfMatch,
    idempotency_key: IdempotencyKey,
    timeout: TimeoutDep,
    archive: Archive = None,
) -> Response:
    await store.run(store.sets.get, caller.id, set_id)  # before any image is decoded
    sent = await read_support(
        classifier, ("images", images), labels, ("archive", archive), one_for_all=True
    )
    if not sent:
        raise NoSupport("send images with labels, or an archive")

    async def work() -> Answer:
        async with classifier.admission.admit(len(sent), timeout):
            asked = await store.run(once, idempotency_key, request, [], sent)
            checked = await _checked(classifier, sent)
            return await store.run(
                store.sets.add, caller.id, set_id, checked, _rendered(sent), if_match, asked
            )

    return _response(await unless_gone(request, work()))


@router.get(
    "/{set_id}/examples",
    summary="The examples, in stored order",
    responses=problems(401, 403, 404, 410, 422, 503),
)
async def list_examples(
    set_id: str,
    caller: Reader,
    store: StoreDep,
    response: Response,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> ExamplePage:
    """The order in which attention and answers count them. Images are at `.../{id}/image`."""
    record, found = await store.run(
        store.sets.examples, caller.id, set_id, limit + 1, after_example(cursor)
    )
    shown, more = found[:limit], len(found) > limit
    response.headers["ETag"] = _etag(record)
    return ExamplePage(
        examples=[SetExample.of(example) for example in shown],
        revision=record.revision,
        next_cursor=_next_example(shown[-1]) if more else None,
    )


@router.delete(
    "/{set_id}/examples/{example_id}",
    status_code=204,
    summary="Delete an example",
    responses=problems(401, 403, 404, 410, 412, 503),
)
async def delete_example(
    set_id: str,
    example_id: str,
    caller: Writer,
    store: StoreDep,
    if_match: IfMatch,
    response: Response,
) -> None:
    """The answer's ETag is the set's new revision."""
    record = await store.run(store.sets.delete_example, caller.id, set_id, example_id, if_match)
    response.headers["ETag"] = _etag(record)


@router.get(
    "/{set_id}/examples/{example_id}/image",
    summary="An example's image, byte for byte as it was sent",
    response_class=Response,
    responses=problems(401, 403, 404, 410, 503)
    | {
        200: {
            "description": "The image, under its true type",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def get_example_image(
    set_id: str, example_id: str, caller: Reader, store: StoreDep
) -> Response:
    """As a download: it is never shown as a page of this address."""
    example, data = await store.run(store.sets.image, caller.id, set_id, example_id)
    return Response(
        data,
        media_type=example.media_type,
        headers={
            # Never a page of this origin, whatever else the bytes may be read as; a name is quoted
            # so that it cannot end the header.
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(example.name, safe='')}",
            "Cache-Control": "private, no-cache",
            "ETag": f'"{example.sha256}"',
        },
    )


@router.post(
    "/{set_id}/predictions",
    summary="Classify images from the set's examples",
    description=PREDICT,
    response_model=Predictions,
    dependencies=[Depends(require_multipart)],
    responses=problems(400, 401, 403, 404, 409, 410, 413, 415, 422, 429, 503, 504),
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
) -> Response:
    queries = await read("query_images", query_images)
    wanted, keep = attention is not AttentionMode.none, attention is AttentionMode.overlay

    def images(stored: StoredSupport) -> int:
        return classifier.images_to_run(model, stored, len(queries), steps, inner_lr)

    async def ask(stored: StoredSupport, deadline: float) -> Outcome:
        return await classifier.classify_stored(
            model, stored, queries, steps, inner_lr, wanted, keep, deadline
        )

    async def work() -> bytes:
        outcome = await use_set(classifier, store, caller, set_id, timeout, images, ask)
        return await rendered(classifier, outcome, attention, top_k)

    return Response(await unless_gone(request, work()), media_type="application/json")


async def _checked(classifier: Classifier, sent: Sequence[Example]) -> list[NewExample]:
    """Each image decoded once, off the event loop, or with the problem that it has."""
    settings = classifier.settings
    limits = ImageLimits(settings.max_pixels, settings.max_image_side)
    checks = [classifier.off_loop(_check, one.label, one.upload, limits) for one in sent]
    return await asyncio.gather(*checks)


def _check(label: str, upload: Upload, limits: ImageLimits) -> NewExample:
    try:
        facts = inspect(upload, limits)
    except Problem as problem:
        return NewExample(label, upload, problem=problem)
    digest = hashlib.sha256(upload.data).hexdigest()
    return NewExample(label, upload, digest, facts.media_type, facts.width, facts.height)


def _rendered(sent: Sequence[Example], made: bool = False) -> Callable[[Added], Answer]:
    """How the answer to new images reads; made within the transaction, to be kept with it."""

    def render(added: Added) -> Answer:
        stored = any(isinstance(one, Created) for one in added.results)
        document = AddedExamples(
            support_set=SupportSetDetail.with_classes(added.set, added.classes),
            results=[
                FileResult.of(index, example.upload.ref.name, result)
                for index, (example, result) in enumerate(zip(sent, added.results, strict=True))
            ],
        )
        headers = {"ETag": _etag(added.set), "Location": f"{router.prefix}/{added.set.id}"}
        return Answer(201 if made or stored else 200, document.model_dump_json().encode(), headers)

    return render


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers, "application/json")


def _etag(record: SetRecord) -> str:
    return f'"{record.revision}"'


def _next_set(last: SetRecord) -> str:
    return cursor(last.created_at, last.id)


def _next_example(last: ExampleRecord) -> str:
    return cursor(last.position)
