"""Traces: a span for each request, and for an upload what it consists of. OpenTelemetry is imported here only, and this
room only where traces are on.

1. *A request's span* begins when its head is here, below what its client says in `traceparent` (W3C Trace Context), and
   ends with the answer. Probes, and scrapes of metrics, have none.
2. *An upload's* children are made when it has ended, of its timeline: `arrival`, `sink NAME` for each, and below that
   `commit NAME`. While bytes go by nothing is called. Where not anybody may, `access` is how long that was asked.
3. *Destinations* of relays, and the hook, are told the request's span as their parent. A `tracestate` goes on as it is.
4. *No secret*: what a span says are words of the configuration and of this code, numbers, and the upload's id. No name
   of a file or part, no query, no url, no header, no identity, no text of an error.
5. Whether a trace is kept is decided once, for its request's span; of one that is not, nothing else is made. Unless
   OTEL_TRACES_SAMPLER says how: what its client keeps, and of those that begin here so many a second. A trace costs as
   much as a sixth of a small upload: that way all of them together cost little, however many uploads come.
6. Spans are made when they are over, as what they are: to begin one, add to it and end it costs five times as much.
7. Spans leave from a thread of their own, in batches. Where nobody takes them they are lost, and uploads know nothing
   of it. At the end of the process what is left has `_FLUSH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
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
_PER_SECOND = 50
_SCOPE = InstrumentationScope("gateway", __version__)
_UNTRACED = frozenset(["/healthz", "/readyz", "/metrics"])
_NOWHERE = "/{anything}"
"""The route of what has none."""
_METHODS = frozenset(["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"])
"""Any other is the client's word, and `_OTHER` in its place (semantic conventions, http.request.method)."""
_W3C = TraceContextTextMapPropagator()
_ROOT = Context()
_SAMPLED, _RANDOM = 1, 2
"""Flags of a traceparent (W3C Trace Context, level 2): it is kept; its id is random."""
_FAILED = Status(StatusCode.ERROR)
_FINE = Status(StatusCode.UNSET)

Attributes = dict[str, AttributeValue]


def make_exporter() -> SpanExporter:
    """To where OTEL_EXPORTER_OTLP_ENDPOINT and its like say. Raises ValueError for one that says nothing."""
    return OTLPSpanExporter()


