"""Events -> lanes: the parts of one upload, in the order of the wire, looked at, counted and handed out.

One pump per upload reads. It waits for slots, for windows and for turns, never for a sink to finish a part:
part k+1 begins as soon as part k's bytes are in its pipes, or in the batch of the small ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from gateway.concurrency.pipe import Pipe, Progress, add_chunk
from gateway.digests import (
    TINY_BYTES,
    DigestsBeside,
    PartDigest,
    SmallDigests,
    declared_digests,
    digest_of,
    verify,
)
from gateway.errors import GatewayError, NoRoute, NotMultipart, TooLarge
from gateway.flows import Flow, FlowChain
from gateway.model import Entry, Limits, Part, text
from gateway.multipart.codec import Event, Kind
from gateway.upload.besteffort import AnyLane
from gateway.upload.failures import forget_frames
from gateway.upload.flow_run import Passage
from gateway.upload.lanes import BULK_BYTES, Lane, Slots
from gateway.upload.routes import Match, Route, Rule

__all__ = ["Pump"]

_HOLD_SECONDS = 0.05
"""How long the beginning of a file may wait for the rest of it, to go the short way: not for a slow client."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the files of a rule go, and through what."""

    lanes: Sequence[AnyLane] = ()
    flows: Sequence[Flow] = ()
    is_short: bool = False
    """Whether small ones can go the short way to all of them."""
    is_seen: bool = False
    """Whether one of them has the bytes in a thread anyway, and shows them to who computes the digests."""


