"""`keep = "each"`: what is wrong with one part is said of that part, and the others are kept.

1. A part fails by what it is (no rule takes it, it is too large, its bytes are not those declared), by a
   verdict or failure of its flows, or because a sink fails on it. What is wrong with the body as a whole,
   or with a sink as a whole, fails the upload as ever.
2. A part that failed is dropped by all its sinks: those at work on it are cancelled, and then each is told
   to forget it. One failure of a part is told, the first.
3. Its bytes that still come are counted, hashed and dropped.
4. Where small parts are handed over many at a time, the failure of such a batch is that of each part in it.
   Its parts may be at other sinks: those forget them before the commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from gateway.concurrency.pipe import Pipe
from gateway.concurrency.scope import Scope
from gateway.errors import DigestMismatch, GatewayError, InternalError, NoRoute, NotMultipart, TooLarge
from gateway.flows import Flow, FlowChain
from gateway.http.problems import problem_document
from gateway.model import Entry, Part
from gateway.multipart.codec import Event
from gateway.sinks import Answered, refused
from gateway.upload.besteffort import AnyLane
from gateway.upload.failures import first_error, forget_frames
from gateway.upload.flow_run import Passage
from gateway.upload.lanes import Lane
from gateway.upload.pump import Pump

__all__ = ["EachPump"]

_OF_ONE_PART = (NoRoute, NotMultipart, TooLarge, DigestMismatch)


class EachPump(Pump):
    """A pump that goes on where a part fails."""

    partial = False

    _scopes: dict[int, Scope]
    """Of the parts that are at work the long way, by index."""
    _given: list[Entry]
    """Those with a problem that some sink may have."""

    def begin(self) -> None:
        self._scopes, self._given = {}, []
        for lane in self._lanes.values():
            if isinstance(lane, Lane):
                lane.spare = self._batch_failed

    def _seeing(self, lanes: Iterable[AnyLane]) -> None:
        """Nobody: a sink that fails on a part does not show all of it, and its digest is told all the same."""

    async def settle(self) -> None:
        await super().settle()
        for entry in self._given:
            for lane in self._lanes.values():  # of the fields, too, and of empty file inputs
                if entry.part.index not in lane.forgotten:
                    await lane.drop(entry.part)

    def forgo(self, chain: FlowChain, error: GatewayError) -> bool:
        entry = self.entries[chain.file.index]
        if entry.problem is None:
            self._fail(entry, error)
        return True

    # -- events

    def _take_whole(self, entry: Entry, data: bytes) -> tuple[Sequence[AnyLane], Sequence[Flow]] | None:
        try:
            return super()._take_whole(entry, data)
        except _OF_ONE_PART as error:  # before any sink was given anything of it
            self._tell(entry, _about(error))
            self._declared = []
            if self._route.digests and not entry.digests:
                self._small.add(entry, data)
            return None

    async def _take_begin(self, event: Event) -> None:
        try:
            await super()._take_begin(event)
        except _OF_ONE_PART as error:
            self._tell(self.entries[-1], _about(error))
            self._begin_digest()

    async def _take_data(self, data: bytes) -> None:
        entry = self._entry
        assert entry is not None
        if entry.problem is None:
            try:
                await super()._take_data(data)
                return
            except _OF_ONE_PART as error:
                self._fail(entry, _about(error))
            held, self._held = self._held, []
            if self._pipes is None:
                self._begin_digest()
            self._pipes = None
        else:
            entry.size += len(data)
            held = []
        if self._digest is not None:
            for chunk in (*held, data):
                await self._digest.update(chunk)

    async def _take_end(self) -> None:
        entry = self._entry
        assert entry is not None
        if entry.problem is not None:
            self._entry = self._pipes = None
            self._declared = []
            if self._digest is not None:
                entry.digests = await self._digest.finish()
            return
        try:
            await super()._take_end()
        except _OF_ONE_PART as error:
            self._fail(entry, _about(error))

    # -- onwards

    def _open_lanes(self, entry: Entry, lanes: Sequence[AnyLane]) -> list[Pipe]:
        part = entry.part
        ends = [(lane, lane.pipe(part) if isinstance(lane, Lane) else lane.open(part)[0]) for lane in lanes]

        async def work() -> None:
            async with asyncio.TaskGroup() as accepting:
                for lane, pipe in ends:
                    if isinstance(lane, Lane):
                        accepting.create_task(lane.accept(part, pipe))

        self._scopes[part.index] = Scope()
        required = [pipe for lane, pipe in ends if isinstance(lane, Lane)]  # the others may still be read from
        seeing = self._see_through(entry, lanes, required, work)
        try:
            self._slots.give_back_after([self._tasks.create_task(seeing)])
        except RuntimeError:
            seeing.close()
            raise
        return [pipe for _, pipe in ends]

    def _start_flows(self, entry: Entry, lanes: Sequence[AnyLane], flows: Sequence[Flow]) -> Pipe:
        self._scopes[entry.part.index] = Scope()
        return super()._start_flows(entry, lanes, flows)

    async def _run_flows(self, passage: Passage) -> None:
        run = super()._run_flows
        try:
            await self._see_through(passage.entry, passage.lanes, [passage.inlet], lambda: run(passage))
        finally:
            self.flowing.pop(passage.chain, None)
            passage.end_turns()

    async def _see_through(
        self, entry: Entry, lanes: Sequence[AnyLane], pipes: Sequence[Pipe], work: Callable[[], Awaitable[None]]
    ) -> None:
        """One part to its sinks; if it fails, there or elsewhere, they forget it."""
        try:
            async with self._scopes[entry.part.index]:
                await work()
        except Exception as error:
            found = first_error(error)
            if isinstance(found, Answered):
                found = refused(found)
            if not isinstance(found, GatewayError) or isinstance(found, InternalError):
                raise
            self._tell(entry, found)
            self._given.append(entry)
            forget_frames(error)
        except BaseException as error:
            forget_frames(error)
            raise
        finally:
            del self._scopes[entry.part.index]
            for pipe in pipes:
                pipe.close()
        if entry.problem is not None:
            entry.output, entry.findings = None, {}
            await self._forget(entry.part, lanes)

    async def _forget(self, part: Part, lanes: Sequence[AnyLane]) -> None:
        for lane in lanes:
            await lane.drop(part)

    # -- failures

    def _fail(self, entry: Entry, error: GatewayError) -> None:
        """A part that sinks may have, or have a piece of."""
        self._tell(entry, error)
        self._given.append(entry)
        if (scope := self._scopes.get(entry.part.index)) is not None:
            scope.end()

    def _batch_failed(self, batch: Sequence[tuple[Part, bytes]], error: Exception) -> None:
        found = refused(error) if isinstance(error, Answered) else error
        if not isinstance(found, GatewayError):
            raise found
        for part, _ in batch:
            entry = self.entries[part.index]
            self._tell(entry, found)
            self._given.append(entry)

    def _tell(self, entry: Entry, error: GatewayError) -> None:
        self.partial = True
        if entry.problem is None:
            entry.problem = problem_document(error)


def _about(error: GatewayError) -> GatewayError:
    """The error, if it is about one part; of the limits on fields all parts are guilty."""
    if "part" not in error.members:
        raise error
    return error
