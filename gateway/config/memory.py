"""The memory that one upload may hold at most (G1): each wing states its share, and here they are added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gateway import flows, manifest
from gateway.config.settings import Settings
from gateway.config.sinks import DiskSettings, RelaySettings, SinkSettings
from gateway.digests import hashing_bytes
from gateway.http import request_heads
from gateway.intake.body import received_bytes
from gateway.model import Limits
from gateway.multipart import reader
from gateway.sinks.disk import delivery
from gateway.sinks.relay import sink as relay
from gateway.upload import lanes

__all__ = ["memory_bound_bytes", "read_bound_bytes", "unlimited_keys"]

_READ_BYTES = 1 << 20
"""What one read may hold at most of what is read: a piece of a file or of an archive that waits for the client, or of a
remote file twice as much as aiohttp holds of an answer, and what came in one call.
"""


def memory_bound_bytes(settings: Settings) -> tuple[int, dict[str, int]]:
    """(bytes that one upload may hold at most, by what). Unlimited settings have no bound: 0 there.

    Entries of the manifest are extra: about 1 KiB for each part beyond the first. Of what depends on the route, the
    most that any has.
    """
    limits = settings.limits
    received = received_bytes(settings.server.read_buffer_bytes)
    bounds = Counter({"received, not yet parsed": received, "batches being hashed": hashing_bytes(received)})
    bounds.update(request_heads.memory_shares(settings.server.max_head_bytes))
    bounds.update(reader.memory_shares(max_header_bytes=limits.max_header_bytes))
    bounds.update(manifest.memory_shares(limits))
    for route in settings.as_routes():
        lags = [terms.lag_bytes for terms in route.best_effort.values()]
        required = len(route.sinks) - len(lags)
        of_route = Counter(lanes.memory_shares(limits, received, required_sinks=required, lag_bytes=sum(lags)))
        if any(rule.flows for rule in route.rules):
            of_route.update(flows.memory_shares(limits, received))
        for name in route.sinks:
            of_route.update(_of_sink(settings.sinks[name], limits, received))
        bounds |= of_route  # by what, the larger one
    return bounds.total(), dict(bounds)


def read_bound_bytes(settings: Settings) -> int:
    """What one read may hold at most."""
    return _READ_BYTES + sum(request_heads.memory_shares(settings.server.max_head_bytes).values())


def _of_sink(sink: SinkSettings, limits: Limits, received: int) -> Mapping[str, int]:
    match sink:
        case DiskSettings():
            return delivery.memory_shares(limits, received)
        case RelaySettings():
            return relay.memory_shares(
                limits,
                received,
                per=sink.per,
                replay_bytes=sink.replay_bytes,
                fields_first_bytes=sink.fields_first_bytes,
            )
        case _:
            return {}


def unlimited_keys(settings: Settings) -> list[str]:
    """The keys that bound memory, and are off."""
    limits = settings.limits
    sizes = {
        "server.max_uploads": settings.server.max_uploads,
        "server.max_reads": settings.server.max_reads,
        "limits.max_parts": limits.max_parts,
        "limits.window_bytes": limits.window_bytes,
        "limits.parallel_parts": limits.parallel_parts,
        "limits.max_fields_bytes": limits.max_fields_bytes,
        "limits.max_manifest_bytes": limits.max_manifest_bytes,
        "limits.max_header_bytes": limits.max_header_bytes,
    }
    return [key for key, size in sizes.items() if not size]
