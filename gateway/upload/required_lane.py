"""The lane of a sink that the upload depends on.

The short way is for sinks that can take many parts in one go: small ones gather in a batch, which is handed over in
one task, at the latest before anything that goes the long way. While a batch is being taken the next one gathers, up
to half a window: the slower the sink, the fewer and larger its batches.

Relays want the order of the wire. While flows work on a part, its turn at a relay is kept: whatever comes
after waits for it *before* anything of it is sent, so that it cannot fill what the earlier part needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from gateway.concurrency.pipe import Pipe, Progress, Window
from gateway.concurrency.tasks import start
from gateway.errors import GatewayError, SinkTimeout
from gateway.model import Part, Receipt
from gateway.sinks import LATEST, Answered, Delivery, Stage
from gateway.upload.failures import translated
from gateway.upload.lanes import Accepting, Batch, Lane, PartPermits, names_bytes
from gateway.upload.timeline import SinkTimes

__all__ = ["RequiredLane"]


class _Owing(translated):
    __slots__ = ("_progress",)

    def __init__(self, name: str, progress: Progress) -> None:
        super().__init__(name)
        self._progress = progress

    def __enter__(self) -> None:
        self._progress.begin_finishing()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._progress.end_finishing()
        super().__exit__(kind, error, traceback)


class RequiredLane(Lane):
    """A delivery that the upload depends on: whatever it raises fails the upload.

    `on_batch_failed` takes the failure of a batch where it is that of the parts in it.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        delivery: Delivery,
        window_bytes: int,
        on_batch_failed: Callable[[Batch, GatewayError | Answered], None] | None = None,
        times: SinkTimes | None = None,
    ) -> None:
        super().__init__(name, stage, times)
        self.delivery = delivery
        self.takes_batches = delivery.takes_batches and not delivery.completes_parts
        self.takes_wire = delivery.takes_wire
        self.hashing = delivery if delivery.hashes else None
        self.keeps_order = self.is_relay and not delivery.completes_parts
        self._window_bytes = window_bytes
        self._on_batch_failed = on_batch_failed
        self._begun = 0  # how many times something was handed over
        self._turn: asyncio.Future[None] | None = None
        # what goes the short way: what gathers, the room for what is being taken, and who waits until it is taken
        self._gathered: Batch = []
        self._gathered_bytes = self._gathered_names_bytes = 0
        self._batch_window = Window(window_bytes, self.progress)
        self._delivering = 0
        self._taken: asyncio.Future[None] | None = None
        # what the sink is at work on
        self._batches: list[Batch] = []
        self._pipes: dict[int, Pipe] = {}
        delivery.keep_time(self.progress)

    @property
    def began(self) -> bool:
        """Whether something went to the sink that a commit makes visible, a field or an empty file input among that."""
        return self._begun > 0 and self.delivery.began

    def owing(self) -> _Owing:
        """A context: the next move is the sink's, and its errors are told as ours."""
        return _Owing(self.name, self.progress)

    def stalled(self, limit: float) -> SinkTimeout:
        """The error of a sink that did nothing for so many seconds."""
        what, clock = (
            ("did not confirm the whole upload", "first_byte") if self.committing else ("took nothing", "write")
        )
        of_relays: dict[str, object] = {"clock": clock} if self.is_relay else {}
        if self.is_relay and self.committing:
            of_relays["may_have_acted"] = True
        return SinkTimeout(f"sink {self.name} {what} for {limit:g} seconds", sink=self.name, limit=limit, **of_relays)

    async def watch(self) -> None:
        """Run what the sink has to run beside the upload. Raises its errors as ours."""
        with translated(self.name):
            await self.delivery.watch()

    async def forget(self, part: Part) -> None:
        self.forgotten.add(part.index)
        with self.owing():
            await self.delivery.drop(part)

    def backlog(self) -> dict[int, int]:
        batches = () if self.committed else (*self._batches, self._gathered)
        backlog = {part.index: len(data) for batch in batches for part, data in batch}
        backlog |= {index: pipe.waiting_bytes for index, pipe in self._pipes.items()}
        for index, size in self.delivery.backlog().items():
            backlog[index] = backlog.get(index, 0) + size
        return backlog

    @property
    def waiting_bytes(self) -> int:
        return self._gathered_bytes + self.progress.waiting_bytes

    def kept_alone(self) -> Sequence[Receipt]:
        return self.delivery.committed() if self.delivery.completes_parts else ()

    # -- turns

    def keep_turn(self, part: Part) -> tuple[asyncio.Future[None] | None, asyncio.Future[None]]:
        before, self._turn = self._turn, asyncio.get_running_loop().create_future()
        return before, self._turn

    async def wait_for_turn(self) -> None:
        if self._turn is not None and self.keeps_order:
            await self._turn

    # -- the short way

    def add(self, part: Part, data: bytes) -> None:
        self._gathered.append((part, data))
        self._gathered_bytes += len(data)
        self._gathered_names_bytes += names_bytes(part)

    async def hand_over(self, tasks: asyncio.TaskGroup, permits: PartPermits, *, at_once: bool = False) -> None:
        while self._gathered and self._delivering and not at_once:
            if self._gathered_bytes + self._gathered_names_bytes < (self._window_bytes or 1 << 20) // 2:
                return
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken
        if not self._gathered:
            return
        await self.wait_for_turn()
        await permits.take()  # before the bytes are given: while others hold all permits, nothing is owed here
        if not self._gathered:  # who delivers took it meanwhile
            permits.give_back()
            return
        batch, size = self._take_gathered()
        await self._batch_window.reserve(size)
        self._delivering += 1
        self._begun += 1
        permits.give_back_after([start(tasks, self._deliver(batch, size, self._begun))])

    async def take_only(self, *, is_alone: bool) -> None:
        """What was added is all that comes: the sink takes it now or, where it `is_alone` and can, with its commit."""
        if not self._gathered:
            return
        batch, size = self._take_gathered()
        self._begun += 1
        self.progress.give(size)
        self.progress.take(size)
        if is_alone and self.delivery.holds_batch:
            self._batches.append(batch)  # until it is committed
            self.delivery.hold_batch(batch)
        else:
            await self._give(batch)

    async def _give(self, batch: Batch) -> None:
        self._batches.append(batch)
        try:
            with self.owing():
                await self.delivery.accept_all(batch)
        except (GatewayError, Answered) as error:
            if self._on_batch_failed is None:
                raise
            self._on_batch_failed(batch, error)
        finally:
            self._batches = [one for one in self._batches if one is not batch]

    def _take_gathered(self) -> tuple[Batch, int]:
        batch, size = self._gathered, self._gathered_bytes
        self._gathered, self._gathered_bytes, self._gathered_names_bytes = [], 0, 0
        return batch, size

    async def _deliver(self, batch: Batch, size: int, begun: int) -> None:
        """A batch, and what gathers meanwhile."""
        window = self._batch_window
        while True:
            try:
                await self._give(batch)
            finally:
                window.release(size)
            while self._begun != begun:
                # Something else was handed over since, and its task may not have begun: what gathered came after it.
                begun = self._begun
                await asyncio.sleep(0)
            waits = self.keeps_order and self._turn is not None and not self._turn.done()
            if not self._gathered or waits or not window.has_room(self._gathered_bytes):
                break
            batch, size = self._take_gathered()
            window.take(size)
            self._tell_taken()
        self._delivering -= 1
        self._tell_taken()

    def _tell_taken(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    # -- the long way

    def open(self, part: Part) -> tuple[Pipe, Accepting]:
        self.files.append(part.index)
        pipe = self._pipe(part.index)
        return pipe, partial(self._accept, partial(self.delivery.accept, part, pipe), pipe, part.index)

    def open_wire(self) -> tuple[Pipe, Accepting]:
        """The same for the body as it came, in place of parts."""
        pipe = self._pipe(LATEST)
        return pipe, partial(self._accept, partial(self.delivery.accept_wire, pipe), pipe, LATEST)

    def _pipe(self, index: int) -> Pipe:
        self._begun += 1
        pipe = self._pipes[index] = Pipe(Window(self._window_bytes, self.progress))
        return pipe

    async def _accept(self, accept: Callable[[], Awaitable[None]], pipe: Pipe, index: int) -> None:
        try:
            with translated(self.name):
                await accept()
        finally:
            pipe.close()
            del self._pipes[index]
