"""The outermost middleware: gives each request its id, counts it, and logs one line about it."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import request_id
from service.metrics import Metrics

log = logging.getLogger("service.access")

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: Asked every few seconds by machines: no line at the usual level, or they would drown the rest.
PROBES = ("/metrics", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
_NO_ANSWER = 499
_LONGEST_PATH = 200


class Observe:
    """A client's `X-Request-Id` is kept where it is sane, else one is made; it is in the answer's
    headers, in problem documents and in log lines. /metrics does not count itself."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        identity = given if _SANE.fullmatch(given) else uuid.uuid4().hex
        status = _NO_ANSWER

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = identity
            await send(message)

        token = request_id.set(identity)
        start = time.perf_counter()
        counted = scope["path"] != "/metrics"
        if counted:
            self._metrics.started()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            if counted:
                self._metrics.answered(method_of(scope), route_of(scope), status, seconds)
            _log(scope, status, seconds)
            request_id.reset(token)


def method_of(scope: MutableMapping[str, Any]) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "other"


def route_of(scope: MutableMapping[str, Any]) -> str:
    """The route's template, also where the request was refused before it got there; one word for
    all that no route takes."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return _documented(scope) or path or "none"  # a nested router's path lacks what it is under


def _documented(scope: MutableMapping[str, Any]) -> str | None:
    if scope["path"].startswith("/static/"):
        return "/static"
    app: FastAPI | None = scope.get("app")
    if app is None:
        return None
    if not hasattr(app.state, "templates"):
        app.state.templates = [(path, compile_path(path)[0]) for path in app.openapi()["paths"]]
    return next((path for path, like in app.state.templates if like.match(scope["path"])), None)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """The path as it was sent, never its query: that may hold what is nobody's business."""
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    if not log.isEnabledFor(level):
        return
    method, path = method_of(scope), quote(scope["path"])[:_LONGEST_PATH]
    milliseconds = round(seconds * 1000, 1)
    log.log(
        level,
        "%s %s %d %.1f ms",
        method,
        path,
        status,
        milliseconds,
        extra={
            "fields": {
                "method": method,
                "path": path,
                "route": route_of(scope),
                "status": status,
                "duration_ms": milliseconds,
            }
        },
    )
