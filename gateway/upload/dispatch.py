"""Parts -> flows -> sinks, concurrently; all or nothing.

The theory, for this is Akka's `mapAsync` with the traps taken out:

1. Parts are serial on the wire, so one pump reads them. Part k+1 begins as soon as part k's bytes are
   in its pipes, while its flows and sinks still work, write, fsync or wait. `parallel_parts` bounds how
   many are open: a slot is taken per part, not per (part, sink).
2. Everybody waits only for those behind them: the pump for pipes, flows for the pipes of sinks, sinks
   for nothing of ours. So there is no circle, and one of them ends by itself, or stalls. Relays, which
   keep the order of the wire, are the one place where parts wait for each other: in that order, and
   before anything of the later one was sent.
3. *A stall* is a sink's, or a flow's, when the next move is theirs: they have bytes that they did not
   take, or a whole part that they did not finish. If they do not move for `stall_seconds`, that is a
   SinkTimeout, or FlowStalled. A flow that waits for a sink is excused. Waiting for the client is the
   intake's business.
4. *The end.* Only when the body was read to its end and every accept has returned, commits begin:
   relays, then others, then stores; the keeper of the manifest is last of all (commits.py). Everything before the
   first commit that succeeds can be undone by doing nothing; a failure after it is Incomplete.
5. *Best effort.* Such a sink lives beside all this (besteffort.py): nothing here waits for it, but for its
   `lag_seconds` after the last required commit, when it may commit, too. The keeper has published by then,
   so its manifest takes who is not done for `late`, and is replaced once by what became of them. If the
   power goes in between, or replacing fails, the manifest claims too little, never too much; the answer
   is always the one that is stored.
6. *The straight road.* A body that is whole in memory before a sink is opened, and goes through no flow and to no
   destination that takes parts in their order, is one batch: parsed, looked at and hashed where it is, given to each
   sink in one call, committed. The rules are the same, and so is the code; what is for waiting (tasks that accept,
   pipes, windows, permits, turns) is left out.
7. *Every way out is the same.* Whatever fails cancels the rest (TaskGroup), and leaves the deliveries'
   contexts without a commit, which keeps nothing. The first error is the one that is told; what goes wrong
   in leaving is only logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import cached_property, partial

from aiohttp import ClientResponse

from gateway.errors import SinkTimeout
from gateway.flows import Flow
from gateway.manifest import ManifestText
from gateway.model import Limits, Manifest, Part, Upload
from gateway.multipart.codec import Event, Kind
from gateway.sinks import Answered, Delivery, Sink, refused
from gateway.sinks.store import manifest_keeper
from gateway.upload.besteffort import BestEffortLane
from gateway.upload.commits import Commits, Locating
from gateway.upload.failures import first_error, forget_frames, forget_frames_on_exit, leave_quietly, translated
from gateway.upload.handover import Handover
from gateway.upload.keep_each import AllOrNothing, KeepEach
from gateway.upload.lanes import BULK_BYTES, Lane
from gateway.upload.part_digests import PartDigests
from gateway.upload.part_limits import PartLimits
from gateway.upload.plans import Plans, rule_for
from gateway.upload.progress import UploadProgress
from gateway.upload.pump import Pump
from gateway.upload.required_lane import RequiredLane
from gateway.upload.routes import Route
from gateway.upload.stalls import StallWatch
from gateway.upload.timeline import Timeline

__all__ = ["Dispatcher", "Outcome"]


@dataclass(slots=True)
class Outcome:
    """What became of an upload that succeeded, or that a destination answered in our stead."""

    manifest: Manifest
    told: bytes | None = None
    """The manifest as JSON; None where the client is told the destination's answer, and no store keeps it."""
    is_stored: bool = False
    """Whether it can be fetched again."""
    answer: ClientResponse | None = None
    """The response of the destination that answers the client, to be streamed before the stack is left."""
    read_seconds: float | None = None
    """How long its bytes may be waited for; None is as long as a sink may stall."""


