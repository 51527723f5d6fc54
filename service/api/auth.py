"""Who asks: API keys and their scopes.

`Authentication` looks the key up before the body is kept; a route says with `Reader` or `Writer`
which scope it needs, and is given the `Caller`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.foreign import Foreign, is_loopback
from service.middleware import refuse
from service.problems import Forbidden, Problem, StoreUnavailable, Unauthenticated
from service.settings import Settings
from service.store.keys import Key
from service.store.keys import Scope as KeyScope
from service.store.store import Store

log = logging.getLogger(__name__)

_GUARDED = ("/v1/", "/v2/")
#: Open to everyone, however the service is closed.
_OPEN = ("/v1/limits", "/v2/health/")
_OPEN_TO_ALL = "no API key is asked for, and the service may be reached from outside: close it"


@dataclass(frozen=True)
class Caller:
    """The key that a request came with; none where the service is open, and then `id` is ""."""

    key: Key | None = None

    @property
    def id(self) -> str:
        return self.key.id if self.key else ""

    @property
    def rate_per_minute(self) -> int | None:
        """None for no limit, as of `daily_quota`."""
        return self.key.rate_per_minute if self.key else None

    @property
    def daily_quota(self) -> int | None:
        return self.key.daily_quota if self.key else None

    def allows(self, scope: KeyScope) -> bool:
        return self.key is None or self.key.allows(scope)


OPEN = Caller()


class Authentication:
    """ASGI middleware: refuses requests without a valid key where one is needed, and those of other
    web pages where none is; puts the `Caller` into the request's state."""

    def __init__(self, app: ASGIApp, store: Store, settings: Settings) -> None:
        self._app, self._store, self._auth = app, store, settings.auth
        self._foreign = Foreign(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        guarded = path.startswith(_GUARDED) and not path.startswith(_OPEN)
        try:
            if self._auth == "off":
                state["caller"] = OPEN
            elif guarded:
                state["caller"] = await self._caller(headers)
            if guarded and state["caller"] is OPEN:
                self._foreign.check(scope["method"], headers)
        except Problem as problem:
            return await refuse(problem, scope, receive, send)
        await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller:
        """Raises `Unauthenticated`, or `StoreUnavailable`: what cannot be checked is refused."""
        token = _token(headers)
        if token is None:
            if self._auth == "auto" and not await self._any_key():
                return OPEN
            raise Unauthenticated("send an API key: Authorization: Bearer KEY")
        known, key = self._store.keys.known(token)
        if not known:
            key = await self._store.run(self._store.keys.find, token)
        if key is None:
            raise Unauthenticated("the API key is unknown or was revoked")
        return Caller(key)

    async def _any_key(self) -> bool:
        """Raises `StoreUnavailable`."""
        known = self._store.keys.any_known()
        return await self._store.run(self._store.keys.any) if known is None else known


async def warn_if_open(settings: Settings, store: Store) -> None:
    """Say so where other machines may reach the service and it asks them for no key."""
    if settings.auth == "required" or is_loopback(settings.host):
        return
    if settings.auth == "auto":
        with suppress(StoreUnavailable):  # then nobody is let in
            if not await store.run(store.keys.any):
                log.warning("%s by `fewshot keys create` or --auth required", _OPEN_TO_ALL)
        return
    log.warning("%s by --auth required, or let a proxy in front ask for them", _OPEN_TO_ALL)


def _token(headers: Headers) -> str | None:
    """From `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Raises `Unauthenticated`."""
    given = headers.get("authorization")
    if given is None:
        return headers.get("x-api-key")
    kind, _, token = given.partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated("use Authorization: Bearer KEY")
    return token.strip()


#: For the document: Swagger UI's "Authorize" button. The middleware does the work.
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, from `fewshot keys create`. Not needed while there is none.",
)


def requires(scope: KeyScope) -> Callable[..., Awaitable[Caller]]:
    """A dependency that gives the caller. Raises `Forbidden` without the scope, and
    `Unauthenticated` where the middleware was not asked: a route it does not know is closed."""

    async def caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
        found: Caller | None = getattr(request.state, "caller", None)
        if found is None:
            raise Unauthenticated("send an API key")
        if not found.allows(scope):
            raise Forbidden(f"this needs the scope {scope.value!r}", scope=scope.value)
        return found

    return caller


_read, _write = requires(KeyScope.read), requires(KeyScope.write)
Reader = Annotated[Caller, Depends(_read)]
Writer = Annotated[Caller, Depends(_write)]
#: For routers whose routes all ask nothing but the scope.
READ = Depends(_read)
