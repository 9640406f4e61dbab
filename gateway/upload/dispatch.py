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
   relays, then others, then disks; the keeper of the manifest is last of all. Everything before the
   first commit that succeeds can be undone by doing nothing; a failure after it is Incomplete.
5. *Best effort.* Such a sink lives beside all this (besteffort.py): nothing here waits for it, but for its
   `lag_seconds` after the last required commit, when it may commit, too. The keeper has published by then,
   so its manifest takes who is not done for `late`, and is replaced once by what became of them. If the
   power goes in between, or replacing fails, the manifest claims too little, never too much; the answer
   is always the one that is stored.
6. *Every way out is the same.* Whatever fails cancels the rest (TaskGroup), and leaves the deliveries'
   contexts without a commit, which keeps nothing. The first error is the one that is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from aiohttp import ClientResponse

from gateway.errors import GatewayError, Incomplete, SinkTimeout
from gateway.flows import Flow
from gateway.manifest import manifest_json
from gateway.model import Limits, Manifest, Receipt, Upload
from gateway.multipart.codec import Event
from gateway.sinks import Answered, Delivery, Sink, refused
from gateway.upload.besteffort import AnyLane, BestEffortLane
from gateway.upload.failures import first_error, forget_frames, translated
from gateway.upload.keep_each import EachPump
from gateway.upload.lanes import Lane
from gateway.upload.pump import Pump
from gateway.upload.routes import Route
from gateway.upload.stalls import StallWatch

__all__ = ["Outcome", "dispatch", "refuse_on_headers", "takes_wire"]

log = logging.getLogger("gateway.dispatch")


@dataclass(slots=True)
class Outcome:
    """What became of an upload that succeeded, or that a destination answered in our stead."""

    manifest: Manifest
    kept: bytes | None = None
    """The manifest as it was stored; None where the route has no disk sink."""
    answer: ClientResponse | None = None
    """The response of the destination that answers the client, to be streamed before the stack is left."""
    read_seconds: float | None = None
    """How long its bytes may be waited for; None is as long as a sink may stall."""
    sink_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def location(self) -> str | None:
        return None if self.kept is None else f"/uploads/{self.manifest.upload}"


async def dispatch(
    upload: Upload,
    events: AsyncIterator[list[Event]],
    route: Route,
    sinks: Mapping[str, Sink],
    flows: Mapping[str, Flow],
    limits: Limits,
    executor: Executor,
    stack: AsyncExitStack,
    dropped: dict[str, str] | None = None,
) -> Outcome:
    """Take one body to its sinks and commit it. `stack` holds the deliveries: when it is left, what was not
    committed is undone, and a destination's answer can no longer be read. Into `dropped` go the best-effort
    sinks that were, and why. Raises the leaves of errors.
    """
    try:
        return await _dispatched(
            upload, events, route, sinks, flows, limits, executor, stack, {} if dropped is None else dropped
        )
    except BaseException as error:
        forget_frames(error)
        raise


async def _dispatched(
    upload: Upload,
    events: AsyncIterator[list[Event]],
    route: Route,
    sinks: Mapping[str, Sink],
    flows: Mapping[str, Flow],
    limits: Limits,
    executor: Executor,
    stack: AsyncExitStack,
    dropped: dict[str, str],
) -> Outcome:
    lanes: list[Lane] = []
    spares: list[BestEffortLane] = []
    for name in route.sinks:
        stage = sinks[name].stage
        if (terms := route.best_effort.get(name)) is not None:
            spares.append(BestEffortLane(name, stage, terms, limits.parallel_parts))
        else:
            delivery = await _opened(name, sinks[name], upload, limits.stall_seconds, stack)
            lanes.append(Lane(name, stage, delivery, limits.window_bytes))
    manifest, kept = Manifest(upload.id, []), Kept()
    ways: dict[str, AnyLane] = {lane.name: lane for lane in lanes} | {spare.name: spare for spare in spares}
    record = _Record(manifest, route, sinks)
    answer: ClientResponse | None = None
    read_seconds: float | None = None
    try:
        async with asyncio.TaskGroup() as outer:
            watching = [outer.create_task(lane.watch()) for lane in lanes if lane.is_watched]
            lives = [outer.create_task(lane.live(sinks[lane.name], upload)) for lane in spares]
            async with asyncio.TaskGroup() as accepting:
                make = EachPump if route.keep_each else Pump
                pump = make(route, ways, flows, limits, executor, accepting)
                manifest.entries = pump.entries
                watch = StallWatch(lanes, pump, limits.stall_seconds, outer)
                stack.callback(watch.stop)
                await pump.run(events)
            await pump.settle()
            manifest.partial = pump.partial
            for spare in spares:
                spare.end()
            await _commit(lanes, spares, record, manifest, kept)
            for task in watching:
                task.cancel()
            if spares:
                await _end_best_effort(lanes, spares, lives, limits.stall_seconds, record, manifest, kept)
            watch.stop()
    except BaseExceptionGroup as group:
        error = first_error(group, route.answer)
        if kept.anything:
            raise _incomplete(error, kept.receipts) from error
        if not isinstance(error, Answered):
            raise error from None
        if route.answer not in (None, error.sink) or not route.passes_answers:
            raise refused(error) from None
        answer = error.response
        read_seconds = next((lane.read_seconds for lane in lanes if lane.name == error.sink), None)
        forget_frames(group)
        del error
    else:
        if route.passes_answers:
            for lane in lanes:
                if answer is None and route.answer in (None, lane.name):
                    answer, read_seconds = lane.answer(), lane.read_seconds
    finally:
        dropped.update({spare.name: spare.dropped for spare in spares if spare.dropped is not None})
        for lane in lanes:
            lane.spare = None  # whoever it calls holds the lane, too
    sink_bytes = {name: lane.progress.total for name, lane in ways.items()}
    return Outcome(manifest, kept.manifest, answer, read_seconds, sink_bytes)