class Pump:
    """`entries` grows as parts come; `flowing` are the chains that are at work, for whoever watches stalls."""

    partial = False
    """Whether a part failed, and the others are kept."""

    def __init__(
        self,
        route: Route,
        lanes: Mapping[str, AnyLane],
        flows: Mapping[str, Flow],
        limits: Limits,
        executor: Executor,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.entries: list[Entry] = []
        self.flowing: dict[FlowChain, Progress] = {}
        self._route = route
        self._lanes = lanes
        self._wired = next((lane for lane in lanes.values() if isinstance(lane, Lane) and lane.is_wired), None)
        """Gets the bytes as they came: the parts are looked at, counted and checked, and go nowhere."""
        self._relays = [lane for lane in lanes.values() if lane.is_relay and self._wired is None]
        self._digests = DigestsBeside(route.digests)
        seeing = self._seeing(lanes.values())
        self._plans = {
            id(rule): _plan(rule, lanes, flows, seeing) if self._wired is None else _Plan() for rule in route.rules
        }
        first = route.rules[0] if route.rules else None
        self._only_plan = self._plans[id(first)] if first is not None and first.match == Match() else None
        self._limits = limits
        self._executor = executor
        self._tasks = tasks
        self._slots = Slots(limits.parallel_parts)
        self._small = SmallDigests(route.digests, executor)
        self._passages: list[Passage] = []
        self._fields_bytes = 0
        # whether we wait for the client, for how many batches of events we have, and what looks at that
        self._waiting = False
        self._batches = 0
        self._timer: asyncio.TimerHandle | None = None
        # the part that is being received, if it did not lie whole in one buffer
        self._entry: Entry | None = None
        self._held: list[bytes] = []
        self._pipes: list[Pipe] | None = None
        self._digest: PartDigest | None = None
        self._declared: list[tuple[str, str]] = []
        self.begin()

    def begin(self) -> None:
        """A hook for what else there is to keep."""

    def _seeing(self, lanes: Iterable[AnyLane]) -> AnyLane | None:
        """Who shows its bytes to us, once for all, so that they need not be taken to a thread twice."""
        if not self._route.digests:
            return None
        return next((lane for lane in lanes if isinstance(lane, Lane) and lane.let_see(self._digests.see)), None)

    async def settle(self) -> None:
        """All accepts have returned: what there is to do before the sinks may commit."""
        self._digests.settle()
        for passage in self._passages:
            passage.settle()

    def forgo(self, chain: FlowChain, error: GatewayError) -> bool:
        """Whether the upload goes on without a part that its flows have stalled on."""
        return False

    async def run(self, events: AsyncIterator[list[Event]]) -> None:
        """Until the end of the body. What was handed out may still be on its way when this returns."""
        if self._wired is not None:
            await self._run_wire(events, self._wired)
            return
        try:
            async for batch in events:
                self._batches += 1
                self._waiting = False
                await self._take(batch)
                if self._small.full:
                    await self._small.submit()
                for lane in self._lanes.values():
                    await lane.hand_over(self._tasks, self._slots)
                self._waiting = True
                if self._held and self._timer is None:
                    self._let_go_later()
        finally:
            if self._timer is not None:
                self._timer.cancel()
        await self._small.finish()
        await self._hand_over_batches()

    async def _run_wire(self, events: AsyncIterator[list[Event]], lane: Lane) -> None:
        """The same for a sink that takes the wire: a buffer goes on when all that is in it was checked.

        What began with the closing delimiter is kept for the commit.
        """
        pipe = lane.open_wire(self._tasks)
        tail: list[bytes] = []
        closed = False
        async for batch in events:
            await self._take(batch)
            if self._small.full:
                await self._small.submit()
            checked: list[bytes] = []
            for event in batch:
                closed = closed or event.kind is Kind.CLOSE
                (tail if closed else checked).append(event.raw)
            if wire := b"".join(checked):
                await pipe.send(wire)
        await self._small.finish()
        lane.files += [entry.part.index for entry in self.entries if _is_file(entry)]
        lane.hold_wire(b"".join(tail))
        pipe.finish()

    # -- events

    async def _take(self, batch: list[Event]) -> None:
        whole, data_of = Kind.WHOLE, Kind.DATA  # an attribute of an enumeration is dear, once per part
        for event in batch:
            kind = event.kind
            if kind is whole:
                part, data = event.part, event.data
                assert part is not None
                entry = Entry(part, len(data))
                self.entries.append(entry)
                if part.own_headers:  # the usual ones declare nothing
                    self._declared = declared_digests(part.own_headers)
                if (lanes := self._take_whole(entry, data)) is not None:
                    await self._send_whole(entry, *lanes, data)
            elif kind is data_of:
                await self._take_data(event.data)
            elif kind is Kind.BEGIN:
                await self._take_begin(event)
            elif kind is Kind.END:
                await self._take_end()

    def _take_whole(self, entry: Entry, data: bytes) -> tuple[Sequence[AnyLane], Sequence[Flow]] | None:
        """What of a part that lies whole in memory has to go the long way; None: nothing."""
        part = entry.part
        if part.is_file and self._limits.max_file_bytes:
            self._check_file(entry)
        if not part.is_file or (not data and part.raw_filename == b""):
            self._digest_whole(entry, data)
            self._take_field(entry, data)
            return None
        plan = self._plan_for(part)
        self._digest_whole(entry, data, is_seen=plan.is_seen)
        if plan.flows or len(data) > BULK_BYTES:
            return plan.lanes, plan.flows
        for lane in plan.lanes:
            if lane.takes_batches:
                lane.files.append(part.index)
                lane.add(part, data)
        return None if plan.is_short else ([lane for lane in plan.lanes if not lane.takes_batches], plan.flows)

    def _digest_whole(self, entry: Entry, data: bytes, *, is_seen: bool = False) -> None:
        if self._declared:  # before anybody is given what it may refute
            entry.digests = digest_of(data, self._algorithms(self._declared))
            entry.verified = verify(self._declared, entry.digests, part=entry.part.index)
            self._declared = []
        elif self._route.digests:
            if is_seen and len(data) > TINY_BYTES:
                self._digests.expect_whole(entry)
            else:
                self._small.add(entry, data)

    async def _send_whole(self, entry: Entry, lanes: Sequence[AnyLane], flows: Sequence[Flow], data: bytes) -> None:
        for pipe in await self._open(entry, lanes, flows):
            if data:
                await pipe.send(data)
            pipe.finish()

    async def _take_begin(self, event: Event) -> None:
        assert event.part is not None
        entry = self._entry = Entry(event.part)
        self.entries.append(entry)
        self._held = []
        self._declared = declared_digests(entry.part.own_headers or ())
        if entry.part.is_file and entry.part.raw_filename != b"" and not self._plan_for(entry.part).is_short:
            await self._begin_long_way(entry)

    async def _take_data(self, data: bytes) -> None:
        entry = self._entry
        assert entry is not None
        entry.size += len(data)
        if not entry.part.is_file:
            self._check_field(entry.size, self._fields_bytes + entry.size)
            self._held.append(data)
            return
        self._check_file(entry)
        if self._pipes is None:
            # It may soon be whole, and then goes the short way; or seem to be an empty file input, with bytes in it.
            if entry.size <= BULK_BYTES and self._plan_for(entry.part).is_short:
                add_chunk(self._held, data)
                return
            await self._begin_long_way(entry)
        if self._digest is not None:
            await self._digest.update(data)
        assert self._pipes is not None
        for pipe in self._pipes:
            await pipe.send(data)

    async def _take_end(self) -> None:
        entry, self._entry = self._entry, None
        assert entry is not None
        pipes, self._pipes = self._pipes, None
        if pipes is None:
            data, self._held = b"".join(self._held), []
            if (lanes := self._take_whole(entry, data)) is not None:
                await self._send_whole(entry, *lanes, data)
            return
        declared, self._declared = self._declared, []
        # The digest first: what it refutes must not be finished anywhere.
        if self._digest is not None:
            entry.digests = await self._digest.finish()
            entry.verified = verify(declared, entry.digests, part=entry.part.index)
        for pipe in pipes:
            pipe.finish()

    async def _begin_long_way(self, entry: Entry) -> None:
        """Its first bytes, if any were held, go ahead."""
        plan = self._plan_for(entry.part)
        self._begin_digest(is_seen=plan.is_seen)
        self._pipes = await self._open(entry, plan.lanes, plan.flows)
        held, self._held = self._held, []
        for chunk in held:
            if self._digest is not None:
                await self._digest.update(chunk)
            for pipe in self._pipes:
                await pipe.send(chunk)

    def _begin_digest(self, *, is_seen: bool = False) -> None:
        algorithms = self._algorithms(self._declared)
        self._digest = None
        if is_seen and not self._declared:
            assert self._entry is not None
            self._digests.expect(self._entry)
        elif algorithms:
            self._digest = PartDigest(algorithms, self._executor)

    # -- slow clients

    def _let_go_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_HOLD_SECONDS, self._let_go, self._batches)

    def _let_go(self, batches: int) -> None:
        """If nothing came since: what is held of a file begins its long way, unless somebody has to be waited for."""
        self._timer = None
        entry = self._entry
        if entry is None or not entry.part.is_file or not self._held:
            return
        if not self._waiting or batches != self._batches:
            self._let_go_later()
            return
        plan = self._plan_for(entry.part)
        left = [lane for lane in self._lanes.values() if not lane.hand_over_now(self._tasks, self._slots)]
        if left or any(lane.turn_is_pending for lane in plan.lanes) or not self._slots.take_now():
            self._let_go_later()
            return
        held, self._held = b"".join(self._held), []
        self._begin_digest(is_seen=plan.is_seen)
        if self._digest is not None:
            self._digest.add(held)
        try:
            self._pipes = self._open_lanes(entry, plan.lanes)
        except RuntimeError:  # the upload has failed, and its pump is about to be told
            return
        for pipe in self._pipes:
            pipe.put(held)

    def _take_field(self, entry: Entry, data: bytes) -> None:
        """A field, or an empty file input: it needs no rule, is never stored, and goes to every relay."""
        if not entry.part.is_file:
            self._fields_bytes += len(data)
            self._check_field(len(data), self._fields_bytes)
            try:
                entry.value = data.decode()
            except UnicodeDecodeError:
                entry.value = None
        for lane in self._relays:
            lane.add(entry.part, data)

    # -- rules and limits

    def _algorithms(self, declared: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        if not declared:
            return self._route.digests
        return tuple(dict.fromkeys([*self._route.digests, *(algorithm for algorithm, _ in declared)]))

    def _plan_for(self, part: Part) -> _Plan:
        """Where a file goes. Raises NoRoute, NotMultipart."""
        plan = self._only_plan
        if plan is None:
            rule = self._route.rule_for(part)
            if rule is None:
                raise NoRoute("no rule takes this file", part=part.index)
            plan = self._plans[id(rule)]
        if plan.flows and part.own_headers and (encodings := part.encodings):
            name, value = encodings[0]  # what looks at content is not shown an encoding of it
            detail = f"a file with {text(name).title()}: {text(value)} is not taken here"
            raise NotMultipart(detail, part=part.index)
        return plan

    def _check_file(self, entry: Entry) -> None:
        limit = self._limits.max_file_bytes
        if limit and entry.size > limit:
            raise TooLarge(f"a file has more than {limit} bytes", limit=limit, part=entry.part.index)

    def _check_field(self, size: int, total: int) -> None:
        each, together = self._limits.max_field_bytes, self._limits.max_fields_bytes
        if each and size > each:
            raise TooLarge(f"a field has more than {each} bytes", limit=each)
        if together and total > together:
            raise TooLarge(f"the fields have more than {together} bytes together", limit=together)

    # -- onwards

    async def _hand_over_batches(self) -> None:
        for lane in self._lanes.values():
            await lane.hand_over(self._tasks, self._slots, at_once=True)

    async def _open(self, entry: Entry, lanes: Sequence[AnyLane], flows: Sequence[Flow]) -> list[Pipe]:
        """The long way: a slot, and where to send the bytes."""
        if not lanes:
            return []
        await self._hand_over_batches()  # what came before must get there before
        if flows:
            await self._slots.take()
            return [self._start_flows(entry, lanes, flows)]
        for lane in lanes:
            await lane.wait_for_turn()
        await self._slots.take()
        return self._open_lanes(entry, lanes)

    def _open_lanes(self, entry: Entry, lanes: Sequence[AnyLane]) -> list[Pipe]:
        """Pipes for a part that has a slot."""
        ends = [lane.open(entry.part, self._tasks) for lane in lanes]
        self._slots.give_back_after([task for _, task in ends if task is not None])
        return [pipe for pipe, _ in ends]

    def _start_flows(self, entry: Entry, lanes: Sequence[AnyLane], flows: Sequence[Flow]) -> Pipe:
        passage = Passage(entry, flows, lanes, self._limits.window_bytes)
        self.flowing[passage.chain] = passage.progress
        self._passages.append(passage)
        self._slots.give_back_after([self._tasks.create_task(self._run_flows(passage))])
        return passage.inlet

    async def _run_flows(self, passage: Passage) -> None:
        try:
            await passage.run(
                hashing="sha256" in self._route.digests,
                executor=self._executor,
                through=lambda: self.flowing.pop(passage.chain),
            )
        except BaseException as error:
            forget_frames(error)
            raise


def _plan(rule: Rule, lanes: Mapping[str, AnyLane], flows: Mapping[str, Flow], seeing: AnyLane | None) -> _Plan:
    mine, through = [lanes[name] for name in rule.sinks], [flows[name] for name in rule.flows]
    is_short = not through and all(lane.takes_batches for lane in mine)
    return _Plan(mine, through, is_short, not through and seeing in mine)


def _is_file(entry: Entry) -> bool:
    """An empty file input is none."""
    return entry.part.is_file and (entry.size > 0 or entry.part.raw_filename != b"")
