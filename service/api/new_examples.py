"""Labelled images for a support set on their way in: their form fields, checks and answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from fastapi import File, Form, Response, UploadFile

from service.api.forms import Files, read_support
from service.api.set_documents import AddedExamples, FileResult, SupportSetDetail
from service.api.set_requests import etag
from service.classifier import Classifier
from service.images import ImageLimits, inspect
from service.problems import OutOfMemory, Problem
from service.store.records import Added, Created, NewExample
from service.store.replays import Answer
from service.tasks import Example

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


async def read_examples(
    classifier: Classifier,
    images: Sequence[UploadFile],
    labels: Sequence[str],
    archive: UploadFile | None,
) -> list[Example]:
    """Raises the problems of `read_support`."""
    return await read_support(
        classifier, ("images", images), labels, ("archive", archive), one_for_all=True
    )


async def check_examples(classifier: Classifier, sent: Sequence[Example]) -> list[NewExample]:
    """Each image decoded once, turn about with other requests, or with the problem that it has."""
    work = partial(_check, limits=classifier.image_limits)
    return await classifier.in_turns(work, sent, [len(one.upload.data) for one in sent])


def _check(one: Example, limits: ImageLimits) -> NewExample:
    try:
        if one.problem is not None:
            raise one.problem
        facts = inspect(one.upload, limits)
    except OutOfMemory:  # no fault of the image's: it may be sent again
        raise
    except Problem as problem:
        return NewExample(one.label, one.upload, problem=problem)
    digest = hashlib.sha256(one.upload.data).hexdigest()
    return NewExample(one.label, one.upload, digest, facts.media_type, facts.width, facts.height)


def rendering(sent: Sequence[Example], made: bool = False) -> Callable[[Added], Answer]:
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
        headers = {"ETag": etag(added.set), "Location": f"/v1/support-sets/{added.set.id}"}
        return Answer(201 if made or stored else 200, document.model_dump_json().encode(), headers)

    return render


def respond(answer: Answer, root: str) -> Response:
    """`root`: what addresses begin with, seen from outside."""
    place = {"Location": root + answer.headers["Location"]}
    return Response(answer.body, answer.status, answer.headers | place, "application/json")
