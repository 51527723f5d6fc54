"""What requests about support sets say beside their forms: revisions, cursors, repeats."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request

from service.problems import InvalidRequest, RevisionMismatch
from service.store.records import ExampleRecord, SetRecord
from service.store.replays import Once
from service.tasks import Example
from service.text import is_plain

MAX_NAME, MAX_METADATA, MAX_LEVELS, MAX_TTL = 200, 16_384, 20, 10 * 365 * 24 * 3600
_MAX_KEY, _MAX_CURSOR = 255, 500

#: Said of the form's fields and of the object's.
NAME = f"For people; need not be unique; at most {MAX_NAME} characters."
METADATA = (
    f"A JSON object that is kept with the set: at most {MAX_METADATA} bytes "
    f"and {MAX_LEVELS} levels."
)
TTL = f"Seconds to live after the last use, 1 to {MAX_TTL}"

Limit = Annotated[int, Query(ge=1, le=100, description="Most entries in one answer.")]
Cursor = Annotated[
    str | None, Query(max_length=_MAX_CURSOR, description="`next_cursor` of the answer before.")
]


async def _revisions(
    if_match: Annotated[
        str | None,
        Header(description='Only if the set is at this revision, such as `"3"`; else 412.'),
    ] = None,
) -> frozenset[int] | None:
    """The revisions that `If-Match` allows; None for any. Raises `RevisionMismatch` where no
    revision could ever match."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = [tag.strip() for tag in if_match.split(",")]
    numbers = [tag[1:-1] for tag in tags if len(tag) > 1 and tag[0] == tag[-1] == '"']
    if not numbers:
        raise RevisionMismatch(
            'If-Match: send the ETag with its quotes, such as "1"; weak tags (W/"1") match nothing'
        )
    return frozenset(int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) < 19)


IfMatch = Annotated[frozenset[int] | None, Depends(_revisions)]


IfNoneMatch = Annotated[
    str | None, Header(description="ETags of files that you have; 304 if one is this.")
]


def matches(tag: str, if_none_match: str | None) -> bool:
    """RFC 9110's weak comparison."""
    given = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    return "*" in given or tag.removeprefix("W/") in given


#: Of answers that tell it, for OpenAPI.
REVISION: dict[str, Any] = {
    "headers": {
        "ETag": {"description": "The set's revision, for If-Match.", "schema": {"type": "string"}}
    }
}


def etag(record: SetRecord) -> str:
    """What `If-Match` is compared with."""
    return f'"{record.revision}"'


async def _idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Any text of your own, new for each thing to do: 1 to "
            f"{_MAX_KEY} printable ASCII characters. The same request under the same key is done "
            "once, and answered alike for a day; where the answers to your keys take more than 128 "
            "MiB, for ten minutes at least."
        ),
    ] = None,
) -> str | None:
    """Raises `InvalidRequest`."""
    key = idempotency_key
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(f"Idempotency-Key is 1 to {_MAX_KEY} printable ASCII characters")
    return key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def once(
    key: str | None, request: Request, fields: Sequence[object], images: Sequence[Example]
) -> Once | None:
    """The request under its key: method, path, fields, and each image with its label. Blocks."""
    if key is None:
        return None
    digest = hashlib.sha256()
    texts = [request.method, request.url.path, json.dumps(fields, sort_keys=True)]
    texts += [f"{e.label}\0{e.upload.ref.name}" for e in images]
    parts = [text.encode("utf-8", "replace") for text in texts]
    for part in (*parts, *(e.upload.data for e in images)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return Once(key, digest.hexdigest())


def clean_set_name(name: str) -> str:
    """Raises `InvalidRequest`."""
    name = name.strip()
    if len(name) > MAX_NAME or not is_plain(name):
        raise InvalidRequest(f"name: at most {MAX_NAME} printable characters")
    return name


def clean_ttl(ttl: int | None) -> int | None:
    """Raises `InvalidRequest`."""
    if ttl is not None and not 1 <= ttl <= MAX_TTL:
        raise InvalidRequest(f"ttl: 1 to {MAX_TTL} seconds")
    return ttl


def read_metadata(text: str) -> dict[str, Any]:
    """The JSON object in a form field. Raises `InvalidRequest`."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidRequest("metadata: not a JSON object") from None
    return check_metadata(value)


def check_metadata(value: object) -> dict[str, Any]:
    """An object that can be stored and sent back. Raises `InvalidRequest`."""
    if not isinstance(value, dict):
        raise InvalidRequest("metadata: not a JSON object")
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, RecursionError):  # NaN, lone surrogates, endless depth
        raise InvalidRequest("metadata: not plain JSON text") from None
    if size > MAX_METADATA or _is_deeper(value, MAX_LEVELS):
        raise InvalidRequest(f"metadata: at most {MAX_METADATA} bytes and {MAX_LEVELS} levels")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    """Whether it has more levels; looks no deeper."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def next_set(last: SetRecord) -> str:
    """Where a list goes on after its `last`."""
    return _cursor(last.created_at, last.id)


def next_example(last: ExampleRecord) -> str:
    return _cursor(last.position)


def after_set(text: str | None) -> tuple[float, str] | None:
    """Raises `InvalidRequest`."""
    match _parts(text):
        case None:
            return None
        case [float() as created, str() as set_id] if (
            math.isfinite(created) and set_id.isascii() and set_id.isprintable()
        ):
            return created, set_id
    raise InvalidRequest("cursor: send the next_cursor of an answer")


def after_example(text: str | None) -> int:
    """Raises `InvalidRequest`."""
    match _parts(text):
        case None:
            return -1
        case [int() as position] if 0 <= position < 1 << 62:
            return position
    raise InvalidRequest("cursor: send the next_cursor of an answer")


def _cursor(*parts: object) -> str:
    """An opaque place in a list."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def _parts(text: str | None) -> object:
    if text is None:
        return None
    try:
        padded = text[:_MAX_CURSOR].encode("ascii") + b"=="
        return json.loads(base64.urlsafe_b64decode(padded)) or []
    except (binascii.Error, ValueError, RecursionError):
        return []
