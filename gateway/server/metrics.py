"""Counters for Prometheus. No string of a client's in a label: routes, outcomes and sinks are the operator's words.

Several processes count into files of a directory that they share, and any of them shows the sums. A
process has a number there that its successor goes on with: its counts are kept, what it had in progress is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from gateway.access import QUOTAS
from gateway.errors import (
    LEAVES,
    ClientFault,
    ClientGone,
    GatewayError,
    NoDescriptors,
    Refused,
    SinkFault,
    SinkFull,
    SinkRefused,
    SinkTimeout,
    SinkUnavailable,
    TooManyRequests,
)
from gateway.sinks import Observer, Sink, Stage
from gateway.sinks.relay.sending.outbound import RETRY_REASONS
from gateway.sinks.store import Store
from gateway.upload.progress import UploadProgress

__all__ = ["Metrics", "forget_process", "share_metrics"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, that nobody reads
_SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1800)
_FIRST_BYTE_SECONDS = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 60)


def share_metrics(directory: Path, number: int) -> None:
    """From now on this process counts into `directory`. No two that run at a time may have the same number."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)  # where the library looks for it
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def forget_process(directory: Path, number: int) -> None:
    """It is dead: what it had in progress no longer counts."""
    mark_process_dead(number, str(directory))  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Counted:
    """What was counted of an upload that goes on."""

    received: int = 0
    given: dict[str, int] = field(default_factory=dict)
    """By sink."""


