"""Parts -> sinks, concurrently; all or nothing.

The theory, for this is Akka's `mapAsync` with the traps taken out:

1. Parts are serial on the wire, so one pump reads them. Part k+1 begins as soon as part k's bytes are
   in its pipes, while the sinks of part k still write, fsync or wait. `parallel_parts` bounds how many
   are open: a slot is taken per part, not per (part, sink).
2. Each sink has one window of bytes per upload. The pump waits for the slowest sink that must be fed;
   nothing else waits for anything, so there is no circle: sinks end by themselves, or stall.
3. *Small parts* that lie whole in the received buffer go the short way to sinks that can take many in
   one go: they are gathered per sink and handed over at the end of the buffer, or before a part that
   goes the long way. The batch draws on the same window, and takes one slot.
4. *A stall* is the sink's when the next move is the sink's: it has bytes it did not take, or a whole
   part it did not finish. If it does not move for `stall_seconds`, that is a SinkTimeout. Waiting for
   the client is the intake's business.
5. *The end.* Only when the body was read to its end and every accept has returned, commits begin:
   relays, then others, then disks; the keeper of the manifest is last of all. Everything before the
   first commit that succeeds can be undone by doing nothing; a failure after it is Incomplete.
6. *Every way out is the same.* Whatever fails cancels the rest (TaskGroup), and leaves the deliveries'
   contexts without a commit, which keeps nothing. The first error is the one that is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

from aiohttp import ClientResponse

from gateway.codec import Event, Kind
from gateway.digests import PartDigest, digest_of
from gateway.errors import (
    GatewayError,
    Incomplete,
    NoRoute,
    SinkFault,
    SinkRefused,
    SinkTimeout,
    SinkUnavailable,
    TooLarge,
)
from gateway.model import Entry, Limits, Manifest, Part, Receipt, Upload
from gateway.pipe import Pipe, Window
from gateway.responses import manifest_json
from gateway.routes import Route
from gateway.sinks import Answered, Bulk, Delivery, Keeper, Sink, Watched, sink_fault

__all__ = ["Outcome", "dispatch"]

log = logging.getLogger("gateway.dispatch")

_BULK_BYTES = 256 << 10
"""The largest part for the short way: what a buffer holds at most, so that a batch is no more than one."""


@dataclass(slots=True)
class Outcome:
    """What became of an upload that succeeded, or that a destination answered in our stead."""

    manifest: Manifest
    answer: ClientResponse | None = None
    """On a route of kind relay: the destination's response, to be streamed before the stack is left."""
    sink_bytes: dict[str, int] | None = None


class Lane:
    """One sink's share of one upload, as the pump sees it."""

    __slots__ = ("batch", "batch_bytes", "bulk", "delivery", "name", "parts", "stage", "window")

    def __init__(self, name: str, stage: int, delivery: Delivery, window_bytes: int) -> None:
        self.name = name
        self.stage = stage
        self.delivery = delivery
        self.bulk: Bulk | None = delivery if isinstance(delivery, Bulk) else None
        self.window = Window(window_bytes)
        self.batch: list[tuple[Part, bytes]] = []
        self.batch_bytes = 0
        self.parts: list[int] = []
        """The files that it accepted, by index."""


async def dispatch(
    upload: Upload,
    events: AsyncIterator[list[Event]],
    route: Route,
    sinks: Mapping[str, Sink],
    limits: Limits,
    executor: Executor,
    stack: AsyncExitStack,
) -> Outcome:
    """Take one body to its sinks and commit it. `stack` holds the deliveries: when it is left, what was not
    committed is undone, and a destination's answer can no longer be read. Raises the leaves of errors.
    """
    lanes = {}
    for name in route.sinks:
        sink = sinks[name]
        delivery = await stack.enter_async_context(sink.open(upload))
        lanes[name] = Lane(name, getattr(sink, "commit_stage", 1), delivery, limits.window_bytes)
    pump = _Pump(upload, route, lanes, limits, executor)
    try:
        await pump.run(events)
    except BaseExceptionGroup as group:
        error = _first(group)
        if pump.committed:
            raise _incomplete(error, pump.committed) from error
        if not isinstance(error, Answered):
            raise error from None
        if route.kind != "relay":
            raise _refused(error) from None
        return Outcome(pump.manifest, error.response, pump.sink_bytes())
    return Outcome(pump.manifest, _answer(lanes) if route.kind == "relay" else None, pump.sink_bytes())


