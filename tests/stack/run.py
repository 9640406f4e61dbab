"""One run: traffic through nginx, a gateway that is restarted in the middle of it, and what is true afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

from tests.stack.metrics import GATEWAYS, Counts, counts
from tests.stack.processes import Stack, StackError
from tests.stack.prometheus import MOMENTS, QUIET, Panel, Prometheus, Series, panels
from tests.stack.traffic import Tally, Traffic

__all__ = ["Report", "Run"]

_COMPARED = ("gateway_uploads_total", "gateway_reads_total", "gateway_deletes_total", "gateway_sent_bytes_total")
_SCRAPED_SECONDS = 40.0
"""More than two intervals of config/prometheus/prometheus.yml."""
_AFTERWARDS_SECONDS = 4.0
"""Of traffic after the restart, so that both gateways have some again."""


@dataclass
class Report:
    """What is printed, and what was wrong."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    curves: list[tuple[Panel, list[Series]]] = field(default_factory=list)
    started: float = 0.0


class Run:
    """Of a stack that is well. `await Run(...).all(seconds)` is its report."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession, key: str) -> None:
        self._stack = stack
        self._session = session
        self._traffic = Traffic(key)
        self._prometheus = Prometheus(session) if "prometheus" in stack.services else None
        self._before: Counts = Counter()
        """What the gateway that was restarted had counted until then."""
        self._scraped: Counts = Counter()
        """The same, as Prometheus had it."""
        self._report = Report()

    async def all(self, seconds: float) -> Report:
        """Traffic for so long, or until the restart is over; then whatever has to hold."""
        self._report.started = time.time()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            end = asyncio.Event()
            async with self._traffic.long_upload(end):
                gateway = await self._where_it_is()
                traffic = group.create_task(self._traffic.run(stop))
                await asyncio.sleep(seconds / 3)
                await self._end(gateway, end)
            began = time.monotonic()
            await self._stack.start(gateway)
            self._line("started again", f"{gateway}, in {time.monotonic() - began:.1f} s")
            left = self._report.started + seconds - time.time()
            await asyncio.sleep(max(left, _AFTERWARDS_SECONDS))
            stop.set()
            await traffic
        await self._check()
        return self._report

    # -- the restart

    async def _where_it_is(self) -> str:
        """Which gateway has the one upload that there is."""
        async with asyncio.timeout(10):
            while True:
                for gateway in GATEWAYS:
                    if (await counts(self._session, gateway))["gateway_uploads_in_flight",]:
                        return gateway
                await asyncio.sleep(0.1)

    async def _end(self, gateway: str, end: asyncio.Event) -> None:
        """It drains, while others go to the other one. The long upload, which it has, is the last one to end there."""
        began = time.monotonic()
        uploads = self._traffic.tally.uploads.total()
        self._stack.tell_to_end(gateway)
        while True:
            self._before = await counts(self._session, gateway)
            if self._before["gateway_connections",] == 1:  # nginx has one for each request
                break
            await asyncio.sleep(0.1)
        quiet = time.time()
        if self._prometheus is not None:
            await self._wait_for_scrape(f"{gateway}:9090", quiet)
            self._scraped = await self._totals(f'instance="{gateway}:9090"')
        end.set()
        self._before["gateway_uploads_total", "ok", "/upload"] += 1
        self._scraped["gateway_uploads_total", "ok", "/upload"] += 1
        code = await self._stack.ended(gateway)
        passed = self._traffic.tally.uploads.total() - uploads
        self._line("ended by SIGTERM", f"{gateway}, in {time.monotonic() - began:.1f} s; {passed} uploads meanwhile")
        if code != 0:
            self._report.wrong.append(f"{gateway} ended with {code}")

    async def _wait_for_scrape(self, instance: str, since: float) -> None:
        """Until Prometheus has asked it after that moment."""
        assert self._prometheus is not None
        deadline = time.monotonic() + _SCRAPED_SECONDS
        while await self._prometheus.scraped_at(instance) <= since:
            if time.monotonic() > deadline:
                raise StackError(f"Prometheus does not ask {instance}: {self._stack.log('prometheus')}")
            await asyncio.sleep(0.3)

    async def _totals(self, selector: str) -> Counts:
        """Of what is compared, as Prometheus has them."""
        assert self._prometheus is not None
        found: Counts = Counter()
        for metric in _COMPARED:
            for labels, value in (await self._prometheus.totals(f"{metric}{{{selector}}}")).items():
                found[metric, *labels] += value
        return found

    # -- afterwards

    async def _check(self) -> None:
        tally = self._traffic.tally
        self._tell(tally)
        self._report.wrong += tally.wrong
        self._report.wrong += [f"{name} has ended: {self._stack.log(name)}" for name in self._stack.died()]
        expected = _expected(tally)
        ends = time.time()
        told = [await counts(self._session, gateway) for gateway in GATEWAYS]
        self._compare("sums that the gateways tell", expected, sum(told, self._before))
        if self._prometheus is None:
            self._line("Prometheus", "is not installed: its queries were not tried")
            return
        for gateway in GATEWAYS:
            await self._wait_for_scrape(f"{gateway}:9090", ends)
        scraped = self._scraped + await self._totals('job="gateway"')
        self._compare("sums that Prometheus tells", expected, scraped)
        await self._panels()
        complaints = await self._prometheus.complaints()
        self._line("targets, rules, alerts", "well" if not complaints else "; ".join(complaints))
        self._report.wrong += complaints

    def _tell(self, tally: Tally) -> None:
        for route in sorted({route for route, _ in tally.uploads}):
            outcomes = {outcome: count for (of, outcome), count in sorted(tally.uploads.items()) if of == route}
            self._line(f"uploads to {route}", ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
        compared = (
            f"{tally.downloads} files of {tally.downloaded_bytes / 1e6:.0f} MB compared, {tally.manifests} manifests"
        )
        self._line("reads", f"{compared}, {tally.removals} uploads removed")
        self._line("failed uploads", f"{tally.failed_uploads} of those that were not meant to fail")

    def _compare(self, what: str, expected: Counts, found: Counts) -> None:
        keys = {key for key in found if key[0] in _COMPARED and found[key]} | set(expected)
        differ = [
            f"{' '.join(key)} is {found[key]}, not {expected[key]}"
            for key in sorted(keys)
            if found[key] != expected[key]
        ]
        self._line(what, f"agree with the clients' ({len(keys)})" if not differ else "do not agree")
        self._report.wrong += differ

    async def _panels(self) -> None:
        """Each has numbers, and not only zeros, or there is a reason."""
        assert self._prometheus is not None
        empty = {}
        for panel in panels():
            curves = await self._prometheus.curves(panel, self._report.started, time.time())
            self._report.curves.append((panel, curves))
            if not any(value for series in curves for _, value in series.points):
                looked = "0 in all moments that Prometheus looked" if curves and panel.title in MOMENTS else None
                empty[panel.title] = QUIET.get(panel.title, looked)
        answered = len(self._report.curves) - len(empty)
        self._line("panels of the dashboard", f"{answered} of {len(self._report.curves)} have numbers other than 0")
        for title, reason in empty.items():
            self._line(f"  {title}", reason or "HAS NONE")
        self._report.wrong += [f"the panel {title!r} has no numbers" for title, reason in empty.items() if not reason]

    def _line(self, what: str, text: str) -> None:
        self._report.lines.append((what, text))


def _expected(tally: Tally) -> Counts:
    """In the words of the metrics, labels by the order of their names."""
    found: Counts = Counter()
    for (route, outcome), count in tally.uploads.items():
        found["gateway_uploads_total", outcome, route] = count
    found["gateway_reads_total", "ok", "file"] = tally.downloads
    found["gateway_reads_total", "ok", "manifest"] = tally.manifests
    found["gateway_deletes_total", "ok"] = tally.removals
    found["gateway_sent_bytes_total", "file"] = tally.downloaded_bytes
    found["gateway_sent_bytes_total", "manifest"] = tally.manifest_bytes
    return found
