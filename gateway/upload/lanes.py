"""One sink's share of one upload, as seen from where the parts come from.

A lane takes parts one of two ways. The *long way*: a pipe and a task per part. The *short way*, for small
parts that lie whole in memory and sinks that can take many in one go: they gather in a batch, which is
handed over in one task, at the latest before anything that goes the long way. While a batch is being taken
the next one gathers, up to half a window: the slower the sink, the fewer and larger its batches.

Relays want the order of the wire. While flows work on a part, its turn at a relay is kept: whatever comes
after waits for it *before* anything of it is sent, so that it cannot fill what the earlier part needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiohttp import ClientResponse

from gateway.concurrency.pipe import Pipe, Progress, Window
from gateway.errors import GatewayError
from gateway.model import Entry, Limits, Part, Receipt
from gateway.sinks import Answered, Delivery, Stage
from gateway.upload.failures import translated

__all__ = ["BULK_BYTES", "Lane", "Slots", "completed", "memory_shares"]


BULK_BYTES = 256 << 10
"""The largest part for the short way: about what a buffer holds, so that a batch is no more than one."""


def memory_shares(limits: Limits, received: int, *, required_sinks: int, lag_bytes: int) -> dict[str, int]:
    """What waits for the sinks of one upload at most, in bytes, by what; `received` is what may come at a time.

    A required sink has a window for each open part, one for the small parts that it takes, and one for those that
    gather meanwhile. Best-effort sinks wait within `lag_bytes`, all together.
    """
    window = max(limits.window_bytes, received)
    return {
        "windows towards sinks": required_sinks * (limits.parallel_parts + 2) * window,
        "waiting for best-effort sinks": lag_bytes,
        "the beginning of a file that is held": BULK_BYTES + received,
        "field values": 2 * limits.max_fields_bytes,
    }


class Slots:
    """`parallel_parts`: how many parts (or batches of tiny ones) may be open at once. One per part, not per sink.

    For one taker, the pump.
    """

    def __init__(self, count: int) -> None:
        self._free = count or 1 << 30
        self._given_back: asyncio.Future[None] | None = None

    def take_now(self) -> bool:
        """A slot, if one is free."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def take(self) -> None:
        while not self.take_now():
            self._given_back = asyncio.get_running_loop().create_future()
            await self._given_back

    def give_back_after(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """The slot is free again when all of these have ended."""
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
        self._free += 1
        if self._given_back is not None and not self._given_back.done():
            self._given_back.set_result(None)


class Lane:
    """A delivery, its progress and its batch. `tasks` is where accepting goes on; it may fail as a whole."""

    def __init__(self, name: str, stage: Stage, delivery: Delivery, window_bytes: int) -> None:
        self.name = name
        self.stage = stage
        self.progress = Progress()
        self.files: list[int] = []
        """The files that it was given, by index."""
        self.committing = False
        self.given = False
        """Whether it was given anything at all, a field or an empty file input among that."""
        self.forgotten: set[int] = set()
        """Parts that are not kept, by index."""
        self.spare: Callable[[Sequence[tuple[Part, bytes]], Exception], None] | None = None
        """Takes the failure of a batch, where it is not that of the whole upload."""
        self._delivery = delivery
        self.takes_batches = delivery.takes_batches and not delivery.completes_parts
        """Whether its small files go the short way."""
        self.keeps_order = self.is_relay and not delivery.completes_parts
        """Whether parts wait for their turn."""
        self._window_bytes = window_bytes
        self._batch_window = Window(window_bytes, self.progress)
        self._batch: list[tuple[Part, bytes]] = []
        self._batch_bytes = 0
        self._gather_bytes = (window_bytes or 1 << 20) // 2
        self._delivering = 0
        self._begun = 0  # how many times something was handed over
        self._taken: asyncio.Future[None] | None = None
        self._turn: asyncio.Future[None] | None = None
        delivery.keep_time(self.progress)

    @property
    def is_relay(self) -> bool:
        return self.stage is Stage.RELAY

    @property
    def is_watched(self) -> bool:
        return self._delivery.is_watched

    @property
    def is_wired(self) -> bool:
        """Whether it is to get the bytes of the wire, in place of parts."""
        return self._delivery.takes_wire

    def let_see(self, see: Callable[[int, bytes], None]) -> bool:
        """Have `see` called with all bytes of all parts, in a thread of the sink's. False if it has none."""
        return self._delivery.let_see(see)

    # -- turns

    def keep_turn(self, part: Part) -> tuple[asyncio.Future[None] | None, asyncio.Future[None]]:
        """(whom to wait for, what to set when done): the place of a part that flows will deliver later."""
        before, self._turn = self._turn, asyncio.get_running_loop().create_future()
        return before, self._turn

    @property
    def turn_is_pending(self) -> bool:
        return self.keeps_order and self._turn is not None and not self._turn.done()

    async def wait_for_turn(self) -> None:
        """Nobody who came earlier is still at work on what this lane is to get first."""
        if self.turn_is_pending:
            assert self._turn is not None
            await self._turn

    # -- the short way

    def add(self, part: Part, data: bytes) -> None:
        self.given = True
        self._batch.append((part, data))
        self._batch_bytes += len(data)

    async def hand_over(self, tasks: asyncio.TaskGroup, slots: Slots, *, at_once: bool = False) -> None:
        """What has gathered goes to the sink: when it has taken what it was given before, or `at_once`."""
        while self._batch and self._delivering and not at_once:
            if self._batch_bytes < self._gather_bytes:
                return
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken
        if not self._batch:
            return
        await self.wait_for_turn()
        await slots.take()  # before the bytes are given: while others hold all slots, nothing is owed here
        if not self._batch:  # who delivers took it meanwhile
            slots.give_back()
            return
        batch, size = self._take_batch()
        await self._batch_window.reserve(size)
        self._delivering += 1
        self._begun += 1
        slots.give_back_after([tasks.create_task(self._deliver(batch, size, self._begun))])

    def hand_over_now(self, tasks: asyncio.TaskGroup, slots: Slots) -> bool:
        """The same at once or not at all; whether nothing is left to hand over."""
        if not self._batch:
            return True
        if self.turn_is_pending or not self._batch_window.has_room(self._batch_bytes) or not slots.take_now():
            return False
        batch, size = self._take_batch()
        self._batch_window.take(size)
        self._delivering += 1
        self._begun += 1
        slots.give_back_after([tasks.create_task(self._deliver(batch, size, self._begun))])
        return True

    def _take_batch(self) -> tuple[list[tuple[Part, bytes]], int]:
        batch, size = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        return batch, size

    async def _deliver(self, batch: list[tuple[Part, bytes]], size: int, begun: int) -> None:
        """A batch, and what gathers meanwhile."""
        while True:
            self.progress.begin_finishing()
            try:
                with translated(self.name):
                    await self._delivery.accept_all(batch)
            except (GatewayError, Answered) as error:
                if self.spare is None:
                    raise
                self.spare(batch, error)
            finally:
                self.progress.end_finishing()
                self._batch_window.release(size)
            while self._begun != begun:
                # Something else was handed over since, and its task may not have begun: what gathered came after it.
                begun = self._begun
                await asyncio.sleep(0)
            if not self._batch or self.turn_is_pending or not self._batch_window.has_room(self._batch_bytes):
                break
            batch, size = self._take_batch()
            self._batch_window.take(size)
            self._wake()
        self._delivering -= 1
        self._wake()

    def _wake(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    # -- the long way

    def open(self, part: Part, tasks: asyncio.TaskGroup) -> tuple[Pipe, asyncio.Task[None]]:
        """A pipe for a file, and the task at its other end. Raises RuntimeError where `tasks` take no more."""
        pipe = Pipe(Window(self._window_bytes, self.progress))
        accepting = self.accept(part, pipe)
        try:
            task = tasks.create_task(accepting)
        except RuntimeError:
            accepting.close()
            raise
        self.given = True
        self._begun += 1
        self.files.append(part.index)
        return pipe, task

    def pipe(self, part: Part) -> Pipe:
        """The pipe alone, for who sees to the accept himself."""
        self.given = True
        self._begun += 1
        self.files.append(part.index)
        return Pipe(Window(self._window_bytes, self.progress))

    async def accept(self, part: Part, pipe: Pipe) -> None:
        """The other end of a pipe: returns when the sink has the part safely."""
        try:
            with translated(self.name):
                await self._delivery.accept(part, pipe)
        finally:
            pipe.close()

    async def drop(self, part: Part) -> None:
        """The sink forgets a part; none of its accepts runs any more."""
        self.forgotten.add(part.index)
        self.progress.begin_finishing()
        try:
            with translated(self.name):
                await self._delivery.drop(part)
        finally:
            self.progress.end_finishing()

    # -- the wire, in place of parts

    def open_wire(self, tasks: asyncio.TaskGroup) -> Pipe:
        """A pipe for the body as it came."""
        self.given = True
        pipe = Pipe(Window(self._window_bytes, self.progress))
        tasks.create_task(self._accept_wire(pipe))
        return pipe

    async def _accept_wire(self, pipe: Pipe) -> None:
        try:
            with translated(self.name):
                await self._delivery.accept_wire(pipe)
        finally:
            pipe.close()

    def hold_wire(self, tail: bytes) -> None:
        """What is left of the body, for the commit."""
        self._delivery.hold_wire(self.files, tail)

    # -- the upload as a whole

    async def watch(self) -> None:
        with translated(self.name):
            await self._delivery.watch()

    def keeper_receipts(self) -> Sequence[Receipt]:
        return self._complete(self._delivery.receipts())

    def keep_manifest(self, manifest: bytes) -> None:
        self._delivery.keep_manifest(manifest)

    async def replace_manifest(self, manifest: bytes) -> None:
        self.progress.begin_finishing()
        try:
            with translated(self.name):
                await self._delivery.replace_manifest(manifest)
        finally:
            self.progress.end_finishing()

    def inform(self, entries: Sequence[Entry]) -> None:
        self._delivery.inform(entries)

    def committed(self) -> Sequence[Receipt]:
        """What is visible, of a sink that can commit in part."""
        return self._delivery.committed()

    @property
    def began(self) -> bool:
        """Whether something went to the sink that a commit makes visible."""
        return self.given and self._delivery.began

    async def commit(self) -> list[Receipt]:
        """A receipt for each file: a plain one where the sink says nothing of it."""
        self.committing = True
        self.progress.begin_finishing()
        try:
            with translated(self.name):
                return self._complete(await self._delivery.commit() or ())
        finally:
            self.progress.end_finishing()

    def answer(self) -> ClientResponse | None:
        """The response of a destination, after its commit."""
        return self._delivery.answer()

    @property
    def read_seconds(self) -> float | None:
        """How long the bytes of that response may be waited for; None is as long as any sink."""
        return self._delivery.read_seconds

    def _complete(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        files = [index for index in self.files if index not in self.forgotten] if self.forgotten else self.files
        return completed(receipts, files, self.name)


def completed(receipts: Sequence[Receipt], files: Sequence[int], name: str) -> list[Receipt]:
    """A receipt of the sink of that name for each of the files, a plain one where it gave none."""
    if [receipt.part for receipt in receipts] == files:
        return list(receipts)
    given = {receipt.part: receipt for receipt in receipts}
    return [given.get(index) or Receipt(index, name) for index in files]