@dataclass(frozen=True)
class Dispatcher:
    """Takes the uploads of one route to its sinks. What all of them share is here."""

    route: Route
    sinks: Mapping[str, Sink]
    """At least those of the route, by name; flows likewise."""
    flows: Mapping[str, Flow]
    limits: Limits
    executor: Executor
    """For hashing."""
    locate: Locating

    @cached_property
    def takes_wire(self) -> bool:
        """Whether a sink of the route may want the bytes as they came, so that they have to be kept."""
        return self.route.kind == "opaque" or any(self.sinks[name].takes_wire for name in self.route.sinks)

    def admit(self, upload: Upload, raw: Part | None) -> None:
        """Raise what this upload is refused with before its body is asked for: by a required sink, or because no rule
        takes the one file that it is (`raw`; None for a form).
        """
        if raw is not None and not self.route.keep_each:  # there it is what happened to that part
            rule_for(self.route, raw)
        for name in self.route.sinks:
            if name not in self.route.best_effort:
                self.sinks[name].admit(upload)

    async def dispatch(
        self,
        upload: Upload,
        events: AsyncIterator[list[Event]],
        stack: AsyncExitStack,
        progress: UploadProgress,
        *,
        is_here: bool = False,
        timeline: Timeline | None = None,
    ) -> Outcome:
        """Take one body to its sinks and commit it. `stack` holds the deliveries: when it is left, what was not
        committed is undone, and a destination's answer can no longer be read. `progress` is told of the parts and the
        sinks, and `timeline` of when it did what, whatever becomes of the upload. `is_here`: no event has to be waited
        for. Raises the leaves of errors.
        """
        route, limits = self.route, self.limits
        timeline = timeline or Timeline()
        stack.push(forget_frames_on_exit)
        body = await _gathered(events) if is_here and self._may_be_straight else None
        manifest = Manifest(upload.id, [], upload.identity, upload.metadata)
        failures = KeepEach(manifest) if route.keep_each else AllOrNothing()
        required = [await self._opened(name, upload, failures, stack, timeline) for name in route.required]
        best_effort = self._best_effort(timeline)
        lanes: list[Lane] = [*required, *best_effort]
        progress.follow(manifest.entries, lanes)
        straight = body is not None and _is_small(body) and not any(_takes_turns(lane) for lane in required)
        wired = next((lane for lane in required if lane.delivery.takes_wire), None)
        plans = Plans(route, lanes, self.flows, wired, sinks_hash=not straight and not route.keep_each)
        digests = PartDigests(route.digests, self.executor)
        sinks, text = self._of_route, self._manifest_text(manifest)
        commits = Commits(manifest, sinks, self._keeper, required, best_effort, self.locate, text, self.executor)
        try:
            async with asyncio.TaskGroup() as outer:
                watching = [outer.create_task(lane.watch()) for lane in required if lane.delivery.is_watched]
                lives = [outer.create_task(lane.live(sinks[lane.name], upload)) for lane in best_effort]
                handover = Handover(lanes, digests, limits, failures)
                pump = Pump(plans, digests, PartLimits(limits), handover, manifest.entries, failures)
                watch = StallWatch(required, handover.flowing, failures, limits.stall_seconds, outer)
                stack.callback(watch.stop)
                if straight and body is not None:
                    await pump.take_all(body)
                    timeline.arrive()
                    for one in required:
                        await one.take_only(is_alone=len(lanes) == 1 and not route.keep_each)
                else:
                    async with asyncio.TaskGroup() as handover.tasks:
                        await pump.run(events if body is None else _one(body))
                        timeline.arrive()
                digests.settle()
                await handover.settle()
                for lane in best_effort:
                    lane.end()
                await commits.commit()
                for task in watching:
                    task.cancel()
                if best_effort:
                    await commits.end_best_effort(lives, limits.stall_seconds)
                watch.stop()
            answer = self._answer(required)
            if answer is None:
                await commits.tell()
        except BaseExceptionGroup as group:
            answer = self._answer_in(group, commits)
            forget_frames(group)
        if answer is None:
            return Outcome(manifest, commits.told, commits.stores)
        name, response = answer
        timeline.answered = name
        read_seconds = next(lane.delivery.read_seconds for lane in required if lane.name == name)
        return Outcome(manifest, commits.told, commits.stores, response, read_seconds)

    @cached_property
    def _may_be_straight(self) -> bool:
        """Whether nothing but the size of a body is against the straight road."""
        return not self.takes_wire and not any(rule.flows for rule in self.route.rules)

    @cached_property
    def _of_route(self) -> Mapping[str, Sink]:
        """The sinks of the route, in its order."""
        return {name: self.sinks[name] for name in self.route.sinks}

    @cached_property
    def _keeper(self) -> str | None:
        """The sink that keeps the manifest."""
        return manifest_keeper(self._of_route, self._of_route)

    def _manifest_text(self, manifest: Manifest) -> ManifestText:
        """Of any size where it may be that nobody is told."""
        is_told = not self.route.passes_answers or self._keeper is not None
        return ManifestText(manifest, sinks=self.route.sinks, limit=self.limits.max_manifest_bytes if is_told else 0)

    def _answer(self, required: Sequence[RequiredLane]) -> tuple[str, ClientResponse] | None:
        """(sink, its answer) of the destination whose answer is the client's, after all have committed."""
        if self.route.passes_answers:
            for lane in required:
                if self.route.answer in (None, lane.name) and (response := lane.delivery.answer()) is not None:
                    return lane.name, response
        return None

    def _answer_in(self, group: BaseExceptionGroup[BaseException], commits: Commits) -> tuple[str, ClientResponse]:
        """The same where the answer is what ended the upload; else raise what did."""
        route, error = self.route, first_error(group, self.route.answer)
        if commits.anything:
            raise commits.incomplete(error) from error
        if not isinstance(error, Answered):
            raise error from None
        if route.answer not in (None, error.sink) or not route.passes_answers:
            raise refused(error) from None
        return error.sink, error.response

    def _best_effort(self, timeline: Timeline) -> list[BestEffortLane]:
        terms, parallel = self.route.best_effort, self.limits.parallel_parts
        of_route = [(name, self.sinks[name].stage) for name in self.route.sinks if name in terms]
        return [BestEffortLane(name, stage, terms[name], parallel, timeline.opening(name)) for name, stage in of_route]

    async def _opened(
        self, name: str, upload: Upload, failures: AllOrNothing, stack: AsyncExitStack, timeline: Timeline
    ) -> RequiredLane:
        sink, times = self.sinks[name], timeline.opening(name)
        with translated(name):
            context = sink.open(upload)
            delivery = await (context.__aenter__() if sink.opens_at_once else self._in_time(name, context))
            stack.push_async_exit(partial(leave_quietly, name, context))
            if not isinstance(delivery, Delivery):
                raise TypeError(f"sink {name} opened {delivery!r}, which is no gateway.sinks.Delivery")
        return RequiredLane(name, sink.stage, delivery, self.limits.window_bytes, failures.batch_failed, times)

    async def _in_time(self, name: str, context: AbstractAsyncContextManager[Delivery]) -> Delivery:
        stall_seconds = self.limits.stall_seconds
        try:
            async with asyncio.timeout(stall_seconds or None) as clock:
                return await context.__aenter__()
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise SinkTimeout(f"sink {name} did not open in {stall_seconds:g} s", sink=name) from error


async def _gathered(events: AsyncIterator[list[Event]]) -> list[Event]:
    """All of a body; what comes in pieces of a part, as that of a raw body does, is joined."""
    body: list[Event] = []
    part, pieces = None, list[bytes]()
    async for batch in events:
        for event in batch:
            if event.kind is Kind.BEGIN:
                part, pieces = event.part, []
            elif event.kind is Kind.DATA:
                pieces.append(event.data)
            else:
                body.append(event if event.kind is not Kind.END else Event(Kind.WHOLE, part, b"".join(pieces)))
    return body


async def _one(batch: list[Event]) -> AsyncIterator[list[Event]]:
    yield batch


def _takes_turns(lane: RequiredLane) -> bool:
    """Whether its parts go one by one, or something runs beside them that has to get its turn before the end: what a
    destination says to the first bytes is heard before the last ones are sent.
    """
    return not lane.takes_batches or lane.delivery.is_watched


def _is_small(body: Sequence[Event]) -> bool:
    """Whether each of its parts is whole, and small."""
    short = (Kind.WHOLE, Kind.CLOSE)
    return all(event.kind in short and len(event.data) <= BULK_BYTES for event in body)
