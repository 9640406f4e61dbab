"""One sink's share of one upload, as seen from where the parts come from.

A lane takes parts one of two ways. The *long way*: a pipe and a task per part. The *short way*, for small
parts that lie whole in memory. How a sink gets them that the upload depends on: required_lane.py; one that it does
not depend on: besteffort.py.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from gateway.concurrency.pipe import Pipe, Progress
from gateway.model import Limits, Part, Receipt
from gateway.sinks import Delivery, Stage
from gateway.upload.timeline import SinkTimes

__all__ = ["BULK_BYTES", "Accepting", "Batch", "Lane", "PartPermits", "memory_shares", "names_bytes"]


BULK_BYTES = 256 << 10
"""The largest part for the short way: about what a buffer holds, so that a batch is no more than one."""


def memory_shares(limits: Limits, received: int, *, required_sinks: int, lag_bytes: int) -> dict[str, int]:
    """What waits for the sinks of one upload at most, in bytes, by what; `received` is what may come at a time.

    A required sink has a window for each open part, one for the small parts that it takes, and one for those that
    gather meanwhile. Best-effort sinks wait within `lag_bytes`, all together. A field that comes in pieces is held, and
    joined; what gathers and what is being taken may each be larger than a window by one.
    """
    window = max(limits.window_bytes, received)
    return {
        "windows towards sinks": required_sinks * (limits.parallel_parts + 2) * window,
        "waiting for best-effort sinks": lag_bytes,
        "the beginning of a file that is held": BULK_BYTES + received,
        "the fields at hand": 4 * min(filter(None, (limits.max_field_bytes, limits.max_fields_bytes)), default=0),
    }


def names_bytes(part: Part) -> int:
    """What a relay writes ahead of a part, about: of small parts that may be nearly all there is."""
    return len(part.raw_name) + len(part.raw_filename or b"") + len(part.content_type or b"")


class PartPermits:
    """`parallel_parts`: how many parts (or batches of small ones) may be open at once. One per part, not per sink.

    For one taker, the pump.
    """

    def __init__(self, count: int) -> None:
        self._free = count or 1 << 30
        self._given_back: asyncio.Future[None] | None = None

    async def take(self) -> None:
        """Wait until one is free, and take it."""
        while not self._free:
            self._given_back = asyncio.get_running_loop().create_future()
            await self._given_back
        self._free -= 1

    def give_back_after(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """It is free again when all of these have ended."""
        left = len(tasks)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.give_back()

        if not tasks:
            self.give_back()
        for task in tasks:
            task.add_done_callback(ended)

    def give_back(self) -> None:
        """It is free again."""
        self._free += 1
        if self._given_back is not None and not self._given_back.done():
            self._given_back.set_result(None)


Batch = list[tuple[Part, bytes]]
"""Small parts that lie whole in memory, in the order of the wire."""

Accepting = Callable[[], Coroutine[Any, Any, None]]
"""The other end of a pipe, to be called in a task: it returns when the sink has the part safely."""


class Lane(ABC):
    """One sink's share of one upload, as the pump sees it: where the parts for it are put."""

    takes_batches = True
    """Whether its small files go the short way."""
    takes_wire = False
    """Whether it gets the body in place of parts, so that all files of it go there."""
    hashing: Delivery | None = None
    """Who hashes what it writes, if the sink can."""

    def __init__(self, name: str, stage: Stage, times: SinkTimes | None = None) -> None:
        self.name = name
        self.stage = stage
        self.is_relay = stage is Stage.RELAY
        self.keeps_order = self.is_relay
        """Whether parts wait for their turn."""
        self.progress = Progress()
        self.files: list[int] = []
        """The files that it was to get, by index."""
        self.forgotten: set[int] = set()
        """Parts that are not kept, by index."""
        self.committing = self.committed = False
        """Whether its commit has begun, and has succeeded."""
        self.times = times or SinkTimes(name, 0.0)
        self.excluded: str | None = None
        """Why it is left out, if it is best-effort: `lag`, `failed` or `late`."""

    @abstractmethod
    def add(self, part: Part, data: bytes) -> None:
        """The short way: a small part that lies whole in memory, or a field."""

    @abstractmethod
    async def hand_over(self, tasks: asyncio.TaskGroup, permits: PartPermits, *, at_once: bool = False) -> None:
        """What was added goes to the sink: when it has taken what it was given before, or `at_once`."""

    @abstractmethod
    def open(self, part: Part) -> tuple[Pipe, Accepting | None]:
        """The long way: a pipe for a file, and what has to run at its other end; None: that is seen to."""

    @abstractmethod
    def keep_turn(self, part: Part) -> tuple[asyncio.Future[None] | None, asyncio.Future[None]]:
        """(whom to wait for, what to set when done): the place of a part that flows will deliver later."""

    @abstractmethod
    async def wait_for_turn(self) -> None:
        """Nobody who came earlier is still at work on what this lane is to get first."""

    @abstractmethod
    async def forget(self, part: Part) -> None:
        """The part is not kept, whatever is committed; of required sinks none of its accepts runs any more."""

    @abstractmethod
    def backlog(self) -> dict[int, int]:
        """Part (or LATEST) -> bytes that were put here for it and have not arrived, for whoever watches."""

    @property
    @abstractmethod
    def waiting_bytes(self) -> int:
        """What lies here until the sink takes it."""

    def kept_alone(self) -> Sequence[Receipt]:
        """Of the parts that are kept, whatever becomes of the rest, before the commit."""
        return ()

    def completed(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """A receipt of this sink for each of its files that is kept, a plain one where it gave none."""
        files = [index for index in self.files if index not in self.forgotten] if self.forgotten else self.files
        if not receipts:  # made only now: there may be a hundred thousand of them
            return [Receipt(index, self.name) for index in files]
        if [receipt.part for receipt in receipts] == files:
            return list(receipts)
        given = {receipt.part: receipt for receipt in receipts}
        return [given.get(index) or Receipt(index, self.name) for index in files]
