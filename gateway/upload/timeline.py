"""When an upload did what: a few readings of the clock, however large it is, for who wants to know where the time went.

Times are those of `time.monotonic`; 0 is never. Nothing here is called while bytes go by. What is written down names
sinks, and nothing that a client or a destination wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

__all__ = ["SinkTimes", "Timeline"]

SinkOutcome = Literal["kept", "dropped", "failed", "undone"]


@dataclass(slots=True)
class SinkTimes:
    """Of one sink: from when it is opened to the end of its commit, or to when it is given up."""

    sink: str
    opened: float
    commit_began: float = 0.0
    """Where this is 0 when the upload has ended, the sink was not asked to commit."""
    commit_ended: float = 0.0
    """Where this is 0 although it began, the commit did not succeed."""
    given_up: float = 0.0
    """Of a best-effort sink: when it was excluded."""
    given_bytes: int = 0
    """What went to it; filled in when the upload ends."""
    outcome: SinkOutcome | None = None
    """None while the upload goes on. `undone` is what others, or the client, have failed."""

    def begin_commit(self) -> None:
        """It is asked to commit."""
        self.commit_began = monotonic()

    def end_commit(self) -> None:
        """It has committed."""
        self.commit_ended = monotonic()

    def give_up(self) -> None:
        """It is left out from here on."""
        self.given_up = monotonic()

    def ended(self, otherwise: float) -> float:
        """When its part in the upload was over; `otherwise` where it went on to the end of that."""
        return self.commit_ended or self.given_up or otherwise


@dataclass(slots=True)
class Timeline:
    """Of one upload."""

    began: float = field(default_factory=monotonic)
    """When it was let in."""
    arrived: float = 0.0
    """When the last byte of its body was taken."""
    ended: float = 0.0
    outcome: str = ""
    """What it came to, in one word, when it has ended."""
    received_bytes: int = 0
    """Of its body, when it has ended."""
    answered: str = ""
    """The sink whose destination answers the client."""
    sinks: list[SinkTimes] = field(default_factory=list)
    """In the order in which they were opened."""

    def opening(self, sink: str) -> SinkTimes:
        """A sink is about to be opened."""
        times = SinkTimes(sink, monotonic())
        self.sinks.append(times)
        return times

    def arrive(self) -> None:
        """The body was taken to its end."""
        self.arrived = monotonic()

    def end(
        self,
        outcome: str,
        *,
        received_bytes: int,
        given: Iterable[tuple[str, int]],
        failed: str | None,
        dropped: Mapping[str, str],
    ) -> None:
        """The upload has ended: `failed` is the sink that is to blame, `dropped` are those that were excluded; `given`
        is how many bytes went to each.
        """
        self.ended = monotonic()
        self.outcome, self.received_bytes = outcome, received_bytes
        sizes = dict(given)
        for times in self.sinks:
            times.given_bytes = sizes.get(times.sink, 0)
            if times.sink in dropped:
                times.outcome = "dropped"
            elif times.commit_ended:
                times.outcome = "kept"
            else:
                times.outcome = "failed" if times.sink == failed else "undone"