def refuse_on_headers(upload: Upload, route: Route, sinks: Mapping[str, Sink]) -> None:
    """Raise what a sink of the route refuses this upload with before its body is asked for."""
    for name in route.sinks:
        if name not in route.best_effort:
            sinks[name].admit(upload)


def takes_wire(route: Route, sinks: Mapping[str, Sink]) -> bool:
    """Whether the route's sink gets the bytes as they came, so that they have to be kept."""
    return route.kind == "opaque" or any(sinks[name].takes_wire for name in route.sinks)


@dataclass(slots=True)
class Kept:
    """What has been committed, and so stays whatever comes."""

    anything: bool = False
    """Receipts may be none although there was a commit: a relay may have been sent fields only."""
    receipts: list[Receipt] = field(default_factory=list)
    manifest: bytes | None = None


async def _opened(name: str, sink: Sink, upload: Upload, stall_seconds: float, stack: AsyncExitStack) -> Delivery:
    with translated(name):
        try:
            async with asyncio.timeout(stall_seconds or None) as clock:
                delivery = await stack.enter_async_context(sink.open(upload))
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise SinkTimeout(f"sink {name} did not open in {stall_seconds:g} s", sink=name) from error
        if not isinstance(delivery, Delivery):
            raise TypeError(f"sink {name} opened {delivery!r}, which is no gateway.sinks.Delivery")
        return delivery


async def _commit(
    lanes: Sequence[Lane],
    spares: Sequence[BestEffortLane],
    record: _Record,
    manifest: Manifest,
    kept: Kept,
) -> None:
    """Rule 4. What has been committed is in `kept` even where this raises."""
    keeper = _keeper(lanes)
    order = sorted(lanes, key=lambda lane: (lane.stage, lane is keeper))
    for number, lane in enumerate(order):
        if lane is keeper:
            record.enter(lane.name, lane.keeper_receipts())
            for spare in spares:
                record.enter(spare.name, spare.account())
            kept.manifest = manifest_json(manifest)
            lane.keep_manifest(kept.manifest)
        lane.inform(manifest.entries)
        try:
            receipts = await lane.commit()
        except BaseException:
            for other in order[number:]:
                if partly := other.committed():
                    kept.anything = True
                    kept.receipts += partly
            raise
        entered = receipts if lane is keeper else record.enter(lane.name, receipts)
        if lane.began:
            kept.anything = True
            kept.receipts += entered


async def _end_best_effort(
    lanes: Sequence[Lane],
    spares: Sequence[BestEffortLane],
    lives: Sequence[asyncio.Task[None]],
    stall_seconds: float,
    record: _Record,
    manifest: Manifest,
    kept: Kept,
) -> None:
    """Rule 5."""
    for spare in spares:
        spare.allow_commit(manifest.entries)
    patience = max(spare.lag_seconds for spare in spares) + stall_seconds if stall_seconds else None
    _, left = await asyncio.wait(lives, timeout=patience)
    if left:  # dropped, and not even that comes to an end
        for spare, task in zip(spares, lives, strict=True):
            if task in left:
                task.cancel()
                spare.insist()
        _, left = await asyncio.wait(left, timeout=stall_seconds)
        for spare, task in zip(spares, lives, strict=True):
            if task in left:
                # The TaskGroup that its life is in waits for it all the same, and so does the client: no task is left
                # to itself, and none can be moved to a group that outlives the upload. What is stored is settled.
                spare.give_up("late")
                log.error("best-effort sink %s does not end, and holds up upload %s", spare.name, manifest.upload)
    for spare in spares:
        for receipt in (account := spare.account()):
            entry = manifest.entries[receipt.part]
            entry.receipts = [before for before in entry.receipts if before.sink != spare.name]
        record.enter(spare.name, account)
    keeper = _keeper(lanes)
    if keeper is not None and (settled := manifest_json(manifest)) != kept.manifest:
        try:
            await keeper.replace_manifest(settled)
        except GatewayError as error:
            log.warning("the manifest of upload %s stays as it was: %s", manifest.upload, error)
        else:
            kept.manifest = settled


def _keeper(lanes: Sequence[Lane]) -> Lane | None:
    return next((lane for lane in lanes if lane.is_keeper), None)


class _Record:
    """Receipts in the manifest: in the order of the route's sinks, not in that of the commits."""

    def __init__(self, manifest: Manifest, route: Route, sinks: Mapping[str, Sink]) -> None:
        self._manifest = manifest
        self._place = {name: number for number, name in enumerate(route.sinks)}
        self._sinks = sinks

    def enter(self, name: str, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """Those of that sink that count: it has no receipt for what it leaves out."""
        entries, leaves_out = self._manifest.entries, self._sinks[name].leaves_out
        receipts = [receipt for receipt in receipts if not leaves_out(entries[receipt.part].part)]
        for receipt in receipts:
            entry = entries[receipt.part]
            if entry.receipts:
                entry.receipts = sorted((*entry.receipts, receipt), key=lambda one: self._place[one.sink])
            else:
                entry.receipts = (receipt,)
        return receipts


def _incomplete(error: Exception, committed: Sequence[Receipt]) -> Incomplete:
    if isinstance(error, Answered):
        error = refused(error)
    detail = error.detail if isinstance(error, GatewayError) else "the upload failed"
    members = error.members if isinstance(error, GatewayError) else {}
    kept = [
        {"part": receipt.part, "sink": receipt.sink, "location": receipt.location, "status": receipt.status}
        for receipt in committed
    ]
    return Incomplete(detail, **{**members, "kept": kept})
