"""How far one upload is at one time: what is known of each file and each sink, and how that is told.

1. A file is told with what has come of it, and what each of its sinks has of that. The sum of a sink is of all its
   files, those that are not told (progress.py) among them.
2. What is LATEST in a sink's backlog is missing at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from gateway.model import Entry, text
from gateway.sinks import LATEST
from gateway.upload.lanes import Lane

__all__ = [
    "TOLD_BYTES",
    "TOLD_SINK_BYTES",
    "PartStanding",
    "SinkStanding",
    "Standing",
    "delivered_of",
    "files_of",
    "part_standing",
    "sink_standing",
    "sink_state",
    "told_bytes",
    "told_part",
    "untold",
]

_MOST_NAME_BYTES = 400
TOLD_BYTES = 512 << 10
"""Of all the parts of one upload, as JSON: who watches, and does not read, holds that much."""
_TOLD_PART_BYTES, TOLD_SINK_BYTES = 160, 140
"""What is told of a part, and of a sink of it, beside names and problems."""
_NOBODY: Set[int] = frozenset()
_NOTHING: Mapping[int, int] = {}


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
    files: Set[int] | None
    """None: all. These and those below are of the files that are told."""
    forgotten: Set[int]
    alone: Set[int]
    """Files that are kept before its commit."""
    backlog: Mapping[int, int]
    late: int
    """How much of the last ones has not arrived."""
    committed: bool
    excluded: str | None
    keeps: bool
    """Whether anything stays there."""
    untold: int
    untold_committed: int
    """Bytes of the files that are not told: those that have arrived, and those that stay."""


@dataclass(slots=True)
class Standing:
    """How far an upload is."""

    state: str
    received: int
    parts: Sequence[PartStanding]
    more_parts: int
    sinks: Sequence[SinkStanding]


def files_of(entries: Sequence[Entry]) -> Iterator[Entry]:
    """An empty file input is none, unless bytes follow."""
    return (entry for entry in entries if entry.part.is_file and (entry.size or entry.part.raw_filename != b""))


def part_standing(entry: Entry, *, is_whole: bool) -> PartStanding:
    part = entry.part
    filename = part.raw_filename
    return PartStanding(
        part.index,
        part.raw_name[:_MOST_NAME_BYTES],
        None if filename is None else filename[:_MOST_NAME_BYTES],
        entry.size,
        _given(entry),
        is_whole,
        entry.problem,
    )


def untold(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """(index, how much of it its sinks are to have) of files of which no more is told."""
    return [(entry.part.index, _given(entry)) for entry in entries]


def _given(entry: Entry) -> int:
    """What its sinks are to have of it."""
    return entry.size if entry.output is None else entry.output.size


def _shown(raw: bytes) -> str:
    """One that was cut may have been cut within a character."""
    return raw.decode(errors="ignore") if len(raw) == _MOST_NAME_BYTES else text(raw)


def told_bytes(part: PartStanding) -> int:
    """How much is told of it at most, beside its sinks."""
    names = [_shown(raw) for raw in (part.raw_name, part.raw_filename) if raw is not None]
    problem = 0 if part.problem is None else len(json.dumps(part.problem))
    return _TOLD_PART_BYTES + problem + sum(len(encode_basestring(name).encode()) for name in names)


def sink_standing(
    lane: Lane, parts: Sequence[PartStanding] | None, rest: Sequence[tuple[int, int]], *, ended: bool
) -> SinkStanding:
    """`parts` are the files that are told, None: all; `rest` are the others, as `untold` has them."""
    alone: Set[int] = frozenset([receipt.part for receipt in lane.kept_alone()]) or _NOBODY
    backlog = _NOTHING if ended else lane.backlog()
    late = backlog.get(LATEST, 0)
    files: Set[int] | None = None if lane.takes_wire else frozenset(lane.files)
    forgotten: Set[int] = lane.forgotten
    keeps = lane.committed or bool(alone)
    untold_bytes = untold_alone = 0
    if rest:
        is_lost = lane.excluded is not None or (ended and not lane.committed)
        theirs = rest if files is None else [one for one in rest if one[0] in files]
        if not (forgotten or alone or backlog or is_lost):  # as mostly, and there may be a hundred thousand
            untold_bytes = sum([given for _, given in theirs])
        else:
            untold_bytes, untold_alone = _arrived(theirs, forgotten, alone, backlog, is_lost=is_lost)
        untold_bytes, late = max(0, untold_bytes - late), max(0, late - untold_bytes)
    if ended and parts is not None:
        told = frozenset(part.index for part in parts)
        files, forgotten, alone = (None if files is None else files & told), forgotten & told, alone & told
    untold_committed = untold_bytes if lane.committed else untold_alone
    return SinkStanding(
        lane.name,
        files,
        forgotten,
        alone,
        backlog,
        late,
        lane.committed,
        lane.excluded,
        keeps,
        untold_bytes,
        untold_committed,
    )


def _arrived(
    rest: Sequence[tuple[int, int]],
    forgotten: Set[int],
    alone: Set[int],
    backlog: Mapping[int, int],
    *,
    is_lost: bool,
) -> tuple[int, int]:
    """(bytes of these files that have arrived, how many of them stay by themselves)."""
    all_of_them = kept_alone = 0
    for index, given in rest:
        if index not in forgotten and (not is_lost or index in alone):
            arrived = max(0, given - backlog.get(index, 0))
            all_of_them += arrived
            kept_alone += arrived if index in alone else 0
    return all_of_them, kept_alone


def sink_state(sink: SinkStanding, state: str, *, is_alone: bool) -> str:
    if sink.excluded is not None:
        return "dropped"
    if sink.committed or is_alone:
        return "kept"
    return "failed" if state in ("kept", "failed") else state


def delivered_of(sink: SinkStanding, standing: Standing) -> dict[int, int]:
    """File -> bytes of it that have arrived, of those that are told. What is LATEST is missing at the end."""
    is_lost = sink.excluded is not None or (standing.state in ("kept", "failed") and not sink.committed)
    late = sink.late
    delivered: dict[int, int] = {}
    for part in reversed(standing.parts):
        if sink.files is not None and part.index not in sink.files:
            continue
        if part.index in sink.forgotten or (is_lost and part.index not in sink.alone):
            delivered[part.index] = 0
            continue
        arrived = max(0, part.given - sink.backlog.get(part.index, 0))
        missing = min(late, arrived)
        late -= missing
        delivered[part.index] = arrived - missing
    return delivered


def told_part(part: PartStanding, delivered: Mapping[str, Mapping[int, int]], standing: Standing) -> dict[str, Any]:
    sinks = []
    for sink in standing.sinks:
        if part.index not in delivered[sink.name]:
            continue
        arrived, is_alone = delivered[sink.name][part.index], part.index in sink.alone
        is_failed = part.problem is not None or part.index in sink.forgotten
        told = {
            "sink": sink.name,
            "state": "failed" if is_failed else sink_state(sink, standing.state, is_alone=is_alone),
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