class _Pump:
    """One upload in progress."""

    def __init__(
        self, upload: Upload, route: Route, lanes: dict[str, Lane], limits: Limits, executor: Executor
    ) -> None:
        self._route = route
        self._lanes = lanes
        self._relays = [lane for lane in lanes.values() if lane.stage == 0]
        self._limits = limits
        self._executor = executor
        self._slots = asyncio.Semaphore(limits.parallel_parts or 1 << 30)
        self._loop = asyncio.get_running_loop()
        self._fields_bytes = 0
        self.manifest = Manifest(upload.id, [])
        self.committed: list[Receipt] = []
        # the part that is being received, if it did not fit into one buffer
        self._entry: Entry | None = None
        self._pipes: list[Pipe] | None = None
        self._digest: PartDigest | None = None
        self._field: list[bytes] = []

    def sink_bytes(self) -> dict[str, int]:
        return {lane.name: lane.window.total for lane in self._lanes.values()}

    async def run(self, events: AsyncIterator[list[Event]]) -> None:
        async with asyncio.TaskGroup() as self._outer:
            watching = [
                self._outer.create_task(_watching(lane))
                for lane in self._lanes.values()
                if isinstance(lane.delivery, Watched)
            ]
            stall_timer = self._watch_for_stalls()
            try:
                async with asyncio.TaskGroup() as self._accepting:
                    async for batch in events:
                        for event in batch:
                            await self._take(event)
                        await self._hand_over_batches()
                await self._commit()
            finally:
                stall_timer()
                for task in watching:
                    task.cancel()

    # -- events, in the order in which they come

    async def _take(self, event: Event) -> None:
        match event.kind:
            case Kind.DATA:
                await self._take_data(event.data)
            case Kind.WHOLE:
                assert event.part is not None
                await self._take_whole(event.part, event.data)
            case Kind.BEGIN:
                assert event.part is not None
                await self._take_begin(event.part)
            case Kind.END:
                await self._take_end()
            case Kind.CLOSE | Kind.IGNORED:
                pass

    async def _take_whole(self, part: Part, data: bytes) -> None:
        entry = self._new_entry(part)
        if not part.is_file or (part.raw_filename == b"" and not data):
            await self._take_field(entry, data)
            return
        lanes = self._lanes_for(part)
        entry.size = len(data)
        self._check_file(entry)
        if self._route.digests:
            entry.digests = digest_of(data, self._route.digests)
        long_way = [lane for lane in lanes if lane.bulk is None or len(data) > _BULK_BYTES]
        for lane in lanes:
            if lane not in long_way:
                lane.batch.append((part, data))
                lane.batch_bytes += len(data)
        if long_way:
            for pipe in await self._open(part, long_way):
                if data:
                    await pipe.send(data)
                pipe.finish()

    async def _take_begin(self, part: Part) -> None:
        entry = self._entry = self._new_entry(part)
        self._field = []
        if part.is_file and part.raw_filename != b"":
            await self._begin_file(entry)

    async def _begin_file(self, entry: Entry) -> None:
        self._digest = PartDigest(self._route.digests, self._executor) if self._route.digests else None
        self._pipes = await self._open(entry.part, self._lanes_for(entry.part))

    async def _take_data(self, data: bytes) -> None:
        entry = self._entry
        assert entry is not None
        entry.size += len(data)
        if not entry.part.is_file:
            self._check_field(entry.size, self._fields_bytes + entry.size)
            self._field.append(data)
            return
        self._check_file(entry)
        if self._pipes is None:  # it seemed to be an empty file input, but here is a byte of it
            await self._begin_file(entry)
            assert self._pipes is not None
        if self._digest is not None:
            await self._digest.update(data)
        for pipe in self._pipes:
            await pipe.send(data)

    async def _take_end(self) -> None:
        entry, self._entry = self._entry, None
        assert entry is not None
        pipes, self._pipes = self._pipes, None
        if pipes is None:
            data, self._field = b"".join(self._field), []
            await self._take_field(entry, data)
            return
        # The digest first: a sink that has finished may be followed at once by the commit of all.
        if self._digest is not None:
            entry.digests = await self._digest.finish()
        for pipe in pipes:
            pipe.finish()

    async def _take_field(self, entry: Entry, data: bytes) -> None:
        """A field, or an empty file input: it needs no rule, is never stored, and goes to every relay."""
        entry.size = len(data)
        if not entry.part.is_file:
            self._fields_bytes += len(data)
            self._check_field(len(data), self._fields_bytes)
            try:
                entry.value = data.decode()
            except UnicodeDecodeError:
                entry.value = None
        if self._route.digests:
            entry.digests = digest_of(data, self._route.digests)
        for lane in self._relays:
            lane.batch.append((entry.part, data))
            lane.batch_bytes += len(data)

    def _new_entry(self, part: Part) -> Entry:
        entry = Entry(part)
        self.manifest.entries.append(entry)
        return entry

    def _lanes_for(self, part: Part) -> list[Lane]:
        rule = self._route.rule_for(part)
        if rule is None:
            raise NoRoute("no rule takes this file", part=part.index)
        lanes = [self._lanes[name] for name in rule.sinks]
        for lane in lanes:
            lane.parts.append(part.index)
        return lanes

    def _check_file(self, entry: Entry) -> None:
        limit = self._limits.max_file_bytes
        if limit and entry.size > limit:
            raise TooLarge(f"a file has more than {limit} bytes", limit=limit, part=entry.part.index)

    def _check_field(self, size: int, total: int) -> None:
        limits = self._limits
        if limits.max_field_bytes and size > limits.max_field_bytes:
            raise TooLarge(f"a field has more than {limits.max_field_bytes} bytes", limit=limits.max_field_bytes)
        if limits.max_fields_bytes and total > limits.max_fields_bytes:
            raise TooLarge(
                f"the fields have more than {limits.max_fields_bytes} bytes together", limit=limits.max_fields_bytes
            )

    # -- to the sinks

    async def _open(self, part: Part, lanes: Sequence[Lane]) -> list[Pipe]:
        """The long way: a slot, and per sink a pipe and a task at the other end of it."""
        await self._hand_over_batches()  # what came before must get there before
        await self._slots.acquire()
        pipes = [Pipe(lane.window) for lane in lanes]
        ends = [self._accepting.create_task(_accept(lane, part, pipe)) for lane, pipe in zip(lanes, pipes, strict=True)]
        left = len(ends)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._slots.release()

        for end in ends:
            end.add_done_callback(ended)
        return pipes

    async def _hand_over_batches(self) -> None:
        """The short way: what has gathered for a sink, in one task."""
        for lane in self._lanes.values():
            if not lane.batch:
                continue
            batch, size = lane.batch, lane.batch_bytes
            lane.batch, lane.batch_bytes = [], 0
            await lane.window.reserve(size)
            await self._slots.acquire()
            task = self._accepting.create_task(_accept_all(lane, batch, size))
            task.add_done_callback(lambda _: self._slots.release())

    def _watch_for_stalls(self) -> Callable[[], None]:
        """Rule 4. Returns what stops it."""
        limit = self._limits.stall_seconds
        if not limit:
            return lambda: None
        handle: asyncio.TimerHandle

        def look() -> None:
            nonlocal handle
            now = self._loop.time()
            oldest = now
            for lane in self._lanes.values():
                if not lane.window.owed:
                    continue
                oldest = min(oldest, lane.window.moved_at)
                if now - lane.window.moved_at >= limit:
                    stalled = _stalled(lane.name, limit)
                    try:
                        self._outer.create_task(stalled)
                    except RuntimeError:  # the group is failing already
                        stalled.close()
                    return
            handle = self._loop.call_later(max(oldest + limit - now, 0.01), look)

        handle = self._loop.call_later(limit, look)
        return lambda: handle.cancel()

    # -- the end

    async def _commit(self) -> None:
        """Rule 5."""
        keeper = next((lane for lane in self._lanes.values() if isinstance(lane.delivery, Keeper)), None)
        order = sorted(self._lanes.values(), key=lambda lane: (lane.stage, lane is keeper))
        for lane in order:
            if lane is keeper:
                assert isinstance(lane.delivery, Keeper)
                self._record(lane, lane.delivery.receipts())
                lane.delivery.keep_manifest(manifest_json(self.manifest))
            lane.window.begin_finishing()
            try:
                receipts = await _committing(lane)
            finally:
                lane.window.end_finishing()
            self.committed += receipts or [Receipt(index, lane.name) for index in lane.parts]
            if lane is not keeper:
                self._record(lane, receipts)

    def _record(self, lane: Lane, receipts: Sequence[Receipt]) -> None:
        """Into the manifest; a file that the sink took but says nothing of gets a plain receipt."""
        given = {receipt.part: receipt for receipt in receipts}
        for index in lane.parts:
            receipt = given.get(index) or Receipt(index, lane.name)
            self.manifest.entries[index].receipts.append(receipt)


