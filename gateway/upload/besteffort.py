"""A best-effort sink's share of one upload: it gets what it can take, and harms nobody.

1. *It never slows the upload.* The pump hands over and goes on. What waits here, over all parts, is bounded
   by `lag_bytes`, and every part counts `PART_BYTES` beside its own, or a million empty ones would be
   without bound. More than that, and the sink is dropped: `lag`.
2. *It never fails the upload.* The sink is opened, fed, watched, committed and left in a task of its own
   that raises nothing. Whatever goes wrong there drops the sink: `failed`.
3. *It is last.* Only when every required sink has committed may it commit. From then on it has
   `lag_seconds` to take the rest and to say that it is safe, else it is dropped: `late`.
4. *Dropped* means: what waits is let go, its delivery is left without a commit (a request is broken off),
   at once, and whatever still comes for it passes by. A commit that was under way when the time was over
   may have arrived all the same.
5. The order of the wire is kept for relays as it is for required ones, but waited for here: where flows
   work on a part, what comes after it waits, and counts as what waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace

from gateway.concurrency.pipe import Pipe, Progress, Window
from gateway.concurrency.scope import Scope
from gateway.model import Entry, Part, Receipt, Upload
from gateway.sinks import Delivery, Sink, Stage
from gateway.upload.failures import translated
from gateway.upload.lanes import Lane, Slots, completed
from gateway.upload.routes import BestEffort

__all__ = ["PART_BYTES", "AnyLane", "BestEffortLane"]

log = logging.getLogger("gateway.besteffort")

PART_BYTES = 1024
"""What a part that waits costs beside its bytes."""
_BATCH_BYTES = 1 << 20
"""Handed over in one go at most, so that several may be under way, and what was taken is let go soon."""


class BestEffortLane:
    """Where the pump puts parts for the sink; `live` is the sink's own life, the other end."""

    takes_batches = True

    def __init__(self, name: str, stage: Stage, terms: BestEffort, parallel_parts: int) -> None:
        self.name = name
        self.progress = Progress()
        self.files: list[int] = []
        """The files that it should get, by index, whether it was dropped or not."""
        self.is_relay = self.keeps_order = stage is Stage.RELAY
        self.forgotten: set[int] = set()
        """Parts that are not kept, by index."""
        self.dropped: str | None = None
        """`lag`, `failed` or `late`."""
        self.receipts: list[Receipt] | None = None
        """None until it has committed."""
        self._terms = terms
        self._parallel_parts = parallel_parts
        self._waiting = _Lag(self)
        self._queue: deque[_Item] = deque()
        self._places: dict[int, _Item] = {}
        self._accepting: dict[int, _Item] = {}
        """What the sink is at work on, by each index in it."""
        self._pipes: set[Pipe] = set()
        self._changed: asyncio.Future[None] | None = None
        self._ended = False
        self._may_commit = asyncio.Event()
        self._entries: Sequence[Entry] = ()
        self._scope = Scope()

    @property
    def lag_bytes(self) -> int:
        return self._terms.lag_bytes

    @property
    def lag_seconds(self) -> float:
        return self._terms.lag_seconds

    # -- the pump's side; nothing of it waits

    def add(self, part: Part, data: bytes) -> None:
        """A small part that lies whole in memory."""
        if self.dropped is not None:
            return
        self._waiting.hold(len(data), PART_BYTES)
        if self.dropped is not None:
            return
        batch = self._queue[-1] if self._queue else None
        if batch is None or batch.part is not None or batch.size >= _BATCH_BYTES:
            batch = _Item()
            self._queue.append(batch)
        batch.parts.append((part, data))
        batch.size += len(data) + PART_BYTES
        self._wake()

    async def hand_over(self, tasks: asyncio.TaskGroup, slots: Slots, *, at_once: bool = False) -> None:
        """What has gathered is the sink's to fetch."""

    def hand_over_now(self, tasks: asyncio.TaskGroup, slots: Slots) -> bool:
        return True

    def open(self, part: Part, tasks: asyncio.TaskGroup | None = None) -> tuple[Pipe, None]:
        """A pipe for a file; nobody has to wait for its other end."""
        self.files.append(part.index)
        pipe = Pipe(self._waiting)
        if self.dropped is None:
            self._waiting.hold(0, PART_BYTES)
        if self.dropped is not None:
            pipe.close()
            return pipe, None
        self._pipes.add(pipe)
        place = self._places.pop(part.index, None)
        if place is None:
            place = _Item()
            self._queue.append(place)
        place.part, place.pipe, place.size, place.empty = part, pipe, PART_BYTES, False
        self._wake()
        return pipe, None

    def keep_turn(self, part: Part) -> tuple[None, asyncio.Future[None]]:
        """(nobody to wait for, what to set when done): the place of a part that flows will deliver later."""
        place = self._places[part.index] = _Item(part, empty=True)
        self._queue.append(place)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda _: self._leave(part))
        return None, done

    def _leave(self, part: Part) -> None:
        place = self._places.pop(part.index, None)
        if place is not None:  # the flows gave nothing
            place.empty = False
            self._wake()

    turn_is_pending = False
    """Turns are kept within."""

    async def wait_for_turn(self) -> None: ...

    async def drop(self, part: Part) -> None:
        """The part is not to be kept: the sink forgets it, in its own time."""
        self.forgotten.add(part.index)
        if self.dropped is None:
            running = self._accepting.get(part.index)
            if running is not None and running.task is not None and not running.is_batch:
                running.task.cancel()
            self._queue.appendleft(_Item(part, forget=True))
            self._wake()

    def end(self) -> None:
        """No more parts will come."""
        self._ended = True
        self._wake()

    def allow_commit(self, entries: Sequence[Entry]) -> None:
        """Every required sink has committed; from now on it may be late."""
        self._entries = entries
        self._may_commit.set()
        if self.receipts is None and self.dropped is None:
            self._scope.end(self._terms.lag_seconds)

    def give_up(self, reason: str) -> None:
        """Rule 4."""
        if self.dropped is not None or self.receipts is not None:
            return
        self.dropped = reason
        self._queue.clear()
        for pipe in self._pipes:
            pipe.abandon()  # if it only were empty, and finished, its part would look whole
        self._pipes.clear()
        self._scope.end()

    def insist(self) -> None:
        """Cancel what the sink is at work on once more: a TaskGroup does so but once."""
        for item in self._accepting.values():
            if item.task is not None:
                item.task.cancel()

    def account(self) -> list[Receipt]:
        """A receipt for each file that it should have got, as things stand: what is not safe yet is late."""
        files = [index for index in self.files if index not in self.forgotten]
        if self.receipts is not None:
            return completed(self.receipts, files, self.name)
        return [Receipt(index, self.name, dropped=self.dropped or "late") for index in files]

    # -- the sink's side

    async def live(self, sink: Sink, upload: Upload) -> None:
        """Raises nothing but a cancellation."""
        try:
            async with self._scope, AsyncExitStack() as stack:
                with self._failing():
                    # nothing of it is visible before the required sinks have committed
                    delivery = await stack.enter_async_context(sink.open(replace(upload, parts_alone=False)))
                await self._serve(delivery)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.give_up("failed")
        except Exception as error:
            self._tell(error)
            self.give_up("failed")
        self.give_up("late")

    async def _serve(self, delivery: Delivery) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch(delivery)) if delivery.is_watched else None
            async with asyncio.TaskGroup() as accepting:
                await self._deliver(delivery, accepting)
            await self._may_commit.wait()
            with self._failing():
                delivery.inform(self._entries)
                self.receipts = list(await delivery.commit() or ())
            self._scope.stay()
            if watching is not None:
                watching.cancel()

    async def _watch(self, delivery: Delivery) -> None:
        with self._failing():
            await delivery.watch()

    async def _deliver(self, delivery: Delivery, tasks: asyncio.TaskGroup) -> None:
        """Everything in the order in which it came, as many at a time as anywhere else."""
        slots = Slots(self._parallel_parts)
        while (item := await self._next()) is not None:
            if item.forget:
                forgetting = self._forget(delivery, item)
                if item.part is not None and item.part.index in self._accepting:
                    tasks.create_task(forgetting)  # who comes after it need not wait for that
                else:
                    await forgetting
                continue
            for one in item.each() if item.is_batch and not delivery.takes_batches else [item]:
                await slots.take()
                self._leave_out(one)  # while it waited
                if one.is_nothing:
                    slots.give_back()
                    continue
                one.task = tasks.create_task(self._accept(delivery, one))
                slots.give_back_after([one.task])
                self._accepting.update(dict.fromkeys(one.indices(), one))
                one.task.add_done_callback(one.then(self._done))

    async def _next(self) -> _Item | None:
        while True:
            while self._queue and not self._queue[0].empty:
                item = self._queue.popleft()
                self._leave_out(item)
                if item.forget or not item.is_nothing:
                    return item
            if self._ended and not self._queue:
                return None
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def _leave_out(self, item: _Item) -> None:
        """What was forgotten before it was begun."""
        if not self.forgotten:
            return
        if item.pipe is not None and item.part is not None and item.part.index in self.forgotten:
            self._pipes.discard(item.pipe)
            item.pipe.close()
            item.pipe = None
            self._waiting.release_part(item.size)
        elif item.parts:
            before = item.size
            item.parts = [one for one in item.parts if one[0].index not in self.forgotten]
            item.size = sum(len(data) + PART_BYTES for _, data in item.parts)
            self._waiting.release_part(before - item.size)

    async def _accept(self, delivery: Delivery, item: _Item) -> None:
        with self._failing():
            if item.part is None:
                await delivery.accept_all(item.parts)
            else:
                await delivery.accept(item.part, _Whole(item.parts[0][1]) if item.pipe is None else item.pipe)

    def _done(self, item: _Item) -> None:
        """Not in a `finally` of `_accept`: a task that is cancelled early never begins."""
        for index in item.indices():
            self._accepting.pop(index, None)
        if item.pipe is not None:
            self._pipes.discard(item.pipe)
            item.pipe.close()
        self._waiting.release_part(item.size)

    async def _forget(self, delivery: Delivery, item: _Item) -> None:
        assert item.part is not None
        running = self._accepting.get(item.part.index)
        if running is not None and running.task is not None:
            await asyncio.wait([running.task])
        with self._failing():
            await delivery.drop(item.part)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """An error drops the sink where it happens, not when all has been cleared away."""
        try:
            with translated(self.name):
                yield
        except Exception as error:
            if self.dropped is None:
                self._tell(error)
            self.give_up("failed")
            raise

    def _tell(self, error: Exception) -> None:
        log.debug("best-effort sink %s: %s", self.name, error)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


