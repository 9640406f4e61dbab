"""Traces: a span for each request, and for an upload what it consists of. OpenTelemetry is imported here only, and this
room only where traces are on.

1. *A request's span* begins when its head is here, below what its client says in `traceparent` (W3C Trace Context), and
   ends with the answer. Probes, and scrapes of metrics, have none.
2. *An upload's* children are made when it has ended, of its timeline: `arrival`, `sink NAME` for each, and below that
   `commit NAME`. While bytes go by nothing is called. Where not anybody may, `access` is how long that was asked.
3. *Destinations* of relays, and the hook, are told the request's span as their parent. A `tracestate` goes on as it is.
4. *No secret*: what a span says are words of the configuration and of this code, numbers, and the upload's id. No name
   of a file or part, no query, no url, no header, no identity, no text of an error.
5. Whether a trace is kept is decided once, for its request's span; of one that is not, nothing else is made.
6. Spans leave from a thread of their own, in batches. Where nobody takes them they are lost, and uploads know nothing
   of it. At the end of the process what is left has `_FLUSH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway import __version__
from gateway.http import TRACEPARENT as HEADER
from gateway.http.ulids import ULID
from gateway.server.record import outcome_of
from gateway.server.services import ACCESS_TIMES, PROBLEM, TIMELINE, TRACEPARENT, UPLOAD_ID
from gateway.upload.timeline import Timeline

__all__ = ["Tracing", "make_exporter"]

log = logging.getLogger("gateway.tracing")

_FLUSH_SECONDS = 3.0
_SCOPE = InstrumentationScope("gateway", __version__)
_UNTRACED = frozenset(["/healthz", "/readyz", "/metrics"])
_NOWHERE = "/{anything}"
"""The route of what has none."""
_METHODS = frozenset(["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"])
"""Any other is the client's word, and `_OTHER` in its place (semantic conventions, http.request.method)."""
_W3C = TraceContextTextMapPropagator()
_FAILED = Status(StatusCode.ERROR)
_FINE = Status(StatusCode.UNSET)

Attributes = dict[str, AttributeValue]


def make_exporter() -> SpanExporter:
    """To where OTEL_EXPORTER_OTLP_ENDPOINT and its like say. Raises ValueError for one that says nothing."""
    return OTLPSpanExporter()


class Tracing:
    """Makes the spans of this process, and has them taken to `exporter`."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Raises ValueError for a variable of OpenTelemetry that says nothing."""
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(_SCOPE.name, _SCOPE.version)

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware, around all others: the span of a request, and what belongs to it."""
        resource = request.match_info.route.resource
        route = None if resource is None else resource.canonical
        if route in _UNTRACED:
            return await handler(request)
        began = time.monotonic()
        since_epoch = time.time_ns() - _nanoseconds(began)
        span = self._begun(request, None if route == _NOWHERE else route, since_epoch + _nanoseconds(began))
        if context := _told(span):
            request[TRACEPARENT] = context
        try:
            response = await handler(request)
        except BaseException as error:
            self._end(span, request, since_epoch, outcome=outcome_of(error), status=None)
            raise
        self._end(span, request, since_epoch, outcome=request.get(PROBLEM, "ok"), status=response.status)
        return response

    async def end(self) -> None:
        """Send what is left, for a short while: who takes it may be gone."""
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody has waited
                loop.call_soon_threadsafe(is_over.set)

        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await is_over.wait()
        except TimeoutError:
            log.warning("the last spans were not taken in %g s, and are lost", _FLUSH_SECONDS)

    def _begun(self, request: web.Request, route: str | None, began: int) -> Span:
        method = request.method if request.method in _METHODS else "_OTHER"
        attributes: Attributes = {"http.request.method": method, "url.scheme": request.scheme}
        if route is not None:
            attributes["http.route"] = route
        # A tracestate is not taken in: what it says would leave with the span.
        parents = request.headers.getall(HEADER, ())
        parent = _W3C.extract({HEADER: parents[0]}) if len(parents) == 1 else None
        name = ("HTTP" if method == "_OTHER" else method) + ("" if route is None else f" {route}")
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=began)

    def _end(self, span: Span, request: web.Request, since_epoch: int, *, outcome: str, status: int | None) -> None:
        if not span.is_recording():
            return
        timeline, now = request.get(TIMELINE), time.monotonic()
        upload = request.get(UPLOAD_ID) or request.match_info.get("id", "")
        attributes: Attributes = {"gateway.outcome": outcome}
        if ULID.fullmatch(upload):
            attributes["gateway.upload.id"] = upload
        if status is not None:
            attributes["http.response.status_code"] = status
        if (asked := request.get(ACCESS_TIMES)) is not None:
            self._tell("access", span.get_span_context(), {}, asked[0], asked[1], since_epoch)
        if timeline is not None:
            attributes["gateway.outcome"] = timeline.outcome
            attributes["http.request.body.size"] = timeline.received_bytes
            self._tell_children(timeline, span.get_span_context(), since_epoch)
        if status is None or status >= 500:
            attributes["error.type"] = outcome if outcome != "ok" else str(status)
            span.set_status(_FAILED)
        span.set_attributes(attributes)
        span.end(since_epoch + _nanoseconds(now))

    def _tell_children(self, timeline: Timeline, request: SpanContext, since_epoch: int) -> None:
        """They are over, so they are made as what they are: to begin and end each costs three times as much."""
        end = timeline.ended
        arrived = timeline.arrived or end
        size: Attributes = {"gateway.bytes": timeline.received_bytes}
        self._tell("arrival", request, size, timeline.began, arrived, since_epoch, is_failed=not timeline.arrived)
        for sink in timeline.sinks:
            ended, is_failed = sink.ended(end), sink.outcome == "failed"
            told: Attributes = {"gateway.sink": sink.sink, "gateway.outcome": sink.outcome or ""}
            of_sink = {**told, "gateway.bytes": sink.given_bytes}
            parent = self._tell(
                f"sink {sink.sink}", request, of_sink, sink.opened, ended, since_epoch, is_failed=is_failed
            )
            if sink.commit_began:
                begun = sink.commit_began
                self._tell(f"commit {sink.sink}", parent, told, begun, ended, since_epoch, is_failed=is_failed)

    def _tell(
        self,
        name: str,
        parent: SpanContext,
        attributes: Attributes,
        began: float,
        ended: float,
        since_epoch: int,
        *,
        is_failed: bool = False,
    ) -> SpanContext:
        """A span that is over. Its times are those of the timeline."""
        context = SpanContext(
            parent.trace_id, self._provider.id_generator.generate_span_id(), False, parent.trace_flags
        )
        span = ReadableSpan(
            name,
            context,
            parent,
            self._provider.resource,
            attributes,
            status=_FAILED if is_failed else _FINE,
            start_time=since_epoch + _nanoseconds(began),
            end_time=since_epoch + _nanoseconds(ended),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)
        return context


def _resource() -> Resource:
    """What this process is: whatever OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our own."""
    ours = {"service.name": "gateway", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _told(span: Span) -> str:
    """Its traceparent; empty where there is no trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
