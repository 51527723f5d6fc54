"""Rows as the rest of the service sees them. Times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.images import Upload
from service.problems import Problem


@dataclass(frozen=True)
class SetRecord:
    """A support set. `ttl` is in seconds; `expires_at` is put off by each use."""

    id: str
    name: str
    metadata: dict[str, Any]
    ttl: int | None
    revision: int
    examples: int
    bytes: int
    created_at: float
    updated_at: float
    expires_at: float | None


@dataclass(frozen=True)
class ExampleRecord:
    """An example without its bytes; `position` orders a set's examples."""

    id: str
    position: int
    label: str
    name: str
    sha256: str
    media_type: str
    width: int
    height: int
    bytes: int
    created_at: float


@dataclass(frozen=True)
class NewExample:
    """A checked image on its way in, or the problem of one that is not taken."""

    label: str
    upload: Upload
    sha256: str = ""
    media_type: str = ""
    width: int = 0
    height: int = 0
    problem: Problem | None = None


@dataclass(frozen=True)
class Created:
    """The image is stored."""

    example: ExampleRecord


@dataclass(frozen=True)
class Duplicate:
    """The set holds these very bytes already, as this example; the problem where it bears another
    label than was sent."""

    example: ExampleRecord
    problem: Problem | None = None


@dataclass(frozen=True)
class Rejected:
    """The image is not stored."""

    problem: Problem


Result = Created | Duplicate | Rejected


@dataclass(frozen=True)
class Added:
    """What became of each image, in the order sent, and the set afterwards."""

    set: SetRecord
    classes: list[tuple[str, int]]
    results: Sequence[Result]


@dataclass(frozen=True)
class Limits:
    """Sets of one owner, and examples and bytes of one set."""

    sets: int
    examples: int
    bytes: int
