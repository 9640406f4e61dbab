"""What Prometheus says: to the queries of the dashboard's panels, of its rules and alerts, and of sums."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import yaml

from tests.stack.services import ROOT

__all__ = ["MOMENTS", "QUIET", "Panel", "Prometheus", "Series", "panels"]

_URL = "http://prometheus:9090/api/v1"
_DASHBOARD = ROOT / "config" / "grafana" / "dashboards" / "gateway.json"
_RULES = ROOT / "config" / "prometheus" / "alerts.yml"
_STEPS = 240
"""Points of a curve."""

QUIET = {
    "Circuits that are open": "the destination answers, whatever it answers",
    "Errors of stores": "the store works",
    "Requests of relays made again": "no request fails before its answer",
    "Best-effort sinks that were dropped": "config/cluster.toml has none",
    "Refusals for a quota": "config/cluster.toml has none",
}
"""Panels that have no series here, or no other number than 0, and why that is right."""

MOMENTS = {"Bytes that wait for a sink", "Reads and downloads in flight"}
"""Panels of what is there for moments, and may be 0 whenever Prometheus looks (every 15 s). They have series."""


@dataclass(frozen=True)
class Panel:
    """One with curves; a row's title stands at each of its panels."""

    row: str
    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """(query, legend), as the dashboard has them."""


@dataclass(frozen=True)
class Series:
    """A curve."""

    legend: str
    points: list[tuple[float, float]]
    """(seconds since the epoch, value), in order; what is not a number is left out."""


def panels() -> list[Panel]:
    """Those of the dashboard."""
    found, row = [], ""
    for panel in json.loads(_DASHBOARD.read_text("utf-8"))["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            queries = tuple((target["expr"], target["legendFormat"]) for target in panel["targets"])
            found.append(Panel(row, panel["title"], panel["fieldConfig"]["defaults"]["unit"], queries))
    return found


class Prometheus:
    """That of the stack."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def _ask(self, what: str, **parameters: str) -> Any:
        async with self._session.get(f"{_URL}/{what}", params=parameters) as answer:
            said = await answer.json()
        assert said["status"] == "success", said
        return said["data"]

    async def curves(self, panel: Panel, start: float, end: float) -> list[Series]:
        """What the dashboard would show, all gateways chosen."""
        return [series for query, legend in panel.queries async for series in self._curves(query, legend, start, end)]

    async def _curves(self, query: str, legend: str, start: float, end: float) -> Any:
        # Grafana's own value: four times the interval of the data source, if its steps are shorter than that
        query = query.replace("$instance", ".*").replace("$__rate_interval", "1m")
        step = max(1.0, (end - start) / _STEPS)
        said = await self._ask("query_range", query=query, start=str(start), end=str(end), step=f"{step:.3f}")
        for one in said["result"]:
            points = [(float(at), float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                yield Series(_legend(legend, one["metric"]), points)

    async def instant(self, query: str, at: float | None = None) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, value) of each series."""
        said = await self._ask("query", query=query, **({} if at is None else {"time": str(at)}))
        return ((one["metric"], float(one["value"][1])) for one in said["result"])

    async def scraped_at(self, instance: str) -> float:
        """When it last had an answer of that gateway; 0 if never."""
        found = await self.instant(f'timestamp(gateway_uploads_in_flight{{instance="{instance}"}})')
        return max((value for _, value in found), default=0.0)

    async def totals(self, query: str, at: float | None = None) -> Counter[tuple[str, ...]]:
        """The values of a query by its labels, sorted by their names."""
        sums: Counter[tuple[str, ...]] = Counter()
        for labels, value in await self.instant(query, at):
            names = sorted(set(labels) - {"__name__", "instance", "job"})
            sums[tuple(labels[name] for name in names)] += round(value)
        return sums

    async def complaints(self) -> list[str]:
        """Targets that are down, rules that are not loaded or not well, alerts of the night that fire."""
        found = [f"{labels['instance']} is down" for labels, value in await self.instant("up") if not value]
        rules = [rule for group in (await self._ask("rules"))["groups"] for rule in group["rules"]]
        written = [rule["alert"] for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]
        found += [f"the rule {name} is not loaded" for name in set(written) - {rule["name"] for rule in rules}]
        found += [
            f"the rule {rule['name']} is not well: {rule['lastError']}" for rule in rules if rule["health"] != "ok"
        ]
        for alert in (await self._ask("alerts"))["alerts"]:
            if alert["state"] == "firing" and alert["labels"]["severity"] == "critical":
                found.append(f"{alert['labels']['alertname']} fires: {alert['annotations']['summary']}")
        return found


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template).strip()
