"""Counters for Prometheus. No string of a client's in a label: routes, outcomes and sinks are the operator's words.

Several processes count into files of a directory that they share, and any of them shows the sums. A
process has a number there that its successor goes on with: its counts are kept, what it had in progress is not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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

__all__ = ["Metrics", "forget_process", "share_metrics"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, that nobody reads
_SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1800)


def share_metrics(directory: Path, number: int) -> None:
    """From now on this process counts into `directory`. No two that run at a time may have the same number."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)  # where the library looks for it
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def forget_process(directory: Path, number: int) -> None:
    """It is dead: what it had in progress no longer counts."""
    mark_process_dead(number, str(directory))  # type: ignore[no-untyped-call]


class Metrics:
    """`shared` is the directory of `share_metrics`, which was called before."""

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        self._children: dict[tuple[object, ...], Any] = {}
        """Of the families below, by family and labels: to look one up there costs more than to count."""
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
        self._in_flight = Gauge(
            "gateway_uploads_in_flight", "Uploads in progress", registry=self._registry, multiprocess_mode="livesum"
        )
        self._seconds = Histogram(
            "gateway_upload_seconds", "Duration of uploads", ["route"], buckets=_SECONDS, registry=self._registry
        )

        self._downloads = Counter(
            "gateway_downloads", "Remote downloads that ended, by outcome", ["outcome"], registry=self._registry
        )
        where = ["sink", "destination"]
        self._up = Gauge(
            "gateway_destination_up",
            "Whether a relay's destination is in use: its circuit is closed, and its last health check was good",
            where,
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self._open = Gauge(
            "gateway_destination_circuit_open",
            "Whether the circuit of a relay's destination is open, or waits for an upload to close it",
            where,
            registry=self._registry,
            multiprocess_mode="livemax",
        )

    def destination_is(self, sink: str, number: int, is_up: bool, is_open: bool) -> None:
        """What is known of it now, and whether its circuit is open. It is told by its number among the sink's urls:
        where destinations are is nothing for those who may read metrics.
        """
        self._up.labels(sink, str(number)).set(is_up)
        self._open.labels(sink, str(number)).set(is_open)

    def download_ended(self, outcome: str) -> None:
        """`outcome` is `ok` or the slug of an error."""
        self._child(self._downloads, outcome).inc()

    def upload_began(self) -> None:
        """One that was let in; `upload_ended` follows."""
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
        child = self._child
        child(self._uploads, route, outcome).inc()
        child(self._received, route).inc(received_bytes)
        child(self._seconds, route).observe(seconds)
        for sink, size in sink_bytes.items():
            child(self._sunk, sink).inc(size)
        for sink, reason in dropped.items():
            child(self._dropped, sink, reason).inc()

    def upload_refused(self, *, route: str, outcome: str) -> None:
        """One that was not let in; `outcome` is the slug of the error."""
        self._child(self._uploads, route, outcome).inc()

    def _child(self, family: Counter | Histogram, *labels: str) -> Any:
        found = self._children.get((family, *labels))
        if found is None:
            found = self._children[family, *labels] = family.labels(*labels)
        return found

    def text(self) -> bytes:
        """Prometheus' text format; of all processes where they share."""
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
