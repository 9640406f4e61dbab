"""One file on its way through its flows, and on to its sinks.

Who feeds it writes into `inlet`; the sinks are told of the file when its first bytes come out, or its end does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import replace

from gateway.concurrency.pipe import Pipe, Progress, Window
from gateway.concurrency.tasks import start
from gateway.digests import PartDigest
from gateway.errors import FlowStalled
from gateway.flows import Flow, FlowChain, FlowFile, working
from gateway.model import Entry, Output, Part, text
from gateway.upload.lanes import Lane

__all__ = ["Passage"]

_OF_THE_BYTES = frozenset([b"content-length", b"content-md5", b"content-digest", b"repr-digest", b"digest"])
"""Headers of a part that are no longer true when a flow has changed it."""


class Passage:
    """`progress` says whether the flows move; `chain` which of them is at work."""

    def __init__(self, entry: Entry, flows: Sequence[Flow], lanes: Sequence[Lane], window_bytes: int) -> None:
        part = entry.part
        file = FlowFile(
            index=part.index, name=part.name, filename=part.filename, content_type=_shown(part.content_type)
        )
        self.entry = entry
        self.lanes = lanes
        self.progress = Progress()
        self.chain = FlowChain(flows, file, self.progress)
        self.inlet = Pipe(Window(window_bytes, self.progress))
        self.keeps_bytes = all(flow.keeps_bytes for flow in flows)
        self.is_same = False
        """Whether the sinks were told of the part as it came in."""
        self._turns = [lane.keep_turn(part) for lane in lanes if lane.keeps_order]

    async def run(self, *, hashing: bool, executor: Executor, through: Callable[[], object]) -> None:
        """Returns when the sinks have the file safely; `through` is called when they have all bytes of it.

        `hashing`: whether the SHA-256 of what came out is wanted.
        """
        entry, progress = self.entry, self.progress
        working.set(progress)  # in this task's own context
        async with AsyncExitStack() as stack:
            stack.callback(self.inlet.close)
            output = await self.chain.start(self.inlet, stack)
            part = _told_part(entry.part, self.chain.file, keeps_bytes=self.keeps_bytes)
            self.is_same = part is entry.part
            told = entry.output = Output(part.raw_filename, part.content_type)
            digest = PartDigest(("sha256",), executor) if hashing and not self.keeps_bytes else None
            with progress.excused():
                for before, _ in self._turns:
                    if before is not None:
                        await before
            async with asyncio.TaskGroup() as accepting:
                ends = [lane.open(part) for lane in self.lanes]
                for _, accept in ends:
                    if accept is not None:
                        start(accepting, accept())
                pipes = [pipe for pipe, _ in ends]
                async for chunk in output:
                    progress.moved()
                    told.size += len(chunk)
                    with progress.excused():
                        if digest is not None:
                            await digest.update(chunk)
                        for pipe in pipes:
                            await pipe.send(chunk)
                if digest is not None:
                    with progress.excused():
                        told.sha256 = (await digest.finish())["sha256"]
                entry.findings = self.chain.all_findings()
                self.inlet.close()
                through()
                for pipe in pipes:
                    pipe.finish()
                self.end_turns()

    def stalled(self, limit: float) -> FlowStalled:
        """The error of the flow that is at work, and did nothing for so many seconds."""
        name, part = self.chain.running, self.entry.part.index
        return FlowStalled(f"flow {name} took nothing for {limit:g} seconds", flow=name, part=part, limit=limit)

    def end_turns(self) -> None:
        """Let go on who waits until this file was sent."""
        for _, after in self._turns:
            if not after.done():
                after.set_result(None)


def _told_part(part: Part, told: FlowFile, *, keeps_bytes: bool) -> Part:
    """The part as the sinks are told of it; the same one if the flows left it alone."""
    if not keeps_bytes and any(name in _OF_THE_BYTES for name, _ in part.headers):
        part = replace(part, own_headers=[header for header in part.headers if header[0] not in _OF_THE_BYTES])
    if (told.filename, told.content_type) == (part.filename, _shown(part.content_type)):
        return part
    renamed = part.raw_filename if told.filename == part.filename else _raw(told.filename)
    retyped = part.content_type if told.content_type == _shown(part.content_type) else _raw(told.content_type)
    return replace(part, raw_filename=renamed, content_type=retyped)


def _shown(raw: bytes | None) -> str | None:
    return None if raw is None else text(raw)


def _raw(shown: str | None) -> bytes | None:
    return None if shown is None else shown.encode()
