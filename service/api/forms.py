"""What bodies and addresses may hold, and multipart forms: files and labelled files, as routes
share them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, get_origin

from fastapi import Request, UploadFile
from pydantic import BeforeValidator
from starlette.datastructures import ImmutableMultiDict

from service.archives import archive_size, read_archive
from service.classifier import Classifier
from service.images import Upload, clean_name
from service.problems import FileRef, InvalidLabel, InvalidRequest, NotJson, NotMultipart
from service.tasks import Example, clean_label, pair

#: Unknown fields that an answer names.
_MOST_NAMED = 5


def _drop_blanks(values: object) -> object:
    """File inputs that were left empty: some forms send them as empty text."""
    return [value for value in values if value != ""] if isinstance(values, list) else values


async def require_multipart(request: Request) -> None:
    """A dependency. Raises `NotMultipart`."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotMultipart("send the fields and files as multipart/form-data")


async def require_json(request: Request) -> None:
    """A dependency. Raises `NotJson`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/.+\+json", kind):
        raise NotJson("send a JSON object as application/json")


async def known_fields(request: Request) -> None:
    """A dependency: a misspelt field, one in the address, or all but the last of those that are no
    list would be ignored otherwise. Raises `InvalidRequest`.

    The form has been read by then, within the service's limits, and is only looked at again.
    """
    _refuse_odd("field", await request.form(), request.scope["route"].dependant.body_params)
    _refuse_odd("parameter of the address", request.query_params, [], "send fields in the form")


async def known_parameters(request: Request) -> None:
    """A dependency: the same of what the address holds. Raises `InvalidRequest`."""
    _refuse_odd("parameter", request.query_params, request.scope["route"].dependant.query_params)


def _refuse_odd(
    kind: str,
    given: ImmutableMultiDict[str, Any],
    params: Iterable[Any],
    none: str = "there are none",
) -> None:
    """`params` are FastAPI's, which has no public name for their type; `none` is said where it
    takes none."""
    known = {param.alias: param.field_info.annotation for param in params}
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(map(clean_name, unknown[:_MOST_NAMED]))
        there = f"there are {', '.join(known)}" if known else none
        raise InvalidRequest(f"no such {kind}: {names}; {there}")
    single = [name for name, annotation in known.items() if get_origin(annotation) is not list]
    repeated = [name for name in single if len(given.getlist(name)) > 1]
    if repeated:
        raise InvalidRequest(f"{kind} given more than once: {', '.join(repeated)}; send one of it")


async def form_or_nothing(request: Request) -> None:
    """A dependency of routes that can do without a body. Raises `NotMultipart`."""
    kind = request.headers.get("content-type", "multipart/form-data").lower()
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise NotMultipart("send the fields and files as multipart/form-data")


Files = Annotated[list[UploadFile], BeforeValidator(_drop_blanks)]


async def support_size(
    classifier: Classifier, images: Sequence[UploadFile], archive: tuple[str, UploadFile | None]
) -> int:
    """What the support counts for in the queue, before any of it is unpacked. Raises the problems
    of `archives`."""
    field, file = archive
    found = await read(field, [file] if file else [])
    if file is None or not found:
        return len(images)
    await file.seek(0)
    [upload] = found
    return await classifier.off_loop(
        archive_size, upload.data, upload.ref, classifier.archive_limits
    )


async def read_support(
    classifier: Classifier,
    images: tuple[str, Sequence[UploadFile]],
    labels: Sequence[str],
    archive: tuple[str, UploadFile | None],
    one_for_all: bool = False,
) -> list[Example]:
    """The labelled examples, from pairs or from an archive, each given with its field's name.

    `one_for_all`: a single label may stand for every image, and what is wrong with one of an
    archive's files or folders is the problem of that one. Raises the problems of `tasks` and
    `archives`.
    """
    uploads = await read(*images)
    archives = await read(archive[0], [archive[1]] if archive[1] else [])
    longest = classifier.settings.max_label_length
    if not archives:
        return pair(uploads, labels, longest, one_for_all)
    if uploads or labels:
        raise InvalidRequest(f"send either {archive[0]}, or {images[0]} with labels")
    upload = archives[0]
    limits = classifier.archive_limits
    members = await classifier.off_loop(
        read_archive, upload.data, upload.ref, limits, whole=not one_for_all
    )
    examples = []
    for index, member in enumerate(members):
        ref = FileRef(archive[0], index, clean_name(member.path))
        label, problem = (
            "",
            member.problem and type(member.problem)(member.problem.detail, file=ref),
        )
        try:
            if problem is None:
                label = clean_label(member.label, index, longest)
        except InvalidLabel as fault:
            if not one_for_all:
                raise
            problem = InvalidLabel(fault.detail, file=ref)
        examples.append(Example(label, Upload(ref, member.data), problem))
    return examples


async def read(field: str, files: Sequence[UploadFile]) -> list[Upload]:
    """Bytes of each file. A browser's empty file input (no name, no bytes) counts as none."""
    found = [
        Upload(FileRef(field, index, clean_name(file.filename)), await file.read())
        for index, file in enumerate(files)
    ]
    return [
        upload
        for upload, file in zip(found, files, strict=True)
        if upload.data or (file.filename or "")
    ]
