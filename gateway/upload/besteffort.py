"""A best-effort sink's share of one upload: it gets what it can take, and harms nobody.

1. *It never slows the upload.* The pump hands over and goes on. What waits here, over all parts, is bounded
   by `lag_bytes`, and every part counts `PART_BYTES` beside its own, or a million empty ones would be
   without bound (backlog.py). More than that, and the sink is excluded: `lag`.
2. *It never fails the upload.* The sink is opened, fed, watched, committed and left in a task of its own
   that raises nothing. Whatever goes wrong there excludes the sink: `failed`.
3. *It is last.* Only when every required sink has committed may it commit. From then on it has
   `lag_seconds` to take the rest and to say that it is safe, else it is excluded: `late`.
4. *Excluded* means: what waits is let go, its delivery is left without a commit (a request is broken off),
   at once, and whatever still comes for it passes by. A commit that was under way when the time was over
   may have arrived all the same. Clients are told that the sink was dropped, and why.
5. The order of the wire is kept for relays as it is for required ones, but waited for here: where flows
   work on a part, what comes after it waits, and counts as what waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial

from gateway.concurrency.pipe import Pipe
from gateway.concurrency.scope import Scope
from gateway.model import Entry, Part, Receipt, Upload
from gateway.sinks import Delivery, Sink, Stage
from gateway.upload.backlog import Backlog, Item
from gateway.upload.failures import translated
from gateway.upload.lanes import Lane, PartPermits
from gateway.upload.routes import BestEffort
from gateway.upload.timeline import SinkTimes

__all__ = ["BestEffortLane"]

log = logging.getLogger("gateway.besteffort")


class BestEffortLane(Lane):
    """Where the pump puts parts for the sink; `live` is the sink's own life, the other end."""

    def __init__(
        self, name: str, stage: Stage, terms: BestEffort, parallel_parts: int, times: SinkTimes | None = None
    ) -> None:
        super().__init__(name, stage, times)
        self.terms = terms
        self.receipts: list[Receipt] | None = None
        """None until it has committed."""
        self._parallel_parts = parallel_parts
        self._backlog = Backlog(terms.lag_bytes, self.progress, self.forgotten, partial(self.exclude, "lag"))
        self._feed: _Feed | None = None
        self._may_commit = asyncio.Event()
        self._entries: Sequence[Entry] = ()
        self._scope = Scope()

    # -- the pump's side; nothing of it waits

    def add(self, part: Part, data: bytes) -> None:
        self._backlog.add(part, data)

    async def hand_over(self, tasks: asyncio.TaskGroup, permits: PartPermits, *, at_once: bool = False) -> None:
        """What has gathered is the sink's to fetch."""

    def open(self, part: Part) -> tuple[Pipe, None]:
        self.files.append(part.index)
        return self._backlog.open(part), None

    def keep_turn(self, part: Part) -> tuple[None, asyncio.Future[None]]:
        self._backlog.keep_place(part)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda _: self._backlog.give_up_place(part))
        return None, done

    async def wait_for_turn(self) -> None:
        """Turns are kept within."""

    async def forget(self, part: Part) -> None:
        """The sink forgets it in its own time."""
        self.forgotten.add(part.index)
        if self.excluded is None:
            if self._feed is not None:
                self._feed.interrupt(part)
            self._backlog.forget(part)

    def end(self) -> None:
        """No more parts will come."""
        self._backlog.end()

    def allow_commit(self, entries: Sequence[Entry]) -> None:
        """Every required sink has committed; from now on it may be late."""
        self._entries = entries
        self._may_commit.set()
        if self.receipts is None and self.excluded is None:
            self._scope.end(self.terms.lag_seconds)

    def exclude(self, reason: str) -> None:
        """Rule 4, unless it has committed, or was excluded before."""
        if self.excluded is None and self.receipts is None:
            self.excluded = reason
            self.times.give_up()
            self._backlog.clear()
            self._scope.end()

    def insist(self) -> None:
        """Cancel what the sink is at work on once more: a TaskGroup does so but once."""
        if self._feed is not None:
            self._feed.interrupt_all()

    def account(self) -> list[Receipt]:
        """A receipt for each file that it should have got, as things stand: what is not safe yet is late."""
        if self.receipts is not None:
            return self.completed(self.receipts)
        files = [index for index in self.files if index not in self.forgotten]
        return [Receipt(index, self.name, missed=self.excluded or "late") for index in files]

    def backlog(self) -> dict[int, int]:
        return self._backlog.waiting() | ({} if self._feed is None else self._feed.backlog())

    @property
    def waiting_bytes(self) -> int:
        return self._backlog.waiting_bytes

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
            self.exclude("failed")
        except Exception as error:
            log.debug("best-effort sink %s: %s", self.name, error)
            self.exclude("failed")
        self.exclude("late")

    async def _serve(self, delivery: Delivery) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch(delivery)) if delivery.is_watched else None
            self._feed = _Feed(delivery, self._backlog, self._failing)
            await self._feed.run(self._parallel_parts)
            await self._may_commit.wait()
            self.committing = True
            self.times.begin_commit()
            with self._failing():
                delivery.inform(self._entries)
                self.receipts = list(await delivery.commit() or ())
            self.committed = True
            self.times.end_commit()
            self._scope.stay()
            if watching is not None:
                watching.cancel()

    async def _watch(self, delivery: Delivery) -> None:
        with self._failing():
            await delivery.watch()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """An error excludes the sink where it happens, not when all has been cleared away."""
        try:
            with translated(self.name):
                yield
        except Exception as error:
            log.debug("best-effort sink %s: %s", self.name, error)
            self.exclude("failed")
            raise


