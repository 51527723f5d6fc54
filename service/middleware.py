"""Plain ASGI middleware: they see the stream itself, and hide no disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.events import Events
from service.logs import request_id
from service.problems import MEDIA_TYPE, BodyTooLarge, BodyTooSlow, Overloaded, Problem
from service.room import Room

log = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # For browsers that know no frame-ancestors.
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
}
#: Answers about somebody's images, which no cache should keep.
_PRIVATE = ("/v1/", "/v2/")
#: What an API body that is no multipart form may have: JSON is parsed on the event loop, where
#: a quarter of a megabyte takes some tens of milliseconds at worst.
_PLAIN_BYTES = 256 << 10
#: While bodies take up much room, one that brings fewer bytes in so many seconds is cut.
_LEAST_BYTES, _LEAST_SECONDS = 10 << 10, 10.0
#: A larger answer is sent in pieces of this size.
_PIECE_BYTES = 256 << 10
#: How much of a refused body is read and thrown away, so that the client gets to its answer.
_DRAIN_BYTES, _DRAIN_SECONDS = 256 << 20, 10.0


class SecurityHeaders:
    """Headers for every answer, and a last resort for faults that nothing else answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(_PRIVATE):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            log.exception("unanswered fault in %s %s", scope["method"], scope["path"])
            if started:
                raise
            problem = Problem("an unexpected fault; it has been logged")
            await problem_response(problem)(scope, receive, send_with_headers)


class BodyLimit:
    """Answers 413 to a body above `limit` bytes (JSON under /v1: a quarter of a MiB), whether its
    length was announced or not, and 408 to one that has not arrived after `seconds`; and 429 where
    it and the bodies of other running requests would be more than `most` bytes, or those of one
    address more than half of them. A body that stalls in the room that others need is cut with 408
    much sooner. What comes once the answer has begun is kept by nobody, and counts for nothing."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float, most: int, events: Events) -> None:
        self._app, self._limit, self._seconds, self._events = app, limit, seconds, events
        self._room = Room(most, largest=limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        announced, limit = headers.get("content-length", ""), self._limit
        form = headers.get("content-type", "").lower().startswith("multipart/")
        if scope["path"].startswith("/v1/") and not form:
            limit = min(limit, _PLAIN_BYTES)
        if announced.isdecimal() and int(announced) > limit:
            return await refuse(_too_large(limit), scope, receive, send)
        seen, complete, started = 0, False, False
        fault: Problem | None = None
        clock = asyncio.get_running_loop().time
        give_up, address = clock() + self._seconds, _address(scope)
        brought, due = 0, clock() + _LEAST_SECONDS

        async def arriving() -> Message:
            """Raises `TimeoutError` where the body is too slow."""
            nonlocal brought, due
            while True:
                try:
                    async with asyncio.timeout_at(min(give_up, due)):
                        return await receive()
                except TimeoutError:
                    if clock() >= give_up or self._room.crowded:
                        raise
                    brought, due = 0, clock() + _LEAST_SECONDS

        async def counted() -> Message:
            nonlocal seen, complete, fault, brought, due
            # What is awaited now is the client's leaving, or thrown away by `refuse`.
            if complete or started:
                return await receive()
            try:
                message = await arriving()
            except TimeoutError:
                within = f"did not arrive within {self._seconds:g} s"
                halted = "came to a halt while others waited for its room"
                fault = BodyTooSlow(
                    f"the body {within if clock() >= give_up else halted}",
                    headers={"Connection": "close"},
                )
                raise _Refused from None
            complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            seen, brought = seen + size, brought + size
            if brought >= _LEAST_BYTES:
                brought, due = 0, clock() + _LEAST_SECONDS
            self._room.take(address, size)
            if seen > limit:
                fault = _too_large(limit)
                raise _Refused
            if self._room.over(address, seen):
                self._events.refused(0)
                fault = Overloaded(
                    "the bodies of the requests that run are too large for one more; try again",
                    headers={"Retry-After": "1", "Connection": "close"},
                )
                raise _Refused
            return message

        async def unless_over(message: Message) -> None:
            nonlocal started
            if fault is not None and not started:
                return  # the app's own idea of the interrupted body
            started = True
            await send(message)

        try:
            await self._app(scope, counted, unless_over)
        except _Refused:
            if started:
                raise
        finally:
            self._room.give(address, seen)
        if isinstance(fault, BodyTooLarge | Overloaded) and not started:
            await refuse(fault, scope, receive, send)
        elif fault is not None and not started:
            await problem_response(fault)(scope, receive, send)


class AnswerLimit:
    """Hands over large answers in pieces, each once the client has taken most of the one before,
    and answers 429 in place of one that would be more than `most` bytes with those that clients
    have not taken yet, or more than half of that with those of its own address."""

    def __init__(self, app: ASGIApp, most: int, largest: int, events: Events) -> None:
        self._app, self._events = app, events
        self._room = Room(most, largest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun: Message | None = None

        async def in_pieces(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                length = Headers(raw=message["headers"]).get("content-length", "")
                if length.isdecimal() and int(length) > _PIECE_BYTES:
                    begun = message  # until it is known whether the body may follow
                    return
            if begun is None:
                return await send(message)
            start, begun = begun, None
            body = message.get("body", b"")
            if len(body) <= _PIECE_BYTES:  # it comes in pieces as it is
                await send(start)
                return await send(message)
            await self._large(start, body, scope, receive, send)

        await self._app(scope, receive, in_pieces)

    async def _large(
        self, start: Message, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        address, size = _address(scope), len(body)
        self._room.take(address, size)
        try:
            if self._room.over(address, size):
                self._events.refused(0)
                problem = Overloaded(
                    "the answers that clients have not taken yet are too large for one more; "
                    "try again",
                    headers={"Retry-After": "1"},
                )
                return await problem_response(problem)(scope, receive, send)
            await send(start)
            # Uvicorn's `send` waits while more than a little of what came before is unsent.
            for at in range(0, size, _PIECE_BYTES):
                end = at + _PIECE_BYTES
                piece = {"body": body[at:end], "more_body": end < size}
                await send({"type": "http.response.body", **piece})
        finally:
            self._room.give(address, size)


class Head:
    """Answers HEAD wherever GET is answered: as GET would be, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        # A copy: the server and the log go by what was asked.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send_head)
        finally:
            scope["route"] = inner.get("route")  # which the log tells


def _address(scope: Scope) -> str:
    """The client's, as far as the server can tell it: of a trusted proxy's clients each its own."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body exceeds {limit} bytes", headers={"Connection": "close"}, limit=limit
    )


class _Refused(Exception):
    """The body is too large, too slow or one too many."""


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, then let the rest of the body run out: a client that is cut off while it still
    sends may never read the answer."""

    async def keep_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await problem_response(problem)(scope, receive, keep_open)
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            await _drain(receive)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Callable[[], Awaitable[Message]]) -> None:
    left = _DRAIN_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def problem_response(problem: Problem) -> JSONResponse:
    document = problem.document()
    if (identity := request_id.get()) is not None:
        document["request_id"] = identity
    status = document["status"]
    assert isinstance(status, int)
    return JSONResponse(document, status, problem.headers, MEDIA_TYPE)
