"""What is to be reached: ratios within one run. A target is judged, never moved."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.bodies import SMALL, Body
from tests.bench.jobs import FURTHER_UPLOADS, WORKERS_CLIENTS, Memory, Sample

__all__ = ["Key", "Results", "Verdict", "judge"]

Key = tuple[str, str, str]
"""Job, body, peer."""

_CORES_FOR_TWO_WORKERS = 4
_MIB = 1 << 20


@dataclass(slots=True)
class Results:
    bodies: dict[str, Body]
    samples: dict[Key, list[Sample]] = field(default_factory=dict)
    notes: dict[Key, str] = field(default_factory=dict)
    """Why there is no sample of somebody."""
    failures: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    workers: dict[int, list[Sample]] = field(default_factory=dict)
    small_workers: dict[int, list[Sample]] = field(default_factory=dict)
    workers_note: str = ""

    def median(self, key: Key, value: Callable[[Sample], float | None]) -> float | None:
        values = [found for sample in self.samples.get(key, []) if (found := value(sample)) is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`met` is None where it could not be judged."""

    what: str
    met: bool | None
    figures: str


def rate(sample: Sample) -> float:
    return sample.rate


def per_cpu_second(sample: Sample) -> float | None:
    return sample.per_cpu_second


def requests_per_second(sample: Sample) -> float:
    return sample.requests_per_second


def requests_per_cpu_second(sample: Sample) -> float | None:
    return sample.requests_per_cpu_second


_RATIOS: list[tuple[str, str, list[tuple[float, str]]]] = [
    ("discard", "large", [(2.2, "go"), (2.2, "busboy"), (2.5, "stock")]),
    ("discard", "medium", [(1.6, "go"), (2.2, "busboy"), (4, "stock")]),
    ("discard", "tiny", [(10, "stock"), (1.3, "busboy"), (0.9, "go")]),
    ("relay", "large", [(0.85, "raw"), (1.5, "nginx"), (1.3, "busboy"), (4, "go")]),
    ("relay", "medium", [(0.65, "raw"), (1.6, "busboy"), (3.5, "go")]),
    ("relay", "tiny", [(15, "stock"), (2.5, "go"), (4, "busboy")]),
    ("disk", "large", [(2, "fastapi"), (1.5, "go"), (1.3, "busboy"), (10, "stock")]),
    ("disk", "medium", [(10, "stock"), (1.1, "go"), (0.9, "busboy")]),
    ("disk", "tiny", [(0.7, "go"), (2, "busboy"), (2.5, "busboy")]),
]
"""Of MB/s."""
_SMALL_RATIOS = [("discard", 1.3, "stock"), ("disk", 2.5, "fastapi"), ("disk", 0.6, "busboy")]
"""Of uploads per CPU-second: the others keep neither digests nor manifests, nor all or nothing."""
_FSYNC_PEERS = ("stock", "fastapi", "flask", "busboy", "go")
_PYTHON_PEERS = ("stock", "fastapi", "flask")
_CPU_RATIOS = [("large", 0.8), ("medium", 0.6)]
"""Of MB per CPU-second, against reading the raw body."""


def judge(results: Results) -> list[Verdict]:
    verdicts = [
        _ratio(results, "discard", body, "raw", factor, per_cpu_second, "MB per CPU-second")
        for body, factor in _CPU_RATIOS
    ]
    verdicts += [
        _ratio(results, job, body, peer, factor, rate, "MB/s")
        for job, body, ratios in _RATIOS
        for factor, peer in ratios
    ]
    small = [verdict for body in SMALL for verdict in _small(results, body)]
    return [*verdicts, _fan_out(results), *small, _workers(results), *_small_workers(results), *_memory(results)]


def _ratio(
    results: Results,
    job: str,
    body: str,
    peer: str,
    factor: float,
    value: Callable[[Sample], float | None],
    unit: str,
) -> Verdict:
    what = f"{job}, {results.bodies[body].name}: {factor} x {peer} in {unit}"
    ours, theirs = (results.median((job, body, who), value) for who in ("gateway", peer))
    if ours is None or theirs is None:
        return Verdict(what, None, results.notes.get((job, body, peer), "not measured"))
    return Verdict(what, ours >= factor * theirs, f"{ours:.0f} against {theirs:.0f}: {ours / theirs:.2f} x")


def _fan_out(results: Results) -> Verdict:
    what = f"relay + disk, {results.bodies['large'].name}: 0.8 x the slower of the two alone in MB/s"
    both, relay, disk = (results.median((job, "large", "gateway"), rate) for job in ("relay + disk", "relay", "disk"))
    if both is None or relay is None or disk is None:
        return Verdict(what, None, "not measured")
    slower = min(relay, disk)
    return Verdict(what, both >= 0.8 * slower, f"{both:.0f} against {slower:.0f}: {both / slower:.2f} x")


