"""What nothing counts when it happens: how late the event loop is, what the process takes, what is in progress.

It is looked at each second, so that another process that is asked for metrics tells of this one, too: see metrics.py.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import aiohttp
from prometheus_client import Counter, Gauge, Histogram

from gateway import __version__
from gateway.intake.admission import Gate
from gateway.server.metrics import Metrics

__all__ = ["looking"]

_TICK_SECONDS = 0.25
"""A loop that is held up for longer is seen to be."""
_TICKS_PER_LOOK = 4
_LOOKS_PER_COUNT = 5
"""To count descriptors costs a millisecond for some thousands."""
_LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_DESCRIPTORS, _MEMORY = Path("/proc/self/fd"), Path("/proc/self/statm")
_PAGE_BYTES = resource.getpagesize()


@contextmanager
def looking(metrics: Metrics, gate: Gate, worker: int) -> Iterator[None]:
    """Look until it is left, and then once more: what was counted stays. `worker` is the number of this process."""
    measures = _Measures(metrics, gate, worker)
    metrics.look_also(measures.look)
    measures.start()
    try:
        yield
    finally:
        measures.stop()
        metrics.look()


class _Measures:
    """Of this process."""

    def __init__(self, metrics: Metrics, gate: Gate, worker: int) -> None:
        self._metrics = metrics
        self._gate = gate
        gauge = partial(Gauge, registry=metrics.registry, multiprocess_mode="livesum")
        each, number = ["worker"], str(worker)
        self._reads = gauge("gateway_reads_in_flight", "Reads and downloads in progress")
        self._lag = Histogram(
            "gateway_event_loop_lag_seconds",
            "How late the event loop was, looked at four times a second",
            buckets=_LAGS,
            registry=metrics.registry,
        )
        self._memory = gauge("gateway_process_resident_memory_bytes", "Memory of a worker", each).labels(number)
        self._open = gauge("gateway_process_open_fds", "Descriptors that a worker has open", each).labels(number)
        self._most = gauge("gateway_process_max_fds", "Descriptors that a worker may have open", each).labels(number)
        self._cpu = Counter(
            "gateway_process_cpu_seconds",
            "Processor time of a worker, and of those before it with its number",
            each,
            registry=metrics.registry,
        ).labels(number)
        started = gauge("gateway_process_start_time_seconds", "When a worker started, since the epoch", each)
        started.labels(number).set(time.time())
        build = Gauge(
            "gateway_build_info",
            "1; its labels say what runs",
            ["version", "python", "aiohttp"],
            registry=metrics.registry,
            multiprocess_mode="livemax",
        )
        build.labels(__version__, platform.python_version(), aiohttp.__version__).set(1)
        self._cpu_seconds = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._ticks = 0

    def start(self) -> None:
        """Look from now on."""
        self._count()
        self._wait()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._due = self._loop.time() + _TICK_SECONDS
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        """See how late the loop is, and look at the rest less often."""
        self._lag.observe(max(0.0, self._loop.time() - self._due))
        self._wait()
        self._ticks += 1
        if self._ticks % _TICKS_PER_LOOK == 0:
            self._metrics.look()
        if self._ticks % (_TICKS_PER_LOOK * _LOOKS_PER_COUNT) == 0:
            self._count()

    def look(self) -> None:
        """What costs next to nothing."""
        self._reads.set(self._gate.reads.in_flight)
        times = os.times()
        now = times.user + times.system
        self._cpu.inc(now - self._cpu_seconds)
        self._cpu_seconds = now

    def _count(self) -> None:
        """What the system is asked for. Elsewhere than on Linux it does not say, and 0 is shown."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most.set(soft)
        try:
            self._open.set(len(os.listdir(_DESCRIPTORS)) - 1)  # but for that of the listing
            self._memory.set(int(_MEMORY.read_bytes().split()[1]) * _PAGE_BYTES)
        except OSError:
            pass
