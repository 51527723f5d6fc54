"""New images stored in a set: those that are whole, new and within the limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from service.problems import LabelledOtherwise, NothingAdded, SetFull
from service.store.records import (
    Created,
    Duplicate,
    ExampleRecord,
    Limits,
    NewExample,
    Rejected,
    Result,
)
from service.store.rows import FACTS, chunks, example_record
from service.store.tables import examples, support_sets


def add_images(
    connection: Connection,
    row: Row[Any],
    images: Sequence[NewExample],
    limits: Limits,
    now: float,
) -> list[Result]:
    """Store what can be stored, and count it in the set's row. Raises `NothingAdded` where every
    image was rejected."""
    wanted = {image.sha256 for image in images if image.problem is None}
    query = select(*FACTS).where(examples.c.set_id == row.id)
    known = {
        one.sha256: example_record(one)
        for part in chunks(sorted(wanted))
        for one in connection.execute(query.where(examples.c.sha256.in_(part)))
    }
    count, size, position = row.examples, row.bytes, row.next_position
    results: list[Result] = []
    for image in images:
        if image.problem is not None:
            results.append(Rejected(image.problem))
            continue
        if image.sha256 in known:
            results.append(_duplicate(image, known[image.sha256]))
            continue
        length, file = len(image.upload.data), image.upload.ref
        if count >= limits.examples or size + length > limits.bytes:
            most = f"{limits.examples} examples and {limits.bytes} bytes"
            results.append(Rejected(SetFull(f"a support set holds at most {most}", file=file)))
            continue
        example = ExampleRecord(
            id=f"ex_{secrets.token_hex(12)}",
            position=position,
            label=image.label,
            name=file.name,
            sha256=image.sha256,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            bytes=length,
            created_at=now,
        )
        connection.execute(
            insert(examples).values(**vars(example), set_id=row.id, data=image.upload.data)
        )
        known[image.sha256] = example
        count, size, position = count + 1, size + length, position + 1
        results.append(Created(example))
    if results and all(isinstance(result, Rejected) for result in results):
        raise _nothing_added(results)
    connection.execute(
        update(support_sets)
        .where(support_sets.c.id == row.id)
        .values(examples=count, bytes=size, next_position=position)
    )
    return results


def _duplicate(image: NewExample, present: ExampleRecord) -> Duplicate:
    if image.label == present.label:
        return Duplicate(present)
    detail = (
        f"{image.upload.ref} is there already as {present.label!r}; to give it another label, "
        f"delete {present.id} first"
    )
    return Duplicate(present, LabelledOtherwise(detail, file=image.upload.ref))


def _nothing_added(results: Sequence[Result]) -> NothingAdded:
    """The first fault's file, and every fault."""
    faults = [result.problem for result in results if isinstance(result, Rejected)]
    detail = faults[0].detail
    if len(faults) > 1:
        detail = f"none of {len(faults)} images could be added; the first: {detail}"
    documents = [fault.document() for fault in faults]
    return NothingAdded(detail, file=faults[0].file, rejected=documents)
