"""Traces for an OpenTelemetry collector: a span per request, and one per stage within it.

OpenTelemetry is imported only where a collector is named: by the setting `otlp_endpoint`, or by the
variables that its SDKs share, such as OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import request_id
from service.observe import PROBES, method_of, route_of
from service.settings import Settings
from service.version import version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: In the order in which a request passes them.
_STAGES = ("decode", "queue", "encode", "adapt", "predict")


def wanted(settings: Settings) -> bool:
    return bool(settings.otlp_endpoint) or any(os.environ.get(name) for name in _VARIABLES)


class Tracing:
    """Where spans go. `close` sends what is left."""

    def __init__(self, endpoint: str = "", exporter: SpanExporter | None = None) -> None:
        """`endpoint` is the collector's address; the SDK's own variables say it where it is empty.

        Raises `ImportError` without the `otel` extra.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces" if endpoint else None)
        name = os.environ.get("OTEL_SERVICE_NAME", "fewshot")
        resource = Resource.create({"service.name": name, "service.version": version()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("fewshot")
        self.propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        self._provider.shutdown()

    def stages(self, model: str, start: float, seconds: Mapping[str, float]) -> None:
        """Add a span per stage to the request that is being answered; `start` is a time of
        `time.perf_counter`, and each stage begins where the one before it ended.

        A batch's stages are those of all the requests in it.
        """
        at = time.time_ns() - int((time.perf_counter() - start) * 1e9)
        for stage in _STAGES:
            if stage in seconds:
                end = at + int(seconds[stage] * 1e9)
                attributes = {"fewshot.model": model}
                self.tracer.start_span(stage, start_time=at, attributes=attributes).end(end)
                at = end


class Trace:
    """Middleware: a span per request, under the caller's where a `traceparent` tells of one."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        self._app, self._tracing = app, tracing
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {
            name.decode("latin1"): value.decode("latin1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        method = method_of(scope)
        with self._tracing.tracer.start_as_current_span(
            method,
            context=self._tracing.propagator.extract(headers),
            kind=self._server,
            attributes={"http.request.method": method, "fewshot.request_id": request_id.get("")},
        ) as span:
            try:
                await self._app(scope, receive, noted)
            finally:
                route = route_of(scope)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                if status:
                    span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(self._error)
