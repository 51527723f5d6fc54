"""/v1/support-sets/{id}/examples: the labelled images of a support set."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response

from service.api.auth import Reader, Writer
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.fields import Archive
from service.api.forms import known_fields, known_parameters, require_multipart, support_size
from service.api.new_examples import (
    Images,
    Labels,
    check_examples,
    read_examples,
    rendering,
    respond,
)
from service.api.set_documents import AddedExamples, ExamplePage, SetExample
from service.api.set_requests import (
    REVISION,
    Cursor,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Limit,
    after_example,
    etag,
    matches,
    next_example,
    once,
)
from service.engine.admission import in_time
from service.problems import NoSupport
from service.store.replays import Answer

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

ADD = """\
Add labelled images. `results` says of each what became of it: `created`, `duplicate` (the set holds
these very bytes already; with a `problem` where under another label) or `rejected` with the
problem. 201 if any was stored, 200 if all were there already, 422 if none could be. In an archive
that goes for a file outside the class folders and for an empty class folder too.

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F name=glyphs \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl http://127.0.0.1:8000/v1/support-sets/$SET/examples \\
      -F images=@samples/support/hook/1.png -F labels=hook \\
      -F images=@samples/support/cross/1.png -F labels=cross
"""


@router.post(
    "/{set_id}/examples",
    status_code=201,
    summary="Add labelled images",
    description=ADD,
    response_model=AddedExamples,
    dependencies=[Depends(require_multipart), Depends(known_fields)],
    responses=problems(400, 401, 403, 404, 408, 409, 410, 412, 413, 415, 422, 429, 503, 504)
    | {200: {"model": AddedExamples, "description": "Every image was there already"} | REVISION}
    | {201: REVISION},
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

    async def work() -> Answer:
        sizing = support_size(classifier, images, ("archive", archive))
        size, rest = await in_time(sizing, timeout)
        permit = classifier.admission.admit(max(1, size), rest, asked_s=timeout, key=caller.id)
        async with permit:
            sent = await read_examples(classifier, images, labels, archive)
            if not sent:
                raise NoSupport("send images with labels, or an archive")
            asked = await store.run(once, idempotency_key, request, [], sent)
            checked = await check_examples(classifier, sent)
            return await store.run_write(
                store.sets.add, caller.id, set_id, checked, rendering(sent), if_match, asked
            )

    return respond(await unless_gone(request, work()), classifier.settings.root_path)


@router.get(
    "/{set_id}/examples",
    summary="The examples, in stored order",
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 410, 422, 429, 503) | {200: REVISION},
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
    response.headers["ETag"] = etag(record)
    return ExamplePage(
        examples=[SetExample.of(example) for example in shown],
        revision=record.revision,
        next_cursor=next_example(shown[-1]) if more else None,
    )


@router.delete(
    "/{set_id}/examples/{example_id}",
    status_code=204,
    summary="Delete an example",
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 410, 412, 422, 429, 503) | {204: REVISION},
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
    record = await store.run_write(
        store.sets.delete_example, caller.id, set_id, example_id, if_match
    )
    response.headers["ETag"] = etag(record)


@router.get(
    "/{set_id}/examples/{example_id}/image",
    summary="An example's image, byte for byte as it was sent",
    response_class=Response,
    dependencies=[Depends(known_parameters)],
    responses=problems(401, 403, 404, 410, 422, 429, 503)
    | {
        200: {
            "description": "The image, under its true type",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "You have this very file"},
    },
)
async def get_example_image(
    set_id: str,
    example_id: str,
    caller: Reader,
    store: StoreDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """As a download: it is never shown as a page of this address."""
    example, data = await store.run(store.sets.image, caller.id, set_id, example_id)
    headers = {"ETag": f'"{example.sha256}"', "Cache-Control": "private, no-cache"}
    if matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    # Never a page of this origin, whatever else the bytes may be read as; a name is quoted so that
    # it cannot end the header.
    name = quote(example.name, safe="")
    headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    return Response(data, media_type=example.media_type, headers=headers)
