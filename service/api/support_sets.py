"""/v1/support-sets: register labelled images once, ask about them many times."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response

from service.api.auth import Reader, Writer
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.fields import Archive
from service.api.forms import (
    form_or_nothing,
    known_fields,
    known_parameters,
    require_json,
    support_size,
)
from service.api.new_examples import (
    Images,
    Labels,
    check_examples,
    read_examples,
    rendering,
    respond,
)
from service.api.set_documents import (
    AddedExamples,
    SupportSet,
    SupportSetDetail,
    SupportSetPage,
    SupportSetPatch,
)
from service.api.set_requests import (
    METADATA,
    NAME,
    REVISION,
    TTL,
    Cursor,
    IdempotencyKey,
    IfMatch,
    Limit,
    after_set,
    check_metadata,
    clean_set_name,
    clean_ttl,
    etag,
    next_set,
    once,
    read_metadata,
)
from service.engine.admission import in_time
from service.problems import InvalidRequest
from service.store.replays import Answer
from service.tasks import clean_label, stored_label

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

CREATE = """\
Make a support set, empty or with its images. It is kept until you delete it or, with a `ttl`,
until it has not been used for so long; it is yours alone. From the repository's root:

    curl http://127.0.0.1:8000/v1/support-sets \\
      -F name=glyphs -F archive=@samples/support.zip

One bad file does not sink the others: `results` says of each image what became of it. The same
bytes are stored once, under their first label. Where none of the images could be stored, nothing is
made and the answer is 422.
"""


@router.post(
    "",
    status_code=201,
    summary="Make a support set",
    description=CREATE,
    response_model=AddedExamples,
    dependencies=[Depends(form_or_nothing), Depends(known_fields)],
    responses=problems(400, 401, 403, 408, 409, 413, 415, 422, 429, 503, 504) | {201: REVISION},
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
    name: Annotated[str, Form(description=NAME)] = "",
    metadata: Annotated[str, Form(description=METADATA)] = "",
    ttl: Annotated[int | None, Form(description=f"{TTL}; default: for ever.")] = None,
) -> Response:
    name, kept, ttl = clean_set_name(name), read_metadata(metadata), clean_ttl(ttl)

    async def work() -> Answer:
        sizing = support_size(classifier, images, ("archive", archive))
        size, rest = await in_time(sizing, timeout)
        permit = classifier.admission.admit(max(1, size), rest, asked_s=timeout, key=caller.id)
        async with permit:
            sent = await read_examples(classifier, images, labels, archive)
            asked = await store.run(once, idempotency_key, request, [name, kept, ttl], sent)
            checked = await check_examples(classifier, sent)
            return await store.run_write(
                store.sets.create,
                caller.id,
                name,
                kept,
                ttl,
                checked,
                rendering(sent, made=True),
                asked,
            )

    return respond(await unless_gone(request, work()), classifier.settings.root_path)


@router.get(
    "",
    summary="Your support sets, the newest first",
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 422, 429, 503),
)
async def list_support_sets(
    caller: Reader, store: StoreDep, limit: Limit = 20, cursor: Cursor = None
) -> SupportSetPage:
    """Those of your API key. `next_cursor` leads to the older ones."""
    found = await store.run(store.sets.page, caller.id, limit + 1, after_set(cursor))
    shown, more = found[:limit], len(found) > limit
    return SupportSetPage(
        support_sets=[SupportSet.of(record) for record in shown],
        next_cursor=next_set(shown[-1]) if more else None,
    )


@router.get(
    "/{set_id}",
    summary="One support set",
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 410, 422, 429, 503) | {200: REVISION},
)
async def get_support_set(
    set_id: str, caller: Reader, store: StoreDep, response: Response
) -> SupportSetDetail:
    """With its classes. The ETag is the revision."""
    record, classes = await store.run(store.sets.get, caller.id, set_id)
    response.headers["ETag"] = etag(record)
    return SupportSetDetail.with_classes(record, classes)


@router.patch(
    "/{set_id}",
    summary="Change the name, the metadata or the ttl, or rename classes",
    dependencies=[Depends(require_json), Depends(known_parameters)],
    responses=problems(400, 401, 403, 404, 408, 410, 412, 413, 415, 422, 429, 503)
    | {200: REVISION},
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
    given = changes.pop("labels", {}).items()
    labels = {stored_label(old): clean_label(new, i, longest) for i, (old, new) in enumerate(given)}
    if len(labels) < len(given):
        raise InvalidRequest("labels: one class is named twice")
    record, classes = await store.run_write(
        store.sets.patch, caller.id, set_id, changes, labels, if_match
    )
    response.headers["ETag"] = etag(record)
    return SupportSetDetail.with_classes(record, classes)


@router.delete(
    "/{set_id}",
    status_code=204,
    summary="Delete a support set with all its examples",
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 410, 412, 422, 429, 503),
)
async def delete_support_set(
    set_id: str, caller: Writer, store: StoreDep, if_match: IfMatch
) -> None:
    """At once and for good."""
    await store.run_write(store.sets.delete, caller.id, set_id, if_match)
