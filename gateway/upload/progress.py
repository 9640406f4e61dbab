"""How far an upload is, on both legs: from the client to us, and from us to each sink. Nothing here is called while its
bytes go by: whoever watches has what the pump and the lanes count anyway put together, some times per second.

1. *Received* is what has come of a part. *Delivered* is what its sink has taken of that: of a destination, what the
   system at its end has acknowledged, so that it is ahead of what was read there by no more than the sockets hold.
   *Committed* is what stays, whatever comes: all of it after the sink's commit, and before that nothing.
2. A sink's state is that of the upload (`receiving`, `delivering`, `committing`) until it is `kept`, `dropped` (a
   best-effort sink was excluded) or `failed`. What failed has nothing.
3. Parts are files. Fields, and file inputs without a file, are not listed.
4. What has ended is remembered without its sinks' objects, and without the bytes of anything (`Standing`).
5. What is told of parts is `TOLD_BYTES` at most: files beyond that, or beyond `_MOST_PARTS`, are counted only. A sink's
   sums are of all its files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from gateway.intake.body import Intake
from gateway.model import Entry, Upload
from gateway.upload.lanes import Lane
from gateway.upload.standing import (
    TOLD_BYTES,
    TOLD_SINK_BYTES,
    PartStanding,
    SinkStanding,
    Standing,
    delivered_of,
    files_of,
    part_standing,
    sink_standing,
    sink_state,
    told_bytes,
    told_part,
    untold,
)

__all__ = ["FEW_PARTS", "UploadProgress"]

FEW_PARTS = 8
"""Remembered of an upload that nobody has asked for."""
_LIGHT_BYTES = 16 << 10
"""Of so few parts that came in so few bytes the entries themselves are: to describe them costs more than they weigh."""
_MOST_PARTS = 1000
"""Told of one upload; the others are only counted."""
_MOST_KEPT = 8
"""Of what an upload that failed has kept all the same: whoever sent it is told all of that."""
_RATE_SECONDS = 1.0
"""Rates are over this, and up to twice as much."""


class _Rate:
    """Bytes per second, of a count that is looked at now and then."""

    def __init__(self, began: float) -> None:
        self._before = self._newer = (began, 0)

    def of(self, count: int, now: float) -> int:
        if now - self._newer[0] >= _RATE_SECONDS:
            self._before, self._newer = self._newer, (now, count)
        seconds = now - self._before[0]
        return max(0, round((count - self._before[1]) / seconds)) if seconds > 0 else 0


class UploadProgress:
    """Of one upload, from its begin on. `is_asked`: whether somebody is known to want it."""

    __slots__ = (
        *("_began", "_entries", "_expected", "_intake", "_lanes", "_problem", "_rates", "_received", "_route"),
        *("_standing", "ended_at", "id", "identity", "is_asked", "part_count"),
    )

    def __init__(self, upload: Upload, intake: Intake, *, is_asked: bool = False) -> None:
        self.id = upload.id
        self.identity = upload.identity
        self.is_asked = is_asked
        self.ended_at = 0.0
        """By the clock `time.monotonic`; 0 while it goes on."""
        self.part_count = 0
        """How many parts are remembered, when it has ended."""
        self._route = upload.route
        self._expected = upload.content_length
        self._began = time.monotonic()
        self._intake: Intake | None = intake
        self._received = 0
        self._entries: Sequence[Entry] = ()
        self._lanes: Sequence[Lane] = ()
        self._standing: Standing | None = None
        self._problem: Mapping[str, object] | None = None
        self._rates: dict[str, _Rate] | None = None

    def follow(self, entries: Sequence[Entry], lanes: Sequence[Lane]) -> None:
        """What grows while the upload goes on."""
        self._entries, self._lanes = entries, lanes

    @property
    def excluded(self) -> dict[str, str]:
        """Best-effort sinks that were excluded, and why."""
        return {lane.name: lane.excluded for lane in self._lanes if lane.excluded is not None}

    @property
    def route(self) -> str:
        """The path of its route."""
        return self._route

    @property
    def received_bytes(self) -> int:
        """What has come of its body."""
        return self._received if self._intake is None else self._intake.received_bytes

    @property
    def first_byte_seconds(self) -> float | None:
        """How long the first byte of the body took, from when the upload was let in; None: none has come."""
        return None if self._intake is None else self._intake.first_byte_seconds

    def at_sinks(self) -> Iterator[tuple[str, int, int]]:
        """(sink, bytes that were given to it, those that wait until it takes them), while it goes on."""
        return ((lane.name, lane.progress.total, lane.waiting_bytes) for lane in self._lanes)

    @property
    def is_taken(self) -> bool:
        """Whether its id is: it goes on, or something of it is kept."""
        return self._standing is None or any(sink.keeps for sink in self._standing.sinks)

    def end(self, problem: Mapping[str, object] | None) -> None:
        """It has ended, well or with this problem. Let go of all but what is told from now on."""
        self.ended_at = time.monotonic()
        self._problem = problem
        if problem is not None and "kept" in problem:
            self._problem = {**problem, "kept": list(cast("Sequence[object]", problem["kept"]))[:_MOST_KEPT]}
        intake, entries = self._intake, self._entries
        self._received = 0 if intake is None else intake.received_bytes
        is_light = len(entries) <= FEW_PARTS and self._received <= _LIGHT_BYTES
        state = "kept" if problem is None else "failed"
        parts, rest = ([], []) if is_light else self._parts(_MOST_PARTS if self.is_asked else FEW_PARTS)
        sinks = [sink_standing(lane, None if is_light else parts, rest, ended=True) for lane in self._lanes]
        self._standing = Standing(state, self._received, parts, len(rest), sinks)
        self.part_count = len(entries) if is_light else len(parts)
        self._intake, self._lanes, self._rates = None, (), None
        if not is_light:
            self._entries = ()

    def snapshot(self) -> dict[str, Any]:
        """As it is told."""
        standing = self._stand()
        now = self.ended_at or time.monotonic()
        delivered = {sink.name: delivered_of(sink, standing) for sink in standing.sinks}
        return {
            "upload": self.id,
            "route": self._route,
            "state": standing.state,
            "seconds": round(now - self._began, 3),
            "expected": self._expected,
            "received": standing.received,
            "received_per_second": self._rate("", standing.received, now),
            "sinks": [self._told_sink(sink, delivered[sink.name], standing, now) for sink in standing.sinks],
            "parts": [told_part(part, delivered, standing) for part in standing.parts],
            "more_parts": standing.more_parts,
            "problem": self._problem,
        }

    def _stand(self) -> Standing:
        standing, intake = self._standing, self._intake
        if standing is not None:
            if self._entries:
                standing.parts, self._entries = self._parts(FEW_PARTS)[0], ()
            return standing
        state = "delivering" if intake is not None and intake.ended else "receiving"
        if any(lane.committing for lane in self._lanes):
            state = "committing"
        parts, rest = self._parts(_MOST_PARTS)
        sinks = [sink_standing(lane, parts, rest, ended=False) for lane in self._lanes]
        return Standing(state, 0 if intake is None else intake.received_bytes, parts, len(rest), sinks)

    def _parts(self, most: int) -> tuple[list[PartStanding], list[tuple[int, int]]]:
        """(so many at most, the files that are not among them, as `untold` has them)."""
        is_coming = not self.ended_at and self._intake is not None and not self._intake.ended
        last = self._entries[-1] if is_coming and self._entries else None
        of_sinks = sum(TOLD_SINK_BYTES + len(lane.name.encode()) for lane in self._lanes)
        parts: list[PartStanding] = []
        files, left = files_of(self._entries), TOLD_BYTES
        for entry in files:
            part = part_standing(entry, is_whole=entry is not last)
            left -= of_sinks + told_bytes(part)
            if len(parts) == most or left < 0:
                return parts, untold(chain([entry], files))
            parts.append(part)
        return parts, []

    def _told_sink(
        self, sink: SinkStanding, delivered: Mapping[int, int], standing: Standing, now: float
    ) -> dict[str, Any]:
        arrived = sum(delivered.values()) + sink.untold
        committed = sum(size for index, size in delivered.items() if sink.committed or index in sink.alone)
        told = {
            "sink": sink.name,
            "state": sink_state(sink, standing.state, is_alone=False),
            "delivered": arrived,
            "committed": committed + sink.untold_committed,
            "delivered_per_second": self._rate(sink.name, arrived, now),
        }
        return told if sink.excluded is None else {**told, "reason": sink.excluded}

    def _rate(self, what: str, count: int, now: float) -> int:
        if self.ended_at:
            return 0
        if self._rates is None:
            self._rates = {}
        return self._rates.setdefault(what, _Rate(self._began)).of(count, now)
