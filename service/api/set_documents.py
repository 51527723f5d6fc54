"""Support sets as documented types."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.api.set_requests import METADATA, NAME, TTL
from service.schemas import ProblemDocument
from service.store.records import Created, ExampleRecord, Rejected, Result, SetRecord


class SupportSet(BaseModel):
    """A registered support set. It belongs to no model: any may be asked about it."""

    id: str = Field(examples=["set_0123456789abcdef01234567"])
    name: str
    metadata: dict[str, Any] = Field(description="Whatever you keep with it; never interpreted.")
    ttl: int | None = Field(description="Seconds that it lives after its last use; null: for ever.")
    revision: int = Field(description="Grows with each edit; also the ETag.")
    examples: int = Field(description="Number of its examples.")
    bytes: int = Field(description="Of all its images.")
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = Field(
        description="When it goes unless it is used before; each prediction or edit puts it off."
    )

    @classmethod
    def of(cls, record: SetRecord, **more: object) -> Self:
        return cls.model_validate(
            vars(record)
            | {
                "created_at": _time(record.created_at),
                "updated_at": _time(record.updated_at),
                "expires_at": None if record.expires_at is None else _time(record.expires_at),
            }
            | more
        )


class ClassCount(BaseModel):
    """A class of a support set."""

    label: str
    examples: int


class SupportSetDetail(SupportSet):
    """A support set with its classes."""

    classes: list[ClassCount] = Field(description="Sorted by their labels.")

    @classmethod
    def with_classes(cls, record: SetRecord, classes: Sequence[tuple[str, int]]) -> Self:
        return cls.of(record, classes=[ClassCount(label=label, examples=n) for label, n in classes])


class SupportSetPage(BaseModel):
    """Some of the support sets, the newest first."""

    support_sets: list[SupportSet]
    next_cursor: str | None = Field(description="Send it as `cursor` for those that follow.")


class SetExample(BaseModel):
    """A stored example. Its image is at `…/examples/{id}/image`."""

    id: str
    label: str
    filename: str
    sha256: str = Field(description="Of the original bytes.")
    media_type: str
    width: int = Field(description="Upright.")
    height: int
    bytes: int
    created_at: datetime

    @classmethod
    def of(cls, record: ExampleRecord) -> Self:
        return cls.model_validate(
            vars(record) | {"filename": record.name, "created_at": _time(record.created_at)}
        )


class ExamplePage(BaseModel):
    """Some of a support set's examples, in stored order: attention counts them in this order."""

    examples: list[SetExample]
    revision: int
    next_cursor: str | None = Field(description="Send it as `cursor` for those that follow.")


class FileResult(BaseModel):
    """What became of one image, in the order sent."""

    index: int
    filename: str
    status: Literal["created", "duplicate", "rejected"] = Field(
        description="`duplicate`: the set holds these very bytes already; nothing was stored, and "
        "where it holds them under another label than was sent, `problem` says so."
    )
    example: SetExample | None = Field(description="The new example, or the one that was there.")
    problem: ProblemDocument | None = Field(
        description="Why the image was rejected, or is not there under the label that was sent."
    )

    @classmethod
    def of(cls, index: int, filename: str, result: Result) -> Self:
        example = None if isinstance(result, Rejected) else SetExample.of(result.example)
        problem = None if isinstance(result, Created) else result.problem
        return cls.model_validate(
            {
                "index": index,
                "filename": filename,
                "status": type(result).__name__.lower(),
                "example": example,
                "problem": problem and ProblemDocument.model_validate(problem.document()),
            }
        )


class AddedExamples(BaseModel):
    """The support set after images were sent, and what became of each of them."""

    support_set: SupportSetDetail
    results: list[FileResult]


def _left_out(schema: dict[str, Any]) -> None:
    """Without the defaults, which generated clients would send."""
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["example"] = {"name": "glyphs of May", "metadata": {"team": "north"}}


class SupportSetPatch(BaseModel):
    """What to change; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=_left_out,
    )

    name: str = Field("", description=NAME)
    metadata: dict[str, Any] = Field({}, description=METADATA)
    ttl: int | None = Field(None, ge=1, strict=True, description=f"{TTL}; null: for ever.")
    labels: dict[str, str] = Field(
        {},
        max_length=1000,
        description="Renames classes, at most 1000: present label to new one, all at once. "
        "Under a label that another class bears, the two become one.",
        examples=[{"hok": "hook"}],
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
