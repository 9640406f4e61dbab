"""What can be configured of traces: whether there are any. Where they go is said by the variables of OpenTelemetry."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from pydantic import AfterValidator

from gateway.config.sinks import Table

__all__ = ["TracingSettings"]

_PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def _installed(enabled: bool) -> bool:
    if enabled:
        try:
            missing = any(find_spec(package) is None for package in _PACKAGES)
        except ModuleNotFoundError:  # not even what it is in
            missing = True
        if missing:
            raise ValueError('OpenTelemetry is not installed: pip install "multipart-relay-gateway[otel]"')
    return enabled


class TracingSettings(Table):
    """`[tracing]`: where the time of an upload goes."""

    enabled: Annotated[bool, AfterValidator(_installed)] = False
    """Traces are sent somewhere, and that is somebody's decision."""
    server_timing: bool = False
    """It tells clients how the inside is made, the names of sinks among it."""