@dataclass(slots=True, eq=False)
class _Item:
    """A batch of small parts, one part, the place of one, or the word that one is to be forgotten."""

    part: Part | None = None
    pipe: Pipe | None = None
    parts: list[tuple[Part, bytes]] = field(default_factory=list)
    size: int = 0
    """What it holds beside what is in the pipe."""
    empty: bool = False
    """A place that nobody has taken yet."""
    forget: bool = False
    task: asyncio.Task[None] | None = None
    """In which the sink accepts it."""

    @property
    def is_batch(self) -> bool:
        return self.part is None

    @property
    def is_nothing(self) -> bool:
        """Whether there are no bytes for the sink, nor will be."""
        return not self.parts and self.pipe is None

    def indices(self) -> list[int]:
        return [part.index for part, _ in self.parts] if self.part is None else [self.part.index]

    def each(self) -> list[_Item]:
        return [_Item(part, parts=[(part, data)], size=len(data) + PART_BYTES) for part, data in self.parts]

    def then(self, done: Callable[[_Item], None]) -> Callable[[object], None]:
        return lambda _: done(self)


class _Lag(Window):
    """What waits for the sink: never full, but at some size the sink is given up."""

    __slots__ = ("_lane",)

    def __init__(self, lane: BestEffortLane) -> None:
        super().__init__(lane.lag_bytes, lane.progress)
        self._lane = lane

    def has_room(self, size: int) -> bool:
        return True

    def take(self, size: int) -> None:
        self.hold(size, 0)

    def hold(self, size: int, more: int) -> None:
        """Bytes, and what they cost beside themselves."""
        if self.used + size + more > self.limit:
            self._lane.give_up("lag")
        self.used += size + more
        self.progress.give(size)

    def release_part(self, size: int) -> None:
        self.used -= size


class _Whole(AsyncIterator[bytes]):
    """One chunk, or none."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data


AnyLane = Lane | BestEffortLane
"""What a part may be given to."""