async def _accept(lane: Lane, part: Part, pipe: Pipe) -> None:
    try:
        with _translated(lane.name):
            await lane.delivery.accept(part, pipe)
    finally:
        pipe.close()


async def _accept_all(lane: Lane, batch: list[tuple[Part, bytes]], size: int) -> None:
    assert lane.bulk is not None
    lane.window.begin_finishing()
    try:
        with _translated(lane.name):
            await lane.bulk.accept_all(batch)
    finally:
        lane.window.end_finishing()
        lane.window.release(size)


async def _committing(lane: Lane) -> list[Receipt]:
    with _translated(lane.name):
        return list(await lane.delivery.commit() or ())


async def _watching(lane: Lane) -> None:
    assert isinstance(lane.delivery, Watched)
    with _translated(lane.name):
        await lane.delivery.watch()


async def _stalled(name: str, limit: float) -> None:
    raise SinkTimeout(f"sink {name} took nothing for {limit:g} seconds", sink=name, limit=limit)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """A sink's errors as ours. What nobody expected is logged here, once, with its traceback."""
    try:
        yield
    except (GatewayError, Answered):
        raise
    except OSError as error:
        raise sink_fault(name, error) from error
    except Exception as error:
        log.exception("sink %s failed", name)
        raise SinkUnavailable(f"sink {name} failed", sink=name) from error


