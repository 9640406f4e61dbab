"""The memory that one upload may hold at most (G1): each wing states its share, and here they are added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gateway import flows, manifest
from gateway.config.settings import Settings
from gateway.config.sinks import DiskSettings, ObjectsSettings, OwnSinkSettings, RelaySettings, SinkSettings
from gateway.digests import hashing_bytes
from gateway.http import request_heads
from gateway.intake.body import received_bytes
from gateway.model import Limits
from gateway.multipart import reader
from gateway.sinks.disk import delivery
from gateway.sinks.objects import layout as objects
from gateway.sinks.relay import sink as relay
from gateway.upload import lanes, standing
from gateway.upload.routes import Route

__all__ = ["connection_bound_bytes", "memory_bound_bytes", "read_bound_bytes", "unlimited_keys"]

_READ_BYTES = 1 << 20
"""What one read may hold at most of what is read: a piece of a file or of an archive that waits for the client, or of a
remote file twice as much as aiohttp holds of an answer, and what came in one call.
"""
_TLS_IDLE_BYTES, _TLS_BUSY_BYTES = 320 << 10, 1 << 20
"""What TLS of ours holds of a connection, and what more while something goes through it: asyncio has a buffer of
256 KiB for what comes, a copy of it, what is decrypted of it, and up to 512 KiB that waits for the client.
"""
_UNTAKEN_BYTES = 256 << 10
"""Of what whoever watches an upload is told, beside the text: a slice of it that waits for him, and its head."""


def memory_bound_bytes(settings: Settings) -> tuple[int, dict[str, int]]:
    """(bytes that one upload may hold at most, by what), on the route where that is most. Unlimited settings have no
    bound: 0 there. Entries of the manifest are extra: about 1 KiB for each part.
    """
    bounds = max((_of_route(route, settings) for route in settings.as_routes()), key=Counter.total, default=Counter())
    return bounds.total(), {what: size for what, size in bounds.items() if size}


def read_bound_bytes(settings: Settings) -> int:
    """What one read may hold at most."""
    return _READ_BYTES + _idle_bytes(settings) + (_TLS_BUSY_BYTES if settings.tls else 0)


def connection_bound_bytes(settings: Settings) -> int:
    """What a connection may hold at most whose request is neither an upload nor a read: it may watch an upload."""
    return _idle_bytes(settings) + standing.TOLD_BYTES + _UNTAKEN_BYTES + (_UNTAKEN_BYTES if settings.tls else 0)


def _idle_bytes(settings: Settings) -> int:
    head = sum(request_heads.memory_shares(settings.server.max_head_bytes).values())
    return head + (_TLS_IDLE_BYTES if settings.tls else 0)


def _of_route(route: Route, settings: Settings) -> Counter[str]:
    limits = settings.limits
    received = received_bytes(settings.server.read_buffer_bytes)
    stored = any(
        isinstance(settings.sinks[name], DiskSettings | ObjectsSettings | OwnSinkSettings) for name in route.sinks
    )
    lags = [terms.lag_bytes for terms in route.best_effort.values()]
    required = len(route.sinks) - len(lags)
    bounds = Counter({"received, not yet parsed": received, "batches being hashed": hashing_bytes(received)})
    bounds.update(request_heads.memory_shares(settings.server.max_head_bytes))
    bounds.update(reader.memory_shares(max_header_bytes=limits.max_header_bytes))
    is_told, lists_results = stored or not route.passes_answers, route.kind == "convert"
    bounds.update(manifest.memory_shares(limits, received, is_told=is_told, lists_results=lists_results))
    bounds.update(lanes.memory_shares(limits, received, required_sinks=required, lag_bytes=sum(lags)))
    if settings.tls:
        bounds["TLS"] = _TLS_IDLE_BYTES + _TLS_BUSY_BYTES
    if any(rule.flows for rule in route.rules):
        bounds.update(flows.memory_shares(limits, received))
    for name in route.sinks:
        bounds.update(_of_sink(settings.sinks[name], limits, received))
    return bounds


def _of_sink(sink: SinkSettings, limits: Limits, received: int) -> Mapping[str, int]:
    match sink:
        case DiskSettings():
            return delivery.memory_shares(limits, received)
        case ObjectsSettings():
            return objects.memory_shares(
                limits, received, part_bytes=sink.part_bytes, max_part_bytes=sink.max_part_bytes
            )
        case RelaySettings():
            return relay.memory_shares(
                limits,
                received,
                per=sink.per,
                replay_bytes=sink.replay_bytes,
                fields_first_bytes=sink.fields_first_bytes,
                hashes=sink.tells_sha256,
            )
        case _:
            return {}


def unlimited_keys(settings: Settings) -> list[str]:
    """The keys that bound memory, and are off."""
    limits = settings.limits
    sizes = {
        "server.max_uploads": settings.server.max_uploads,
        "server.max_reads": settings.server.max_reads,
        "server.max_connections": settings.server.max_connections,
        "limits.max_parts": limits.max_parts,
        "limits.window_bytes": limits.window_bytes,
        "limits.parallel_parts": limits.parallel_parts,
        "limits.max_fields_bytes": limits.max_fields_bytes,
        "limits.max_manifest_bytes": limits.max_manifest_bytes,
        "limits.max_header_bytes": limits.max_header_bytes,
    }
    return [key for key, size in sizes.items() if not size]
