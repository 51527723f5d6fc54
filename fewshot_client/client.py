"""The two clients. They differ in how they send and wait, and in nothing else."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, get_args, get_type_hints

import httpx

from fewshot_client import calls
from fewshot_client.calls import Call, header
from fewshot_client.errors import ConnectionFailed, NotSent, of_response
from fewshot_client.retry import Retry

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_CONNECT_S = 10.0
#: The service's clock starts once it has read the request, and its 504 has to arrive: who hung up
#: as soon as the time was over would never see it, and would have the work done again.
_ANSWER_S = 5.0


def _options(
    address: str, api_key: str | None, timeout: float, headers: Mapping[str, str] | None
) -> dict[str, Any]:
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise NotSent(f"the timeout must be a number of seconds above 0, not {timeout!r}")
    # The service drops the work of those who no longer wait for it.
    sent = {"X-Request-Timeout": f"{timeout:g}"}
    sent |= {name: header(f"the header {name}", text) for name, text in (headers or {}).items()}
    if api_key is not None:
        sent["Authorization"] = f"Bearer {header('the API key', api_key)}"
    return {
        "base_url": _url(address),
        "headers": sent,
        "timeout": httpx.Timeout(
            timeout, connect=min(timeout, _CONNECT_S), read=timeout + _ANSWER_S
        ),
    }


def _url(address: str) -> httpx.URL:
    """Raises `NotSent` without the address, in which there may be a password."""
    with suppress(httpx.InvalidURL):
        url = httpx.URL(address)
        if url.scheme in ("http", "https") and url.host:
            return url
    raise NotSent("the address must be one like http://127.0.0.1:8000, with http:// or https://")


def _sent(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method of `Client` that makes the call and sends it."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(call(*args, **kwargs))

    return _shown_as(call, method)


def _awaited(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """As `_sent`, for `AsyncClient`."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(call(*args, **kwargs))

    return _shown_as(call, method)


def _shown_as(call: Callable[..., Call[Any]], method: F) -> F:
    """`method` with the name, words and signature of `call`, but giving the answer itself."""
    update_wrapper(method, call)
    (answer,) = get_args(get_type_hints(call)["return"])
    signature = inspect.signature(call)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [me, *signature.parameters.values()]
    shown = signature.replace(parameters=parameters, return_annotation=answer)
    method.__signature__ = shown  # type: ignore[attr-defined]
    return method


class Client:
    """Talks to the service at `address`, such as http://127.0.0.1:8000; use it in a `with` block.

    The service is given `timeout` seconds for each try, and its answer 5 more to arrive; `retry`
    says when to try again. Every method raises `FewshotError`: `ApiError` with the problem
    document, `ConnectionFailed`, or `NotSent` for what cannot be sent, such as images that are not
    there; so does making a client of a wrong address, key or header. `transport` is httpx's, for
    proxies and tests. One client may be used from many threads.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        options = _options(address, api_key, timeout, headers)
        self._http = httpx.Client(**options, transport=transport)
        self._retry = retry or Retry()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    models = _sent(calls.models)
    model = _sent(calls.model)
    limits = _sent(calls.limits)
    classify = _sent(calls.classify)
    create_set = _sent(calls.create_set)
    sets = _sent(calls.sets)
    get_set = _sent(calls.get_set)
    update_set = _sent(calls.update_set)
    delete_set = _sent(calls.delete_set)
    add = _sent(calls.add)
    examples = _sent(calls.examples)
    image = _sent(calls.image)
    delete_example = _sent(calls.delete_example)
    ask = _sent(calls.ask)
    evaluate = _sent(calls.evaluate)
    classifier = _sent(calls.classifier)

    def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = self._http.send(call.request(self._http))
            except httpx.RequestError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return call.parse(outcome)
            wait = self._retry.wait(tried, call.repeatable, outcome)
            if wait is None:
                raise _error(outcome, self._http.base_url)
            time.sleep(wait)


class AsyncClient:
    """As `Client`, with `await`; use it in an `async with` block."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = _options(address, api_key, timeout, headers)
        self._http = httpx.AsyncClient(**options, transport=transport)
        self._retry = retry or Retry()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    models = _awaited(calls.models)
    model = _awaited(calls.model)
    limits = _awaited(calls.limits)
    classify = _awaited(calls.classify)
    create_set = _awaited(calls.create_set)
    sets = _awaited(calls.sets)
    get_set = _awaited(calls.get_set)
    update_set = _awaited(calls.update_set)
    delete_set = _awaited(calls.delete_set)
    add = _awaited(calls.add)
    examples = _awaited(calls.examples)
    image = _awaited(calls.image)
    delete_example = _awaited(calls.delete_example)
    ask = _awaited(calls.ask)
    evaluate = _awaited(calls.evaluate)
    classifier = _awaited(calls.classifier)

    async def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = await self._http.send(call.request(self._http))
            except httpx.RequestError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return call.parse(outcome)
            wait = self._retry.wait(tried, call.repeatable, outcome)
            if wait is None:
                raise _error(outcome, self._http.base_url)
            await asyncio.sleep(wait)


def _error(outcome: httpx.Response | httpx.RequestError, address: httpx.URL) -> Exception:
    if isinstance(outcome, httpx.Response):
        return of_response(outcome)
    # Without what may be a password before the host.
    where = f"{address.scheme}://{address.netloc.decode()}"
    failed = ConnectionFailed(f"{where}: {str(outcome) or type(outcome).__name__}")
    failed.__cause__ = outcome
    return failed