class _Feed:
    """Gives a delivery what waits for it. `failing` is the context for whatever the sink does."""

    def __init__(
        self, delivery: Delivery, backlog: Backlog, failing: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._delivery = delivery
        self._backlog = backlog
        self._failing = failing
        self._accepting: dict[int, tuple[Item, asyncio.Task[None]]] = {}
        """What the sink is at work on, by each index in it."""

    async def run(self, parallel_parts: int) -> None:
        """Everything in the order in which it came, as many parts at a time as anywhere else."""
        permits = PartPermits(parallel_parts)
        async with asyncio.TaskGroup() as tasks:
            while (item := await self._backlog.next()) is not None:
                if item.part is not None and item.is_forgetting:
                    if item.part.index in self._accepting:
                        tasks.create_task(self._forget(item.part))  # who comes after it need not wait for that
                    else:
                        await self._forget(item.part)
                    continue
                for one in item.each() if item.part is None and not self._delivery.takes_batches else [item]:
                    await permits.take()
                    self._backlog.leave_out_forgotten(one)  # while it waited
                    if one.is_nothing:
                        permits.give_back()
                        continue
                    task = tasks.create_task(self._accept(one))
                    permits.give_back_after([task])
                    self._accepting.update(dict.fromkeys(one.indices(), (one, task)))
                    task.add_done_callback(partial(self._done, one))

    def backlog(self) -> dict[int, int]:
        """Of what the sink is at work on, or has not sent on."""
        backlog: dict[int, int] = {}
        for item, _ in list(self._accepting.values()):
            backlog |= item.waiting()
        for index, size in self._delivery.backlog().items():
            backlog[index] = backlog.get(index, 0) + size
        return backlog

    def interrupt(self, part: Part) -> None:
        """Cancel the accept of one part, if it runs and is not that of others, too."""
        item, task = self._accepting.get(part.index, (None, None))
        if item is not None and task is not None and item.part is not None:
            task.cancel()

    def interrupt_all(self) -> None:
        """Cancel whatever runs."""
        for _, task in self._accepting.values():
            task.cancel()

    async def _accept(self, item: Item) -> None:
        with self._failing():
            if item.part is None:
                await self._delivery.accept_all(item.parts)
            else:
                await self._delivery.accept(item.part, _Whole(item.parts[0][1]) if item.pipe is None else item.pipe)

    def _done(self, item: Item, _: object) -> None:
        # not in a `finally` of `_accept`: a task that is cancelled early never begins
        for index in item.indices():
            self._accepting.pop(index, None)
        self._backlog.done(item)

    async def _forget(self, part: Part) -> None:
        if part.index in self._accepting:
            await asyncio.wait([self._accepting[part.index][1]])
        with self._failing():
            await self._delivery.drop(part)


class _Whole(AsyncIterator[bytes]):
    """One chunk, or none."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data
