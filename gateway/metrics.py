"""Counters for Prometheus. No string of a client's in a label: routes, outcomes and sinks are the operator's words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

__all__ = ["Metrics"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, that nobody reads
_SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1800)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._uploads = Counter(
            "gateway_uploads", "Uploads that ended, by route and outcome", ["route", "outcome"], registry=self._registry
        )
        self._received = Counter("gateway_received_bytes", "Body bytes received", ["route"], registry=self._registry)
        self._sunk = Counter("gateway_sink_bytes", "Bytes of parts given to a sink", ["sink"], registry=self._registry)
        self._dropped = Counter(
            "gateway_sink_dropped",
            "Uploads that a best-effort sink was dropped from, by sink and reason",
            ["sink", "reason"],
            registry=self._registry,
        )
        self._in_flight = Gauge("gateway_uploads_in_flight", "Uploads in progress", registry=self._registry)
        self._seconds = Histogram(
            "gateway_upload_seconds", "Duration of uploads", ["route"], buckets=_SECONDS, registry=self._registry
        )

        self._downloads = Counter(
            "gateway_downloads", "Remote downloads that ended, by outcome", ["outcome"], registry=self._registry
        )

    def download_ended(self, outcome: str) -> None:
        self._downloads.labels(outcome).inc()

    def upload_began(self) -> None:
        self._in_flight.inc()

    def upload_ended(
        self,
        *,
        route: str,
        outcome: str,
        received_bytes: int,
        sink_bytes: dict[str, int],
        seconds: float,
        dropped: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`outcome` is `ok`, `partial` (some parts failed, the others are kept), `answered` (a destination's own
        early answer) or the slug of an error; `dropped` are the best-effort sinks that were, and why.
        """
        self._in_flight.dec()
        self._uploads.labels(route, outcome).inc()
        self._received.labels(route).inc(received_bytes)
        self._seconds.labels(route).observe(seconds)
        for sink, size in sink_bytes.items():
            self._sunk.labels(sink).inc(size)
        for sink, reason in dropped.items():
            self._dropped.labels(sink, reason).inc()

    def upload_refused(self, *, route: str, outcome: str) -> None:
        self._uploads.labels(route, outcome).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
