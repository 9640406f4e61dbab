"""What waits for a best-effort sink, in the order of the wire, and within a limit.

Small parts wait many to a batch, files in pipes of their own. Where flows will deliver a part later, its place is kept,
and what comes after it waits. A part that is forgotten before its turn came leaves the backlog; later, it is an item
of its own that says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.concurrency.pipe import Pipe, Progress, Window
from gateway.model import Part
from gateway.upload.lanes import Batch, names_bytes

__all__ = ["PART_BYTES", "Backlog", "Item"]

PART_BYTES = 1024
"""What a part that waits costs beside its bytes."""
_BATCH_BYTES = 1 << 20
"""Handed over in one go at most, so that several may be under way, and what was taken is let go soon."""


@dataclass(slots=True, eq=False)
class Item:
    """A batch of small parts, one part, the place of one, or the word that one is to be forgotten."""

    part: Part | None = None
    """None of a batch."""
    pipe: Pipe | None = None
    parts: Batch = field(default_factory=list)
    """Those that lie whole in memory."""
    size: int = 0
    """What it holds beside what is in the pipe."""
    names_bytes: int = 0
    """Of the parts, which others hold: a relay will write them."""
    is_place: bool = False
    """A place that nobody has taken yet."""
    is_forgetting: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether there are no bytes for the sink, nor will be."""
        return not self.parts and self.pipe is None

    def indices(self) -> list[int]:
        """Of the parts that are in it."""
        return [part.index for part, _ in self.parts] if self.part is None else [self.part.index]

    def waiting(self) -> dict[int, int]:
        """Part -> bytes of it that are in it."""
        if self.part is not None and self.pipe is not None:
            return {self.part.index: self.pipe.waiting_bytes}
        return {part.index: len(data) for part, data in self.parts}

    def each(self) -> list[Item]:
        """The parts of a batch, one by one."""
        return [Item(part, parts=[(part, data)], size=len(data) + PART_BYTES) for part, data in self.parts]


class Backlog:
    """`forgotten` are the indices of parts that are not kept, which others add to. `overflow` is called when more than
    `limit` bytes would wait, and has to call `clear`.
    """

    def __init__(self, limit: int, progress: Progress, forgotten: set[int], overflow: Callable[[], None]) -> None:
        self._lag = _Lag(limit, progress, overflow)
        self._forgotten = forgotten
        self._queue: deque[Item] = deque()
        self._places: dict[int, Item] = {}
        self._pipes: set[Pipe] = set()
        self._changed: asyncio.Future[None] | None = None
        self._ended = False
        self._cleared = False

    def waiting(self) -> dict[int, int]:
        """Part -> bytes of it that wait."""
        waiting: dict[int, int] = {}
        for item in self._queue:
            waiting |= item.waiting()
        return waiting

    @property
    def waiting_bytes(self) -> int:
        """What counts towards the limit."""
        return 0 if self._cleared else self._lag.used

    # -- whoever puts something in; nothing of it waits

    def add(self, part: Part, data: bytes) -> None:
        """A small part that lies whole in memory."""
        if not self._held(len(data)):
            return
        batch = self._queue[-1] if self._queue else None
        if batch is None or batch.part is not None or batch.size + batch.names_bytes >= _BATCH_BYTES:
            batch = Item()
            self._queue.append(batch)
        batch.parts.append((part, data))
        batch.size += len(data) + PART_BYTES
        batch.names_bytes += names_bytes(part)
        self._wake()

    def open(self, part: Part) -> Pipe:
        """A pipe for a file, in the place that was kept for it, if one was."""
        pipe = Pipe(self._lag)
        if not self._held(0):
            pipe.close()
            return pipe
        self._pipes.add(pipe)
        item = self._places.pop(part.index, None)
        if item is None:
            item = Item()
            self._queue.append(item)
        item.part, item.pipe, item.size, item.is_place = part, pipe, PART_BYTES, False
        self._wake()
        return pipe

    def keep_place(self, part: Part) -> None:
        """What comes after it waits, until the part is opened or its place is given up."""
        self._places[part.index] = item = Item(part, is_place=True)
        self._queue.append(item)

    def give_up_place(self, part: Part) -> None:
        """Nothing will come of it, or something did."""
        item = self._places.pop(part.index, None)
        if item is not None:
            item.is_place = False
            self._wake()

    def forget(self, part: Part) -> None:
        """The sink is told before anything else."""
        self._queue.appendleft(Item(part, is_forgetting=True))
        self._wake()

    def end(self) -> None:
        """No more parts will come."""
        self._ended = True
        self._wake()

    def clear(self) -> None:
        """Let go of what waits, for good; what still comes passes by."""
        self._cleared = True
        self._queue.clear()
        for pipe in self._pipes:
            pipe.abandon()  # if it only were empty, and finished, its part would look whole
        self._pipes.clear()

    def _held(self, size: int) -> bool:
        if not self._cleared:
            self._lag.hold(size, PART_BYTES)
        return not self._cleared

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- whoever takes it out

    async def next(self) -> Item | None:
        """Wait for what comes next; None at the end."""
        while True:
            while self._queue and not self._queue[0].is_place:
                item = self._queue.popleft()
                self.leave_out_forgotten(item)
                if item.is_forgetting or not item.is_nothing:
                    return item
            if self._ended and not self._queue:
                return None
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def leave_out_forgotten(self, item: Item) -> None:
        """Take out of an item what was forgotten before it was begun."""
        if not self._forgotten:
            return
        if item.pipe is not None and item.part is not None and item.part.index in self._forgotten:
            self._pipes.discard(item.pipe)
            item.pipe.close()
            item.pipe = None
            self._lag.release_parts(item.size)
        elif item.parts:
            before = item.size
            item.parts = [one for one in item.parts if one[0].index not in self._forgotten]
            item.size = sum(len(data) + PART_BYTES for _, data in item.parts)
            self._lag.release_parts(before - item.size)

    def done(self, item: Item) -> None:
        """The sink has it, or failed on it."""
        if item.pipe is not None:
            self._pipes.discard(item.pipe)
            item.pipe.close()
        self._lag.release_parts(item.size)


class _Lag(Window):
    """Never full, but at some size it overflows."""

    __slots__ = ("_overflow",)

    def __init__(self, limit: int, progress: Progress, overflow: Callable[[], None]) -> None:
        super().__init__(limit, progress)
        self._overflow = overflow

    async def reserve(self, size: int) -> None:
        self.hold(size, 0)

    def hold(self, size: int, more: int) -> None:
        """Bytes, and what they cost beside themselves."""
        if self.used + size + more > self.limit:
            self._overflow()
        self.used += size + more
        self.progress.give(size)

    def release_parts(self, size: int) -> None:
        """What was held does not wait any more."""
        self.used -= size
