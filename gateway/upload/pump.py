"""Events -> lanes: the parts of one upload, in the order of the wire, looked at, counted and handed out.

One pump per upload reads. It waits for permits, for windows and for turns, never for a sink to finish a part:
part k+1 begins as soon as part k's bytes are in its pipes, or in the batch of the small ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gateway.concurrency.pipe import Pipe, add_chunk
from gateway.concurrency.tasks import start
from gateway.digests import BATCH_BYTES, Hasher, declared_digests
from gateway.errors import GatewayError
from gateway.model import Entry
from gateway.multipart.codec import Event, Kind
from gateway.upload.handover import Handover
from gateway.upload.keep_each import OF_ONE_PART, AllOrNothing
from gateway.upload.lanes import BULK_BYTES
from gateway.upload.part_digests import Declared, PartDigests
from gateway.upload.part_limits import PartLimits
from gateway.upload.plans import Plan, Plans
from gateway.upload.required_lane import RequiredLane

__all__ = ["Pump"]

_HOLD_SECONDS = 0.05
"""How long the beginning of a file may wait for the rest of it, to go the short way: not for a slow client."""


@dataclass(slots=True)
class CurrentPart:
    """The part that is being received, if it did not lie whole in one buffer."""

    entry: Entry
    declared: Declared
    plan: Plan | None = None
    """None of fields, and of what may yet be an empty file input."""
    held: list[bytes] = field(default_factory=list)
    """What was not handed on yet: it may soon be whole, and then goes the short way."""
    pipes: list[Pipe] | None = None
    """Where its bytes go; None: they are held."""
    hasher: Hasher | None = None


class Pump:
    """`entries` grows as parts come; `failures` says what it means that one fails."""

    def __init__(
        self,
        plans: Plans,
        digests: PartDigests,
        limits: PartLimits,
        handover: Handover,
        entries: list[Entry],
        failures: AllOrNothing,
    ) -> None:
        self._plans = plans
        self._digests = digests
        self._hashing = digests.hashing
        self._limits = limits
        self._handover = handover
        self._entries = entries
        self._failures = failures
        self._current: CurrentPart | None = None

    async def run(self, events: AsyncIterator[list[Event]]) -> None:
        """Until the end of the body. What was handed out may still be on its way when this returns."""
        if self._plans.wired is not None:
            await self._run_wire(events, self._plans.wired)
            return
        while True:
            current = self._current
            holds = current is not None and current.held and current.entry.part.is_file
            batch = await (self._patiently(events) if holds else anext(events, None))
            if batch is None:
                break
            await self._take(batch)
            current = self._current
            if current is None or current.pipes is None:  # else it was handed over before the part was opened
                await self._handover.hand_over()
        await self._hashing.finish()
        await self._handover.hand_over(at_once=True)

    async def take_all(self, body: list[Event]) -> None:
        """All of a body of small parts that go the short way: what each lane was to get is added to it."""
        await self._take(body)
        await self._hashing.finish()

    async def _patiently(self, events: AsyncIterator[list[Event]]) -> list[Event] | None:
        """The next batch, when something of a file is held: if the client takes its time, that goes ahead.

        Not the reading is done in a task, but the going ahead: it is rare, and the reading is not.
        """
        going_ahead: list[asyncio.Task[None]] = []

        def go_ahead() -> None:
            assert self._current is not None
            with contextlib.suppress(RuntimeError):  # the upload has failed, and its pump is about to be told
                going_ahead.append(start(self._handover.tasks, self._begin_long_way(self._current)))

        timer = asyncio.get_running_loop().call_later(_HOLD_SECONDS, go_ahead)
        try:
            batch = await anext(events, None)
        finally:
            timer.cancel()
        for task in going_ahead:
            await task
        return batch

    async def _run_wire(self, events: AsyncIterator[list[Event]], lane: RequiredLane) -> None:
        """The same for a sink that takes the wire: a buffer goes on when all that is in it was checked.

        What began with the closing delimiter is kept for the commit.
        """
        pipe, accept = lane.open_wire()
        start(self._handover.tasks, accept())
        tail: list[bytes] = []
        closed = False
        async for batch in events:
            await self._take(batch)
            checked: list[bytes] = []
            for event in batch:
                closed = closed or event.kind is Kind.CLOSE
                (tail if closed else checked).append(event.raw)
            if wire := b"".join(checked):
                await pipe.send(wire)
        await self._hashing.finish()
        lane.files += [entry.part.index for entry in self._entries if _is_file(entry)]
        lane.delivery.hold_wire(lane.files, b"".join(tail))
        pipe.finish()

    # -- events

    async def _take(self, batch: list[Event]) -> None:
        whole, data_of = Kind.WHOLE, Kind.DATA  # an attribute of an enumeration is dear, once per part
        for event in batch:
            kind = event.kind
            try:
                if kind is whole:
                    part = event.part
                    assert part is not None
                    entry = Entry(part, len(event.data))
                    self._entries.append(entry)
                    declared = declared_digests(part.own_headers) if part.own_headers else ()  # the usual have none
                    if (rest := self._take_whole(entry, event.data, declared)) is not None:
                        await self._send_whole(entry, rest, event.data)
                elif kind is data_of:
                    await self._take_data(event.data)
                elif kind is Kind.BEGIN:
                    await self._take_begin(event)
                elif kind is Kind.END:
                    await self._take_end()
            except OF_ONE_PART as error:
                await self._fail(error, event)
        have_come = len(self._entries) - (self._current is not None)
        if have_come > self._limits.counted:
            self._limits.check_told(self._entries, have_come)
        if self._hashing.waiting_bytes >= BATCH_BYTES:
            await self._hashing.submit()

    async def _fail(self, error: GatewayError, event: Event) -> None:
        """Nothing more of the part at hand is handed out, unless the upload fails with it; its digests are told."""
        entry, current = self._entries[-1], self._current
        self._failures.part_failed(entry, error, given=current is not None and current.pipes is not None)
        if current is None:
            if not entry.digests:
                self._digests.take_whole(entry, event.data)
            return
        if current.hasher is None:
            current.hasher = self._digests.begin(entry, current.declared)
        held, current.held = current.held, []
        for chunk in (*held, event.data):
            await self._hash(current, chunk)
        if event.kind is Kind.END:
            self._current = None

    async def _hash(self, current: CurrentPart, data: bytes) -> None:
        if current.hasher is not None:
            await self._hashing.give(current.hasher.update, data)

    # -- parts that lie whole in memory

    def _take_whole(self, entry: Entry, data: bytes, declared: Declared) -> Plan | None:
        """What of it has to go the long way; None: nothing."""
        part = entry.part
        if not part.is_file or (not data and part.raw_filename == b""):
            self._digests.take_whole(entry, data, declared)
            self._take_field(entry, data)
            return None
        if self._limits.max_file_bytes:  # a call for each of a hundred thousand parts is dear
            self._limits.check_file(entry)
        plan = self._plans.plan_for(part)
        self._digests.take_whole(entry, data, declared, plan.hashing)
        if plan.flows or len(data) > BULK_BYTES:
            return plan
        for lane in plan.lanes:
            if lane.takes_batches:
                lane.files.append(part.index)
                lane.add(part, data)
        return None if plan.is_short else Plan([lane for lane in plan.lanes if not lane.takes_batches])

    def _take_field(self, entry: Entry, data: bytes) -> None:
        """A field, or an empty file input: it needs no rule, is never stored, and goes to every relay."""
        if not entry.part.is_file:
            self._limits.check_field(len(data), whole=True)
            entry.raw_value, entry.value_truncated = self._limits.value_of(data)
        for lane in self._plans.relays:
            lane.add(entry.part, data)

    async def _send_whole(self, entry: Entry, plan: Plan, data: bytes) -> None:
        for pipe in await self._handover.open(entry, plan.lanes, plan.flows):
            if data:
                await pipe.send(data)
            pipe.finish()

    # -- parts that come in pieces

    async def _take_begin(self, event: Event) -> None:
        part = event.part
        assert part is not None
        entry = Entry(part)
        self._entries.append(entry)
        current = self._current = CurrentPart(entry, declared_digests(part.own_headers or ()))
        if part.is_file and part.raw_filename != b"":
            current.plan = self._plans.plan_for(part)
            if not current.plan.is_short:
                await self._begin_long_way(current)

    async def _take_data(self, data: bytes) -> None:
        current = self._current
        assert current is not None
        entry, limit = current.entry, self._limits.max_file_bytes
        entry.size += len(data)
        if entry.problem is not None:  # it is not kept, and told all the same
            await self._hash(current, data)
            return
        if not entry.part.is_file:
            self._limits.check_field(entry.size, whole=False)
            current.held.append(data)
            return
        if limit and entry.size > limit:
            self._limits.check_file(entry)
        if current.pipes is None:
            # It may soon be whole, and then goes the short way; or seem to be an empty file input, with bytes in it.
            current.plan = current.plan or self._plans.plan_for(entry.part)
            if entry.size <= BULK_BYTES and current.plan.is_short:
                add_chunk(current.held, data)
                return
            await self._begin_long_way(current)
        if current.hasher is not None:
            await self._hashing.give(current.hasher.update, data)
        assert current.pipes is not None
        for pipe in current.pipes:
            await pipe.send(data)

    async def _take_end(self) -> None:
        current = self._current
        assert current is not None
        entry = current.entry
        if current.pipes is None and entry.problem is None:
            data = b"".join(current.held)
            if (rest := self._take_whole(entry, data, current.declared)) is not None:
                await self._send_whole(entry, rest, data)
        elif current.pipes is not None and entry.problem is None:
            if current.declared and current.hasher is not None:  # first: what it refutes must not be finished anywhere
                await self._digests.verify(entry, current.hasher, current.declared)
            for pipe in current.pipes:
                pipe.finish()
        self._current = None

    async def _begin_long_way(self, current: CurrentPart) -> None:
        """Its first bytes, if any were held, go ahead."""
        entry, plan = current.entry, current.plan
        assert plan is not None
        current.hasher = self._digests.begin(entry, current.declared, plan.hashing)
        pipes = await self._handover.open(entry, plan.lanes, plan.flows)
        held, current.held = current.held, []
        for chunk in held:
            await self._hash(current, chunk)
            for pipe in pipes:
                await pipe.send(chunk)
        current.pipes = pipes


def _is_file(entry: Entry) -> bool:
    """An empty file input is none."""
    return entry.part.is_file and (entry.size > 0 or entry.part.raw_filename != b"")