def _first(group: BaseExceptionGroup[BaseException]) -> Exception:
    """The error to tell: a destination's own answer before all else, then the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending = [*error.exceptions, *pending]
        else:
            leaves.append(error)
    for leaf in leaves:
        if isinstance(leaf, Answered):
            return leaf
    for leaf in leaves:
        if isinstance(leaf, Exception):
            return leaf
    raise leaves[0]


def _refused(answered: Answered) -> SinkFault:
    status = answered.response.status
    return SinkRefused(f"sink {answered.sink} answered {status}", sink=answered.sink, sink_status=status)


def _incomplete(error: Exception, committed: Sequence[Receipt]) -> Incomplete:
    if isinstance(error, Answered):
        error = _refused(error)
    detail = error.detail if isinstance(error, GatewayError) else "the upload failed"
    members = error.members if isinstance(error, GatewayError) else {}
    kept = [
        {"part": receipt.part, "sink": receipt.sink, "location": receipt.location, "status": receipt.status}
        for receipt in committed
    ]
    return Incomplete(detail, **{**members, "kept": kept})


def _answer(lanes: Mapping[str, Lane]) -> ClientResponse | None:
    for lane in lanes.values():
        answer = getattr(lane.delivery, "answer", None)
        if answer is not None:
            return answer()  # type: ignore[no-any-return]
    return None
