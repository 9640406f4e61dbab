"""Who is measured when: jobs, bodies and peers in turn, round after round."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from dataclasses import dataclass

from tests.bench.client import Failure
from tests.bench.jobs import JOBS, WORKERS_CLIENTS, Bench, Job, Sample
from tests.bench.peers import Peer
from tests.bench.targets import Key, Results

__all__ = ["Plan", "Rounds"]

_SLOW_SECONDS = 6
"""Who takes longer than that for one measurement is left out of every second round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`jobs` are names of jobs, and "workers" and "memory"; nothing new is begun `minutes` after the start."""

    jobs: Collection[str]
    bodies: Collection[str]
    peers: list[Peer]
    rounds: int
    minutes: float


class Rounds:
    def __init__(self, bench: Bench, results: Results, plan: Plan) -> None:
        self._bench = bench
        self._results = results
        self._plan = plan
        self._began = time.monotonic()

    @property
    def _late(self) -> bool:
        return time.monotonic() - self._began > 60 * self._plan.minutes

    def run(self, missing: dict[str, str]) -> None:
        """Fills in the results. `missing` says why peers cannot be started."""
        for number in range(self._plan.rounds):
            if self._late:
                _progress(f"round {number + 1} is left out: {self._plan.minutes:g} minutes are over\n")
                break
            self._round(number, missing)
            _progress(f"round {number + 1} of {self._plan.rounds}: {time.monotonic() - self._began:.0f} s so far\n")

    def _round(self, number: int, missing: dict[str, str]) -> None:
        for job in JOBS.values():
            if job.name not in self._plan.jobs:
                continue
            for body in job.bodies:
                if body not in self._plan.bodies:
                    continue
                for peer in self._plan.peers:
                    if not self._late:
                        self._one(number, job, body, peer, missing)
        if "memory" in self._plan.jobs and not self._late:
            _progress("memory")
            try:
                self._results.memory.append(self._bench.memory(self._results.bodies["memory"]))
            except Failure as failure:
                self._results.failures.append(f"memory: {failure}")
        if "workers" in self._plan.jobs and not self._late:
            self._workers(self._results.workers, "relay", "large", clients=WORKERS_CLIENTS)
            self._workers(self._results.small_workers, "disk", "small")

    def _one(self, number: int, job: Job, body: str, peer: Peer, missing: dict[str, str]) -> None:
        key: Key = (job.name, body, peer.name)
        shape = self._results.bodies[body].shape
        if job.path not in peer.jobs or (peer.name == "create" and (job.fsync or body not in ("medium", "tiny"))):
            return
        if note := missing.get(peer.name) or peer.refuses(shape):
            self._results.notes[key] = note
            return
        if key in self._results.notes or (number % 2 and self._is_slow(key)):
            return
        _progress(f"{job.name}: {shape.name}: {peer.title}")
        try:
            sample = self._bench.measure(job, self._results.bodies[body], peer, thorough=number == 0)
        except (Failure, OSError) as failure:
            self._results.notes[key] = f"failed: {failure}"
            self._results.failures.append(f"{job.name}, {shape.name}, {peer.name}: {failure}")
            return
        self._results.samples.setdefault(key, []).append(sample)

    def _is_slow(self, key: Key) -> bool:
        return any(sample.seconds > _SLOW_SECONDS for sample in self._results.samples.get(key, []))

    def _workers(self, found: dict[int, list[Sample]], job: str, body: str, *, clients: int = 1) -> None:
        gateway = next((peer for peer in self._plan.peers if peer.name == "gateway"), None)
        if gateway is None or self._results.workers_note:
            return
        for workers in (1, 2):
            _progress(f"{workers} of two workers")
            try:
                sample = self._bench.measure(
                    JOBS[job],
                    self._results.bodies[body],
                    gateway,
                    thorough=False,
                    workers=workers,
                    clients=clients,
                )
            except Failure as failure:
                if workers == 1:
                    self._results.failures.append(f"workers: {failure}")
                self._results.workers_note = f"with {workers} of them: {failure}"
                return
            found.setdefault(workers, []).append(sample)


def _progress(text: str) -> None:
    """On a terminal in one line, which is overwritten; elsewhere only what ends a line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text.endswith("\n"):
        print(text, end="", file=sys.stderr, flush=True)
