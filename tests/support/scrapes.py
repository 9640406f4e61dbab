"""What `/metrics` says, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import SECONDS, ask

__all__ = ["Samples", "by", "comes_to", "of", "scraped"]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, its labels in their order) -> value; without buckets."""


async def scraped(port: int) -> Samples:
    """All that is told there now."""
    answer = await ask(port, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    """One series. Raises KeyError where it is not shown."""
    return samples[name, tuple(sorted(labels.items()))]


def by(samples: Samples, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Values of these labels -> value, of the series of that name that are not 0."""
    found = ((dict(given), value) for (one, given), value in samples.items() if one == name and value)
    return {tuple(given[label] for label in labels): value for given, value in found}


async def comes_to(port: int, name: str, expected: float | Callable[[float], bool], **labels: str) -> float:
    """Scrape until that series has that value, or fulfils that. Raises AssertionError."""
    until = asyncio.get_running_loop().time() + SECONDS
    while True:
        value = of(await scraped(port), name, **labels)
        if expected(value) if callable(expected) else value == expected:
            return value
        assert asyncio.get_running_loop().time() < until, f"{name} is {value}"
        await asyncio.sleep(0.02)