class Metrics(Observer):
    """`shared` is the directory of `share_metrics`, which was called before. It has an attribute for each family.

    What is in progress, and what is no event, is looked at now and then (`look`), and before it is told.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        self._children: dict[tuple[object, ...], Any] = {}
        """Of the families below, by family and labels: to look one up there costs more than to count."""
        self._running: dict[UploadProgress, _Counted] = {}
        self._looks: list[Callable[[], None]] = []
        self._sinks: Collection[str] = ()
        self.registry = CollectorRegistry()
        count = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        histogram = partial(Histogram, registry=self.registry)
        # -- uploads
        self._uploads = count("gateway_uploads", "Uploads that ended, by route and outcome", ["route", "outcome"])
        self._in_flight = gauge("gateway_uploads_in_flight", "Uploads in progress")
        self._seconds = histogram("gateway_upload_seconds", "Duration of uploads", ["route"], buckets=_SECONDS)
        self._first_byte = histogram(
            "gateway_upload_first_byte_seconds",
            "From letting an upload in to the first byte of its body",
            ["route"],
            buckets=_FIRST_BYTE_SECONDS,
        )
        self._received = count("gateway_received_bytes", "Body bytes received", ["route"])
        self._in_flight_bytes = gauge("gateway_in_flight_bytes", "Body bytes received of uploads in progress")
        # -- sinks
        self._sunk = count("gateway_sink_bytes", "Bytes of parts given to a sink", ["sink"])
        self._waiting = gauge(
            "gateway_sink_waiting_bytes", "Bytes of parts that wait until a sink takes them", ["sink"]
        )
        self._dropped = count(
            "gateway_sink_dropped",
            "Uploads that a best-effort sink was dropped from, by sink and reason",
            ["sink", "reason"],
        )
        self._retries = count(
            "gateway_sink_retries", "Requests of a relay made again, by sink and reason", ["sink", "reason"]
        )
        self._store_errors = count("gateway_store_errors", "Errors of a store, by store and reason", ["sink", "reason"])
        where = ["sink", "destination"]
        self._up = Gauge(
            "gateway_destination_up",
            "Whether a relay's destination is in use: its circuit is closed, and its last health check was good",
            where,
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._open = Gauge(
            "gateway_destination_circuit_open",
            "Whether the circuit of a relay's destination is open, or waits for an upload to close it",
            where,
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._answers = histogram(
            "gateway_destination_first_byte_seconds",
            "From the last byte of a request to a relay's destination to the first byte of its answer",
            ["sink"],
            buckets=_FIRST_BYTE_SECONDS,
        )
        # -- requests
        self._refusals = count("gateway_refusals", "Requests that were refused, by the name of the problem", ["reason"])
        self._quota_refusals = count("gateway_quota_refusals", "Requests refused for a quota, by quota", ["quota"])
        self._downloads = count("gateway_downloads", "Remote downloads that ended, by outcome", ["outcome"])
        self._reads = count("gateway_reads", "Reads of what is stored, by what and outcome", ["what", "outcome"])
        self._deletes = count("gateway_deletes", "Removals of what is stored, by outcome", ["outcome"])
        self._sent = count("gateway_sent_bytes", "Bytes sent of what was read or downloaded, by what", ["what"])
        self._connections = gauge("gateway_connections", "Connections of clients")

    def begin_with(self, routes: Iterable[str], sinks: Mapping[str, Sink]) -> None:
        """Show what is known beforehand from 0 on: of a series that begins with its first event no increase is seen."""
        for route in routes:
            self._child(self._received, route)
        self._sinks = list(sinks)
        for name, sink in sinks.items():
            self._child(self._sunk, name)
            self._child(self._waiting, name)
            if sink.stage is Stage.RELAY:
                for reason in RETRY_REASONS:
                    self._child(self._retries, name, reason)
            if isinstance(sink, Store):
                for fault in (NoDescriptors, SinkFull, SinkRefused, SinkTimeout, SinkUnavailable):
                    self._child(self._store_errors, name, fault.slug())
        for leaf in LEAVES:
            if _is_refusal(leaf):
                self._child(self._refusals, leaf.slug())
        for what in ("file", "archive", "manifest", "download"):
            self._child(self._sent, what)
        for quota in QUOTAS:
            self._child(self._quota_refusals, quota)

    # -- uploads

    def upload_began(self, progress: UploadProgress) -> None:
        """One that was let in; `upload_ended` follows."""
        self._in_flight.inc()
        self._running[progress] = _Counted()

    def upload_ended(
        self,
        progress: UploadProgress,
        *,
        outcome: str,
        seconds: float,
        dropped: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`outcome` is `ok`, `partial` (some parts failed, the others are kept), `answered` (a destination's own
        early answer) or the slug of an error; `dropped` are the best-effort sinks that were, and why. The progress has
        not been told of the end.
        """
        self._in_flight.dec()
        self._count_bytes(progress, self._running.pop(progress))
        child, route = self._child, progress.route
        child(self._uploads, route, outcome).inc()
        child(self._seconds, route).observe(seconds)
        if progress.first_byte_seconds is not None:
            child(self._first_byte, route).observe(progress.first_byte_seconds)
        for sink, reason in dropped.items():
            child(self._dropped, sink, reason).inc()

    def upload_refused(self, *, route: str, outcome: str) -> None:
        """One that was not let in; `outcome` is the slug of the error."""
        self._child(self._uploads, route, outcome).inc()

    def _count_bytes(self, progress: UploadProgress, counted: _Counted) -> None:
        """Those of an upload that came, and were given, since it was looked at last."""
        received = progress.received_bytes
        if received > counted.received:
            self._child(self._received, progress.route).inc(received - counted.received)
            counted.received = received
        for sink, given, _ in progress.at_sinks():
            if more := given - counted.given.get(sink, 0):
                self._child(self._sunk, sink).inc(more)
                counted.given[sink] = given

    # -- sinks

    def destination_is(self, sink: str, number: int, is_up: bool, is_open: bool) -> None:
        """It is told by its number among the sink's urls: where destinations are is nothing for those who may read
        metrics.
        """
        self._up.labels(sink, str(number)).set(is_up)
        self._open.labels(sink, str(number)).set(is_open)

    def failed(self, sink: str, fault: SinkFault) -> None:
        self._child(self._store_errors, sink, fault.slug()).inc()

    def retried(self, sink: str, reason: str) -> None:
        self._child(self._retries, sink, reason).inc()

    def answered(self, sink: str, seconds: float) -> None:
        self._child(self._answers, sink).observe(seconds)

    # -- requests

    def refused(self, error: GatewayError) -> None:
        """A request ended with it; counted if it is a refusal, and no fault behind the gateway or in it."""
        if _is_refusal(type(error)):
            self._child(self._refusals, error.slug()).inc()
        quota = error.members.get("quota")
        if isinstance(error, TooManyRequests) and quota in QUOTAS:
            self._child(self._quota_refusals, str(quota)).inc()

    def download_ended(self, outcome: str, sent_bytes: int) -> None:
        """`outcome` is `ok` or the slug of an error."""
        self._child(self._downloads, outcome).inc()
        self._count_sent("download", sent_bytes)

    def read_ended(self, what: str, outcome: str, sent_bytes: int) -> None:
        """Likewise: a read of something stored."""
        self._child(self._reads, what, outcome).inc()
        self._count_sent(what, sent_bytes)

    def delete_ended(self, outcome: str) -> None:
        """Likewise."""
        self._child(self._deletes, outcome).inc()

    def _count_sent(self, what: str, size: int) -> None:
        if size:
            self._child(self._sent, what).inc(size)

    def connections_are(self, count: int) -> None:
        """So many are open in this process."""
        self._connections.set(count)

    # -- what is looked at

    def look_also(self, look: Callable[[], None]) -> None:
        """Call this, too, whenever things are looked at."""
        self._looks.append(look)

    def look(self) -> None:
        """Bring up to date what is not counted when it happens. Others see it; `text` looks here itself."""
        received, waiting = 0, dict.fromkeys(self._sinks, 0)
        for progress, counted in self._running.items():
            self._count_bytes(progress, counted)
            received += counted.received
            for sink, _, size in progress.at_sinks():
                waiting[sink] += size
        self._in_flight_bytes.set(received)
        for sink, size in waiting.items():
            self._child(self._waiting, sink).set(size)
        for look in self._looks:
            look()

    def _child(self, family: Counter | Gauge | Histogram, *labels: str) -> Any:
        found = self._children.get((family, *labels))
        if found is None:
            found = self._children[family, *labels] = family.labels(*labels)
        return found

    def text(self) -> bytes:
        """Prometheus' text format; of all processes where they share."""
        self.look()
        if self._shared is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _is_refusal(kind: type[GatewayError]) -> bool:
    """Whether it is for what was asked, or how: not for what became of it behind the gateway, or in it."""
    return issubclass(kind, Refused | ClientFault) and not issubclass(kind, ClientGone)