def _small(results: Results, body: str) -> list[Verdict]:
    unit = "uploads per CPU-second"
    verdicts = [
        _ratio(results, job, body, peer, factor, requests_per_cpu_second, unit) for job, factor, peer in _SMALL_RATIOS
    ]
    verdicts += [
        _ratio(results, "disk, fsync", body, peer, 2, requests_per_second, "uploads/s") for peer in _FSYNC_PEERS
    ]
    if body == "small":
        verdicts.append(_ratio(results, "disk", body, "fastapi", 2, requests_per_second, "requests/s"))
    return [*verdicts, *(_latency(results, job, body) for job in ("discard", "disk", "disk, fsync"))]


def _latency(results: Results, job: str, body: str) -> Verdict:
    what = f"{job}, {results.bodies[body].name}: p99 no worse than the best Python peer's"

    def p99(who: str) -> float | None:
        return results.median((job, body, who), lambda sample: sample.p99_seconds)

    ours = p99("gateway")
    theirs = [found for who in _PYTHON_PEERS if (found := p99(who)) is not None]
    if ours is None or not theirs:
        return Verdict(what, None, "not measured")
    return Verdict(what, ours <= min(theirs), f"{ours * 1e3:.1f} ms against {min(theirs) * 1e3:.1f} ms")


def _small_workers(results: Results) -> list[Verdict]:
    """The client costs next to nothing, but it is on the same cores."""
    what = f"two workers: disk, {results.bodies['small'].name}"
    verdicts = []
    for value, factor, unit in [
        (requests_per_cpu_second, 0.9, "uploads per CPU-second"),
        (requests_per_second, 1.5, "uploads/s"),
    ]:
        medians = {
            workers: statistics.median(found)
            for workers, samples in results.small_workers.items()
            if (found := [figure for sample in samples if (figure := value(sample)) is not None])
        }
        title = f"{what}: {factor} x one worker in {unit}"
        if medians.keys() != {1, 2}:
            verdicts.append(Verdict(title, None, results.workers_note or "not measured"))
            continue
        one, two = medians[1], medians[2]
        verdicts.append(Verdict(title, two >= factor * one, f"{two:.0f} against {one:.0f}: {two / one:.2f} x"))
    return verdicts


def _workers(results: Results) -> Verdict:
    what = f"two workers: relay, {results.bodies['large'].name}, {WORKERS_CLIENTS} clients: 1.6 x one worker in MB/s"
    rates = {n: statistics.median(map(rate, samples)) for n, samples in results.workers.items() if samples}
    if 1 not in rates:
        return Verdict(what, None, results.workers_note or "not measured")
    if 2 not in rates:
        return Verdict(what, None, f"one worker {rates[1]:.0f} MB/s; {results.workers_note}")
    figures = f"{rates[2]:.0f} against {rates[1]:.0f}: {rates[2] / rates[1]:.2f} x"
    cores = len(os.sched_getaffinity(0))
    if cores < _CORES_FOR_TWO_WORKERS:
        return Verdict(what, None, f"{figures}, but {cores} cores are too few for client, destination and both")
    return Verdict(what, rates[2] >= 1.6 * rates[1], figures)


def _memory(results: Results) -> list[Verdict]:
    peaks: dict[bool, list[int]] = {False: [], True: []}
    for (_, body, peer), samples in results.samples.items():
        if peer == "gateway" and body not in SMALL:
            peaks[body == "tiny"] += [sample.peak_rss_bytes for sample in samples]
    peaks[False] += [memory.one_bytes for memory in results.memory]
    tiny = results.bodies["tiny"].name
    verdicts = []
    for what, found, most in [
        (f"memory: peak with one upload, any but {tiny}, at most 80 MiB", peaks[False], 80),
        (f"memory: peak with one upload, {tiny}, at most 100 MiB", peaks[True], 100),
    ]:
        peak = max(found, default=0) / _MIB
        verdicts.append(Verdict(what, peak <= most if found else None, f"{peak:.1f} MiB" if found else "not measured"))
    what = "memory: at most 3 MiB per further concurrent upload, relay + disk, default settings"
    if not results.memory:
        return [*verdicts, Verdict(what, None, "not measured")]
    further = statistics.median(memory.per_further_upload for memory in results.memory) / _MIB
    return [*verdicts, Verdict(what, further <= 3, f"{further:.2f} MiB, over {FURTHER_UPLOADS} further ones")]
