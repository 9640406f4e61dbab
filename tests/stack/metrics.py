"""What the gateways say of themselves, asked at their management listeners, as Prometheus asks them."""

from __future__ import annotations

from collections import Counter

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["GATEWAYS", "Counts", "counts", "uploads_in_flight"]

GATEWAYS = ("gateway-1", "gateway-2")
_PORT = 9090

Counts = Counter[tuple[str, ...]]
"""(metric, values of its labels, sorted by their names) -> value."""


async def counts(session: aiohttp.ClientSession, gateway: str) -> Counts:
    """All that it has counted since it was started."""
    async with session.get(f"http://{gateway}:{_PORT}/metrics") as answer:
        text = await answer.text()
    found: Counts = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *(sample.labels[name] for name in sorted(sample.labels))] = round(sample.value)
    return found


async def uploads_in_flight(session: aiohttp.ClientSession, gateway: str) -> int:
    """Let in, and not ended."""
    return (await counts(session, gateway))["gateway_uploads_in_flight",]
