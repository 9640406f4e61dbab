"""Parts handed over to lanes: the small ones that have gathered, pipes for the others, and flows in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from gateway.concurrency.pipe import Pipe
from gateway.concurrency.tasks import start
from gateway.flows import Flow
from gateway.model import Entry, Limits
from gateway.upload.failures import forget_frames
from gateway.upload.flow_run import Passage
from gateway.upload.keep_each import AllOrNothing
from gateway.upload.lanes import Accepting, Lane, PartPermits
from gateway.upload.part_digests import PartDigests

__all__ = ["Handover"]


class Handover:
    """What is handed over is accepted in `tasks`, which are set before. `flowing` are files whose flows are at work."""

    tasks: asyncio.TaskGroup

    def __init__(
        self,
        lanes: Sequence[Lane],
        digests: PartDigests,
        limits: Limits,
        failures: AllOrNothing,
    ) -> None:
        self.flowing: set[Passage] = set()
        self._lanes = lanes
        self._digests = digests
        self._window_bytes = limits.window_bytes
        self._failures = failures
        self._permits = PartPermits(limits.parallel_parts)
        self._kept_bytes: list[tuple[Entry, bool]] = []
        """Files whose flows left the bytes alone, and whether all else, too: no more is held of what has passed."""

    async def hand_over(self, *, at_once: bool = False) -> None:
        """Small parts that have gathered: those that their sinks have room for or, `at_once`, all."""
        for lane in self._lanes:
            await lane.hand_over(self.tasks, self._permits, at_once=at_once)

    async def open(self, entry: Entry, lanes: Sequence[Lane], flows: Sequence[Flow]) -> list[Pipe]:
        """The long way of one part: a permit, and where to send the bytes."""
        if not lanes:
            return []
        await self.hand_over(at_once=True)  # what came before must get there before
        if not flows:
            for lane in lanes:
                await lane.wait_for_turn()
        await self._permits.take()
        ends = [self._through(entry, lanes, flows)] if flows else [lane.open(entry.part) for lane in lanes]
        accepting = [start(self.tasks, accept()) for accept in self._failures.accepting(entry, lanes, ends)]
        self._permits.give_back_after(accepting)
        return [pipe for pipe, _ in ends]

    async def settle(self) -> None:
        """All accepts have returned, and the digests are there: what there is to do before the sinks may commit."""
        for entry, is_same in self._kept_bytes:
            if entry.output is not None:  # what came out has the digest of what came in
                entry.output.sha256 = entry.digests.get("sha256")
                if is_same:
                    entry.output = None
        await self._failures.settle(self._lanes)

    def _through(self, entry: Entry, lanes: Sequence[Lane], flows: Sequence[Flow]) -> tuple[Pipe, Accepting]:
        passage = Passage(entry, flows, lanes, self._window_bytes)
        self.flowing.add(passage)
        return passage.inlet, partial(self._run, passage)

    async def _run(self, passage: Passage) -> None:
        digests = self._digests
        try:
            await passage.run(
                hashing="sha256" in digests.algorithms,
                executor=digests.executor,
                through=lambda: self.flowing.discard(passage),
            )
            if passage.keeps_bytes:
                self._kept_bytes.append((passage.entry, passage.is_same))
        except BaseException as error:
            forget_frames(error)
            raise
        finally:
            self.flowing.discard(passage)
            passage.end_turns()
