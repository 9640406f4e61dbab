"""What is printed, and what is written into var/bench: results.json, and results.png where matplotlib is there."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.bodies import SMALL
from tests.bench.jobs import JOBS
from tests.bench.peers import PEERS
from tests.bench.targets import (
    Results,
    Verdict,
    per_cpu_second,
    rate,
    requests_per_cpu_second,
    requests_per_second,
)

__all__ = ["file_system", "machine", "print_table", "print_targets", "write_json", "write_plot"]

_TITLES = {peer.name: peer.title for peer in PEERS}
_WORDS = {True: "met", False: "NOT MET", None: "n/a"}


def machine() -> dict[str, Any]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), ""
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def file_system(path: Path) -> str:
    """The type of the file system that a path is on, as Linux tells it."""
    mounts = [line.split() for line in _lines(Path("/proc/mounts"))]
    under = [(len(fields[1]), fields[2]) for fields in mounts if path.resolve().is_relative_to(fields[1])]
    return max(under, default=(0, "an unknown file system"))[1]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _rows(results: Results) -> Iterator[tuple[str, str]]:
    found = {(job, body) for job, body, _ in [*results.samples, *results.notes]}
    return ((job.name, body) for job in JOBS.values() for body in job.bodies if (job.name, body) in found)


def print_table(results: Results) -> None:
    """Medians; beside the MB/s the least and the most of them."""
    for job, body in _rows(results):
        small = body in SMALL
        print(f"\n{job}: {results.bodies[body].name}")
        first = ["uploads/s", "(least-most)", "/CPU-s"] if small else ["MB/s", "(least-most)", "MB/CPU-s"]
        columns = [*first, "peak MiB", *(["p50 ms", "p99 ms"] if small else []), "runs"]
        widths = [11, 15, *(10 for _ in columns[2:])]
        print(f"  {'':34}" + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
        for peer in PEERS:
            key = (job, body, peer.name)
            if key in results.samples:
                cells = _cells(results, key, small=small)
                line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                print(f"  {peer.title:34}{line}")
            elif key in results.notes:
                print(f"  {peer.title:34}  {results.notes[key]}")


def _cells(results: Results, key: tuple[str, str, str], *, small: bool) -> list[str]:
    samples = results.samples[key]
    value = requests_per_second if small else rate
    rates = [value(sample) for sample in samples]
    # what creates files without receiving a body has nothing to be measured by CPU time
    cells = [_figure(results.median(key, value)), f"({min(rates):.0f}-{max(rates):.0f})"]
    cells += [_figure(results.median(key, requests_per_cpu_second if small else per_cpu_second))]
    cells += [_figure(max(sample.peak_rss_bytes for sample in samples) / 2**20)]
    if small:
        for percentile in ("p50_seconds", "p99_seconds"):
            median = results.median(key, lambda sample, name=percentile: getattr(sample, name))  # type: ignore[misc]
            cells.append("-" if median is None else f"{median * 1e3:.1f}")
    return [*cells, str(len(samples))]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def print_targets(verdicts: list[Verdict]) -> None:
    print("\nTargets")
    for verdict in verdicts:
        print(f"  {_WORDS[verdict.met]:8} {verdict.what}: {verdict.figures}")
    counts = {word: sum(verdict.met is met for verdict in verdicts) for met, word in _WORDS.items()}
    print("  " + ", ".join(f"{count} {word}" for word, count in counts.items()))


def write_json(path: Path, results: Results, verdicts: list[Verdict], about: dict[str, Any]) -> None:
    rows = [
        {
            "job": job,
            "body": results.bodies[body].name,
            "peer": peer,
            "mb_per_second": results.median((job, body, peer), rate),
            "mb_per_cpu_second": results.median((job, body, peer), per_cpu_second),
            "uploads_per_second": results.median((job, body, peer), requests_per_second),
            "uploads_per_cpu_second": results.median((job, body, peer), requests_per_cpu_second),
            "peak_rss_bytes": max(sample.peak_rss_bytes for sample in samples),
            "samples": [asdict(sample) for sample in samples],
        }
        for (job, body, peer), samples in results.samples.items()
    ]
    notes = [
        {"job": job, "body": results.bodies[body].name, "peer": peer, "note": note}
        for (job, body, peer), note in results.notes.items()
    ]
    content = {
        "about": about,
        "rows": rows,
        "notes": notes,
        "small_workers": {
            str(n): [asdict(sample) for sample in samples] for n, samples in results.small_workers.items()
        },
        "workers": {str(n): [asdict(sample) for sample in samples] for n, samples in results.workers.items()},
        "memory": [asdict(memory) for memory in results.memory],
        "targets": [asdict(verdict) for verdict in verdicts],
        "failures": results.failures,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_plot(path: Path, results: Results) -> str | None:
    """What it could not do."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot without matplotlib"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(job, body) for job, body in _rows(results) if body not in SMALL]
    if not rows:
        return "no plot: nothing was measured that would be in it"
    columns = 3
    figure, axes = pyplot.subplots(-(-len(rows) // columns), columns, squeeze=False, layout="constrained")
    figure.set_size_inches(5 * columns, 2.6 * len(axes))
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, (job, body) in zip(axes.flat, rows, strict=False):
        medians = [(peer.name, results.median((job, body, peer.name), rate)) for peer in reversed(PEERS)]
        bars = [(name, median) for name, median in medians if median is not None]
        drawn = axis.barh(
            [_TITLES[name] for name, _ in bars],
            [median for _, median in bars],
            color=["tab:blue" if name == "gateway" else "lightgray" for name, _ in bars],
        )
        axis.bar_label(drawn, fmt="%.0f", padding=2, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(f"{job}, {results.bodies[body].name}, MB/s", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return None