@dataclass(slots=True)
class _Trace:
    """Of one request: its span, while that is not over."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    attributes: Attributes
    began: float
    since_epoch: int
    """What the clock of a timeline is behind that of spans, in nanoseconds."""

    @property
    def traceparent(self) -> str:
        """For those who are asked meanwhile."""
        context = self.context
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Tracing:
    """Makes the spans of this process, and has them taken to `exporter`."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Raises ValueError for a variable of OpenTelemetry that says nothing."""
        of_ours = None if os.environ.get(OTEL_TRACES_SAMPLER) else ParentBased(_AtMost(_PER_SECOND))
        provider = TracerProvider(of_ours, resource=_resource(), shutdown_on_exit=False)
        self._resource = provider.resource
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._processor = BatchSpanProcessor(exporter)

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware, around all others: the span of a request, and what belongs to it."""
        resource = request.match_info.route.resource
        route = None if resource is None else resource.canonical
        if route in _UNTRACED:
            return await handler(request)
        trace = self._begun(request, None if route == _NOWHERE else route)
        request[TRACEPARENT] = trace.traceparent
        try:
            response = await handler(request)
        except BaseException as error:
            self._end(trace, request, outcome=outcome_of(error), status=None)
            raise
        self._end(trace, request, outcome=request.get(PROBLEM, "ok"), status=response.status)
        return response

    async def end(self) -> None:
        """Send what is left, for a short while: who takes it may be gone."""
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # the loop is closed: nobody has waited
                loop.call_soon_threadsafe(is_over.set)

        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await is_over.wait()
        except TimeoutError:
            log.warning("the last spans were not taken in %g s, and are lost", _FLUSH_SECONDS)

    def _begun(self, request: web.Request, route: str | None) -> _Trace:
        began, now = time.monotonic(), time.time_ns()
        method = request.method if request.method in _METHODS else "_OTHER"
        attributes: Attributes = {"http.request.method": method, "url.scheme": request.scheme}
        if route is not None:
            attributes["http.route"] = route
        name = ("HTTP" if method == "_OTHER" else method) + ("" if route is None else f" {route}")
        # A tracestate is not taken in: what it says would leave with the span.
        around = _ROOT
        parent: SpanContext | None = None
        parents = request.headers.getall(HEADER, [])
        if len(parents) == 1:
            around = _W3C.extract({HEADER: parents[0]})
            said: SpanContext = get_current_span(around).get_span_context()
            parent = said if said.is_valid else None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        flags = _RANDOM if parent is None else parent.trace_flags & _RANDOM
        sampled = self._sampler.should_sample(around, trace_id, name, SpanKind.SERVER, attributes)
        if sampled.decision is Decision.RECORD_AND_SAMPLE:
            flags |= _SAMPLED
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, TraceFlags(flags))
        return _Trace(name, context, parent, attributes, began, now - _nanoseconds(began))

    def _end(self, trace: _Trace, request: web.Request, *, outcome: str, status: int | None) -> None:
        ended = time.monotonic()
        if not trace.context.trace_flags.sampled:
            return
        timeline, attributes = request.get(TIMELINE), trace.attributes
        upload = request.get(UPLOAD_ID) or request.match_info.get("id", "")
        if ULID.fullmatch(upload):
            attributes["gateway.upload.id"] = upload
        if status is not None:
            attributes["http.response.status_code"] = status
        if (asked := request.get(ACCESS_TIMES)) is not None:
            self._child(trace, "access", {}, asked[0], asked[1])
        if timeline is not None:
            outcome = timeline.outcome
            attributes["http.request.body.size"] = timeline.received_bytes
            self._children(trace, timeline)
        attributes["gateway.outcome"] = outcome
        is_failed = status is None or status >= 500
        if is_failed:
            attributes["error.type"] = outcome if outcome != "ok" else str(status)
        self._tell(
            trace,
            trace.name,
            trace.context,
            trace.parent,
            attributes,
            trace.began,
            ended,
            is_failed=is_failed,
            kind=SpanKind.SERVER,
        )

    def _children(self, trace: _Trace, timeline: Timeline) -> None:
        end, arrived = timeline.ended, timeline.arrived
        size: Attributes = {"gateway.bytes": timeline.received_bytes}
        self._child(trace, "arrival", size, timeline.began, arrived or end, is_failed=not arrived)
        for sink in timeline.sinks:
            ended, is_failed = sink.ended(end), sink.outcome == "failed"
            told: Attributes = {"gateway.sink": sink.sink, "gateway.outcome": sink.outcome or ""}
            of_sink = {**told, "gateway.bytes": sink.given_bytes}
            parent = self._child(trace, f"sink {sink.sink}", of_sink, sink.opened, ended, is_failed=is_failed)
            if sink.commit_began:
                begun, name = sink.commit_began, f"commit {sink.sink}"
                self._child(trace, name, told, begun, ended, is_failed=is_failed, parent=parent)

    def _child(
        self,
        trace: _Trace,
        name: str,
        attributes: Attributes,
        began: float,
        ended: float,
        *,
        is_failed: bool = False,
        parent: SpanContext | None = None,
    ) -> SpanContext:
        """A span below that of the request, or below `parent`."""
        above = parent or trace.context
        context = SpanContext(above.trace_id, self._ids.generate_span_id(), False, above.trace_flags)
        self._tell(trace, name, context, above, attributes, began, ended, is_failed=is_failed)
        return context

    def _tell(
        self,
        trace: _Trace,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        began: float,
        ended: float,
        *,
        is_failed: bool,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                kind=kind,
                status=_FAILED if is_failed else _FINE,
                start_time=trace.since_epoch + _nanoseconds(began),
                end_time=trace.since_epoch + _nanoseconds(ended),
                instrumentation_scope=_SCOPE,
            )
        )


class _AtMost(Sampler):
    """Keeps so many traces a second, the first ones."""

    def __init__(self, per_second: float) -> None:
        self._per_second = self._left = per_second
        self._looked = time.monotonic()

    def should_sample(
        self, parent_context: object, trace_id: int, name: str, *more: Any, **other: Any
    ) -> SamplingResult:
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._looked) * self._per_second)
        self._looked = now
        if self._left < 1:
            return SamplingResult(Decision.DROP)
        self._left -= 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return f"AtMost{{{self._per_second:g}}}"


class _Resource(Resource):
    """One whose hash costs nothing: an exporter asks for it with each span, and it would be JSON each time. There is
    but one in a process.
    """

    def __hash__(self) -> int:
        return id(self)


def _resource() -> Resource:
    """What this process is: whatever OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our own."""
    ours = {"service.name": "gateway", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    made = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    return _Resource(made.attributes, made.schema_url)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
