"""How far an upload is, on both legs: from the client to us, and from us to each sink. Nothing here is called while its
bytes go by: whoever watches has what the pump and the lanes count anyway put together, some times per second.

1. *Received* is what has come of a part. *Delivered* is what its sink has taken of that: of a destination, what the
   system at its end has acknowledged, so that it is ahead of what was read there by no more than the sockets hold.
   *Committed* is what stays, whatever comes: all of it after the sink's commit, and before that nothing.
2. A sink's state is that of the upload (`receiving`, `delivering`, `committing`) until it is `kept`, `dropped` (a
   best-effort sink was excluded) or `failed`. What failed has nothing.
3. Parts are files. Fields, and file inputs without a file, are not listed.
4. What has ended is remembered without its sinks' objects, and without the bytes of anything (`Standing`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from gateway.intake.body import Intake
from gateway.model import Entry, Upload, text
from gateway.sinks import LATEST
from gateway.upload.lanes import Lane

__all__ = ["FEW_PARTS", "UploadProgress"]

FEW_PARTS = 8
"""Remembered of an upload that nobody has asked for."""
_LIGHT_BYTES = 16 << 10
"""Of so few parts that came in so few bytes the entries themselves are: to describe them costs more than they weigh."""
_MOST_PARTS = 1000
"""Told of one upload; the others are only counted."""
_MOST_NAME_BYTES = 400
_NOBODY: Set[int] = frozenset()
_NOTHING: Mapping[int, int] = {}
_RATE_SECONDS = 1.0
"""Rates are over this, and up to twice as much."""


@dataclass(slots=True)
class PartStanding:
    """One file: how much of it came, and how much its sinks are to have of that (flows may change it)."""

    index: int
    raw_name: bytes
    raw_filename: bytes | None
    received: int
    given: int
    is_whole: bool
    problem: Mapping[str, object] | None


@dataclass(slots=True)
class SinkStanding:
    """One sink: which files go there, and what of them has not arrived."""

    name: str
    files: Sequence[int] | None
    """None: all."""
    forgotten: Set[int]
    alone: Set[int]
    """Files that are kept before its commit."""
    backlog: Mapping[int, int]
    committed: bool
    excluded: str | None


@dataclass(slots=True)
class Standing:
    """How far an upload is."""

    state: str
    received: int
    parts: Sequence[PartStanding]
    more_parts: int
    sinks: Sequence[SinkStanding]


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
    def is_taken(self) -> bool:
        """Whether its id is: it goes on, or something of it is kept."""
        return self._standing is None or any(sink.committed or sink.alone for sink in self._standing.sinks)

    def end(self, problem: Mapping[str, object] | None) -> None:
        """It has ended, well or with this problem. Let go of all but what is told from now on."""
        self.ended_at = time.monotonic()
        self._problem = problem
        intake, entries = self._intake, self._entries
        self._received = 0 if intake is None else intake.received_bytes
        is_light = len(entries) <= FEW_PARTS and self._received <= _LIGHT_BYTES
        state = "kept" if problem is None else "failed"
        parts, more = ([], 0) if is_light else self._parts(_MOST_PARTS if self.is_asked else FEW_PARTS)
        sinks = [_sink_standing(lane, ended=True, keep_files=not more) for lane in self._lanes]
        self._standing = Standing(state, self._received, parts, more, sinks)
        self.part_count = len(entries) if is_light else len(parts)
        self._intake, self._lanes, self._rates = None, (), None
        if not is_light:
            self._entries = ()

    def snapshot(self) -> dict[str, Any]:
        """As it is told."""
        standing = self._stand()
        now = self.ended_at or time.monotonic()
        delivered = {sink.name: _delivered(sink, standing) for sink in standing.sinks}
        return {
            "upload": self.id,
            "route": self._route,
            "state": standing.state,
            "seconds": round(now - self._began, 3),
            "expected": self._expected,
            "received": standing.received,
            "received_per_second": self._rate("", standing.received, now),
            "sinks": [self._told_sink(sink, delivered[sink.name], standing, now) for sink in standing.sinks],
            "parts": [_told_part(part, delivered, standing) for part in standing.parts],
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
        parts, more = self._parts(_MOST_PARTS)
        sinks = [_sink_standing(lane, ended=False, keep_files=True) for lane in self._lanes]
        return Standing(state, 0 if intake is None else intake.received_bytes, parts, more, sinks)

    def _parts(self, most: int) -> tuple[list[PartStanding], int]:
        """(so many, how many more there are)."""
        is_coming = not self.ended_at and self._intake is not None and not self._intake.ended
        last = self._entries[-1] if is_coming and self._entries else None
        parts: list[PartStanding] = []
        more = 0
        for entry in _files(self._entries):
            if len(parts) < most:
                parts.append(_part_standing(entry, is_whole=entry is not last))
            elif self.ended_at and not self.is_asked:
                more = len(self._entries) - most  # about: who counts them all holds up the upload
                break
            else:
                more += 1
        return parts, more

    def _told_sink(
        self, sink: SinkStanding, delivered: Mapping[int, int], standing: Standing, now: float
    ) -> dict[str, Any]:
        arrived = sum(delivered.values())
        told = {
            "sink": sink.name,
            "state": _sink_state(sink, standing.state, is_alone=False),
            "delivered": arrived,
            "committed": sum(size for index, size in delivered.items() if sink.committed or index in sink.alone),
            "delivered_per_second": self._rate(sink.name, arrived, now),
        }
        return told if sink.excluded is None else {**told, "reason": sink.excluded}

    def _rate(self, what: str, count: int, now: float) -> int:
        if self.ended_at:
            return 0
        if self._rates is None:
            self._rates = {}
        return self._rates.setdefault(what, _Rate(self._began)).of(count, now)


def _files(entries: Sequence[Entry]) -> Iterator[Entry]:
    """An empty file input is none, unless bytes follow."""
    return (entry for entry in entries if entry.part.is_file and (entry.size or entry.part.raw_filename != b""))


def _part_standing(entry: Entry, *, is_whole: bool) -> PartStanding:
    part = entry.part
    filename = part.raw_filename
    return PartStanding(
        part.index,
        part.raw_name[:_MOST_NAME_BYTES],
        None if filename is None else filename[:_MOST_NAME_BYTES],
        entry.size,
        entry.size if entry.output is None else entry.output.size,
        is_whole,
        entry.problem,
    )


def _shown(raw: bytes) -> str:
    """One that was cut may have been cut within a character."""
    return raw.decode(errors="ignore") if len(raw) == _MOST_NAME_BYTES else text(raw)


def _sink_standing(lane: Lane, *, ended: bool, keep_files: bool) -> SinkStanding:
    alone = lane.kept_alone() if keep_files else ()
    return SinkStanding(
        lane.name,
        None if lane.takes_wire or not keep_files else lane.files,
        lane.forgotten if keep_files else _NOBODY,
        frozenset(receipt.part for receipt in alone) if alone else _NOBODY,
        _NOTHING if ended else lane.backlog(),
        lane.committed,
        lane.excluded,
    )


def _sink_state(sink: SinkStanding, state: str, *, is_alone: bool) -> str:
    if sink.excluded is not None:
        return "dropped"
    if sink.committed or is_alone:
        return "kept"
    return "failed" if state in ("kept", "failed") else state


def _delivered(sink: SinkStanding, standing: Standing) -> dict[int, int]:
    """File -> bytes of it that have arrived, of those that are told. What is LATEST is missing at the end."""
    is_lost = sink.excluded is not None or (standing.state in ("kept", "failed") and not sink.committed)
    late = sink.backlog.get(LATEST, 0)
    delivered: dict[int, int] = {}
    files = None if sink.files is None else frozenset(sink.files)
    for part in reversed(standing.parts):
        if files is not None and part.index not in files:
            continue
        if part.index in sink.forgotten or (is_lost and part.index not in sink.alone):
            delivered[part.index] = 0
            continue
        arrived = max(0, part.given - sink.backlog.get(part.index, 0))
        missing = min(late, arrived)
        late -= missing
        delivered[part.index] = arrived - missing
    return delivered


def _told_part(part: PartStanding, delivered: Mapping[str, Mapping[int, int]], standing: Standing) -> dict[str, Any]:
    sinks = []
    for sink in standing.sinks:
        if part.index not in delivered[sink.name]:
            continue
        arrived, is_alone = delivered[sink.name][part.index], part.index in sink.alone
        is_failed = part.problem is not None or part.index in sink.forgotten
        told = {
            "sink": sink.name,
            "state": "failed" if is_failed else _sink_state(sink, standing.state, is_alone=is_alone),
            "delivered": arrived,
            "committed": arrived if sink.committed or is_alone else 0,
        }
        sinks.append(told if sink.excluded is None else {**told, "reason": sink.excluded})
    told_part: dict[str, Any] = {
        "index": part.index,
        "name": _shown(part.raw_name),
        "filename": None if part.raw_filename is None else _shown(part.raw_filename),
        "received": part.received,
        "size": part.received if part.is_whole else None,
        "sinks": sinks,
    }
    return told_part if part.problem is None else {**told_part, "problem": part.problem}
