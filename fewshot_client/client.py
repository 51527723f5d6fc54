"""The two clients. They differ in how they send and wait, and in nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from fewshot_client import calls
from fewshot_client.calls import UNSET, AttentionMode, Call, Unset
from fewshot_client.documents import (
    AddedExamples,
    ExamplePage,
    Limits,
    Model,
    Predictions,
    SupportSet,
    SupportSetPage,
)
from fewshot_client.errors import ConnectionFailed, of_response
from fewshot_client.retry import Retry
from fewshot_client.sources import Image, Support

T = TypeVar("T")

_CONNECT_S = 10.0


def _options(
    address: str, api_key: str | None, timeout: float, headers: Mapping[str, str] | None
) -> dict[str, Any]:
    # The service drops the work of those who no longer wait for it.
    sent = {"X-Request-Timeout": f"{timeout:g}", **(headers or {})}
    if api_key is not None:
        sent["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": address,
        "headers": sent,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, _CONNECT_S)),
    }


class Client:
    """Talks to the service at `address`, such as http://127.0.0.1:8000; use it in a `with` block.

    `timeout` seconds are given to each try, and `retry` says when to try again. Every method raises
    `FewshotError`: `ApiError` with the problem document, or `ConnectionFailed`. `transport` is
    httpx's, for proxies and tests. One client may be used from many threads.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[Model]:
        """Every model's card."""
        return self._send(calls.models())

    def model(
        self,
        model_id: str,
    ) -> Model:
        """One model's card."""
        return self._send(calls.model(model_id))

    def limits(self) -> Limits:
        """What the service takes, whatever the model."""
        return self._send(calls.limits())

    def classify(
        self,
        model: str,
        support: Support,
        queries: Image | Iterable[Image],
        *,
        attention: AttentionMode = "none",
        top_k: int | None = None,
        steps: int | None = None,
        inner_lr: float | None = None,
    ) -> Predictions:
        """Classify images from a few labelled ones; nothing is stored."""
        return self._send(
            calls.classify(model, support, queries, attention, top_k, steps, inner_lr)
        )

    def create_set(
        self,
        support: Support | None = None,
        *,
        name: str = "",
        metadata: Mapping[str, Any] | None = None,
        ttl: int | None = None,
        idempotency_key: str | None = None,
    ) -> AddedExamples:
        """Register a support set, empty or with its images; `ttl` is seconds after the last use."""
        return self._send(calls.create_set(support, name, metadata, ttl, idempotency_key))

    def sets(
        self,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SupportSetPage:
        """Your support sets, the newest first."""
        return self._send(calls.sets(limit, cursor))

    def get_set(
        self,
        set_id: str,
    ) -> SupportSet:
        """One support set with its classes."""
        return self._send(calls.get_set(set_id))

    def update_set(
        self,
        set_id: str,
        *,
        name: str | Unset = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        ttl: int | Unset | None = UNSET,
        labels: Mapping[str, str] | Unset = UNSET,
        if_revision: int | None = None,
    ) -> SupportSet:
        """Change what is given; `labels` renames classes, present label to new one. `if_revision`
        refuses (`Outdated`) if it has changed meanwhile."""
        return self._send(calls.update_set(set_id, name, metadata, ttl, labels, if_revision))

    def delete_set(
        self,
        set_id: str,
        *,
        if_revision: int | None = None,
    ) -> None:
        """Delete a support set with all its examples."""
        return self._send(calls.delete_set(set_id, if_revision))

    def add(
        self,
        set_id: str,
        support: Support,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> AddedExamples:
        """Add labelled images; the results say what became of each."""
        return self._send(calls.add(set_id, support, if_revision, idempotency_key))

    def examples(
        self,
        set_id: str,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ExamplePage:
        """The examples, in stored order."""
        return self._send(calls.examples(set_id, limit, cursor))

    def image(
        self,
        set_id: str,
        example_id: str,
    ) -> bytes:
        """An example's image, byte for byte as it was sent."""
        return self._send(calls.image(set_id, example_id))

    def delete_example(
        self,
        set_id: str,
        example_id: str,
        *,
        if_revision: int | None = None,
    ) -> None:
        """Delete one example."""
        return self._send(calls.delete_example(set_id, example_id, if_revision))

    def ask(
        self,
        set_id: str,
        model: str,
        queries: Image | Iterable[Image],
        *,
        attention: AttentionMode = "none",
        top_k: int | None = None,
        steps: int | None = None,
        inner_lr: float | None = None,
    ) -> Predictions:
        """Classify images from a support set's examples."""
        return self._send(calls.ask(set_id, model, queries, attention, top_k, steps, inner_lr))

    def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return call.parse(outcome)
            wait = self._retry.wait(tried, call.repeatable, outcome)
            if wait is None:
                raise _error(outcome)
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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """Every model's card."""
        return await self._send(calls.models())

    async def model(
        self,
        model_id: str,
    ) -> Model:
        """One model's card."""
        return await self._send(calls.model(model_id))

    async def limits(self) -> Limits:
        """What the service takes, whatever the model."""
        return await self._send(calls.limits())

    async def classify(
        self,
        model: str,
        support: Support,
        queries: Image | Iterable[Image],
        *,
        attention: AttentionMode = "none",
        top_k: int | None = None,
        steps: int | None = None,
        inner_lr: float | None = None,
    ) -> Predictions:
        """Classify images from a few labelled ones; nothing is stored."""
        return await self._send(
            calls.classify(model, support, queries, attention, top_k, steps, inner_lr)
        )

    async def create_set(
        self,
        support: Support | None = None,
        *,
        name: str = "",
        metadata: Mapping[str, Any] | None = None,
        ttl: int | None = None,
        idempotency_key: str | None = None,
    ) -> AddedExamples:
        """Register a support set, empty or with its images; `ttl` is seconds after the last use."""
        return await self._send(calls.create_set(support, name, metadata, ttl, idempotency_key))

    async def sets(
        self,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SupportSetPage:
        """Your support sets, the newest first."""
        return await self._send(calls.sets(limit, cursor))

    async def get_set(
        self,
        set_id: str,
    ) -> SupportSet:
        """One support set with its classes."""
        return await self._send(calls.get_set(set_id))

    async def update_set(
        self,
        set_id: str,
        *,
        name: str | Unset = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        ttl: int | Unset | None = UNSET,
        labels: Mapping[str, str] | Unset = UNSET,
        if_revision: int | None = None,
    ) -> SupportSet:
        """Change what is given; `labels` renames classes, present label to new one. `if_revision`
        refuses (`Outdated`) if it has changed meanwhile."""
        return await self._send(calls.update_set(set_id, name, metadata, ttl, labels, if_revision))

    async def delete_set(
        self,
        set_id: str,
        *,
        if_revision: int | None = None,
    ) -> None:
        """Delete a support set with all its examples."""
        return await self._send(calls.delete_set(set_id, if_revision))

    async def add(
        self,
        set_id: str,
        support: Support,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> AddedExamples:
        """Add labelled images; the results say what became of each."""
        return await self._send(calls.add(set_id, support, if_revision, idempotency_key))

    async def examples(
        self,
        set_id: str,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ExamplePage:
        """The examples, in stored order."""
        return await self._send(calls.examples(set_id, limit, cursor))

    async def image(
        self,
        set_id: str,
        example_id: str,
    ) -> bytes:
        """An example's image, byte for byte as it was sent."""
        return await self._send(calls.image(set_id, example_id))

    async def delete_example(
        self,
        set_id: str,
        example_id: str,
        *,
        if_revision: int | None = None,
    ) -> None:
        """Delete one example."""
        return await self._send(calls.delete_example(set_id, example_id, if_revision))

    async def ask(
        self,
        set_id: str,
        model: str,
        queries: Image | Iterable[Image],
        *,
        attention: AttentionMode = "none",
        top_k: int | None = None,
        steps: int | None = None,
        inner_lr: float | None = None,
    ) -> Predictions:
        """Classify images from a support set's examples."""
        return await self._send(
            calls.ask(set_id, model, queries, attention, top_k, steps, inner_lr)
        )

    async def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return call.parse(outcome)
            wait = self._retry.wait(tried, call.repeatable, outcome)
            if wait is None:
                raise _error(outcome)
            await asyncio.sleep(wait)


def _error(outcome: httpx.Response | httpx.TransportError) -> Exception:
    if isinstance(outcome, httpx.Response):
        return of_response(outcome)
    failed = ConnectionFailed(str(outcome) or type(outcome).__name__)
    failed.__cause__ = outcome
    return failed
