"""The end of an upload that was read to its end: who commits when, and what the manifest says of it.

Receipts come in the order of the commits, and stand in the manifest in the order of the route's sinks. The keeper of
the manifest is the first store of the route; its commit makes the upload visible, so it is last of the required ones,
and what it keeps says of best-effort sinks that they are `late`. What became of them replaces that, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from gateway.errors import GatewayError, Incomplete
from gateway.manifest import ManifestText
from gateway.model import Manifest, Receipt
from gateway.sinks import Answered, Sink, refused
from gateway.sinks.store import Store
from gateway.upload.besteffort import BestEffortLane
from gateway.upload.required_lane import RequiredLane

__all__ = ["Commits", "Locating"]

log = logging.getLogger("gateway.dispatch")

T = TypeVar("T")

Locating = Callable[[str, int, str | None], str]
"""Where a file that a store keeps is read: of an upload's identifier, an index and a file name."""


class Commits:
    """What has been committed of one upload, and so stays whatever comes."""

    def __init__(
        self,
        manifest: Manifest,
        sinks: Mapping[str, Sink],
        keeper: str | None,
        required: Sequence[RequiredLane],
        best_effort: Sequence[BestEffortLane],
        locate: Locating,
        text: ManifestText,
        executor: Executor,
    ) -> None:
        """`sinks` are those of the route, in its order; `keeper` is the one that keeps the manifest. `text` is written
        in the executor's threads where that takes long.
        """
        self.anything = False
        """Receipts may be none although there was a commit: a relay may have been sent fields only."""
        self.receipts: list[Receipt] = []
        self.told: bytes | None = None
        """The manifest as JSON, where it is kept, or was asked for."""
        self._text = text
        self._executor = executor
        self._manifest = manifest
        self._sinks = sinks
        self._required = required
        self._best_effort = best_effort
        self._locate = locate
        self._keeper = next((lane for lane in required if lane.name == keeper), None)

    @property
    def stores(self) -> bool:
        """Whether the manifest is kept, so that it can be fetched again."""
        return self._keeper is not None

    async def commit(self) -> None:
        """All required sinks, one after the other. Raises the error of the first that fails, and TooLarge."""
        keeper = self._keeper
        order = self._required
        if len(order) > 1:
            order = sorted(order, key=lambda lane: (lane.stage, lane is keeper))
        if self._text.is_limited:
            try:
                await self._write(self._text.begin)
            except GatewayError:
                self._note_partly(order)
                raise
        for number, lane in enumerate(order):
            if lane is keeper:
                entered = await self._keep_manifest(lane)
            lane.delivery.inform(self._manifest.entries)
            lane.committing = True
            lane.times.begin_commit()
            try:
                with lane.owing():
                    receipts = await lane.delivery.commit()
            except BaseException:
                self._note_partly(order[number:])
                raise
            lane.committed = True
            lane.times.end_commit()
            if lane is not keeper:
                entered = self._enter(lane.name, lane.completed(receipts or ()))
            if lane.began:
                self.anything = True
                self.receipts += entered

    def _note_partly(self, lanes: Sequence[RequiredLane]) -> None:
        """What is visible of those that have not committed, or have failed to."""
        for lane in lanes:
            if partly := lane.delivery.committed():
                self.anything = True
                self.receipts += self._located(lane.name, partly)

    async def tell(self) -> None:
        """The manifest as it is at the end, where no store has kept it before."""
        if self._keeper is None:
            self.told = await self._write(self._text.finish)

    async def _write(self, write: Callable[[], T]) -> T:
        if not self._text.is_long:
            return write()
        return await asyncio.get_running_loop().run_in_executor(self._executor, write)

    async def _keep_manifest(self, keeper: RequiredLane) -> Sequence[Receipt]:
        entered = self._enter(keeper.name, keeper.completed(keeper.delivery.receipts()))
        for lane in self._best_effort:
            self._enter(lane.name, lane.account())
        self.told = await self._write(self._text.finish)
        keeper.delivery.keep_manifest(self.told)
        return entered

    async def end_best_effort(self, lives: Sequence[asyncio.Task[None]], stall_seconds: float) -> None:
        """Let those commit who are not required, and write down what became of them. `lives` are their tasks."""
        lanes, manifest = self._best_effort, self._manifest
        for lane in lanes:
            lane.allow_commit(manifest.entries)
        patience = max(lane.terms.lag_seconds for lane in lanes) + stall_seconds if stall_seconds else None
        _, left = await asyncio.wait(lives, timeout=patience)
        if left:  # excluded, and not even that comes to an end
            for lane, task in zip(lanes, lives, strict=True):
                if task in left:
                    task.cancel()
                    lane.insist()
            _, left = await asyncio.wait(left, timeout=stall_seconds)
            for lane, task in zip(lanes, lives, strict=True):
                if task in left:
                    # The TaskGroup that its life is in waits for it all the same, and so does the client: no task is
                    # left to itself, and none can be moved to a group that outlives the upload. What is stored is
                    # settled.
                    lane.exclude("late")
                    log.error("best-effort sink %s does not end, and holds up upload %s", lane.name, manifest.upload)
        for lane in lanes:
            for receipt in (account := lane.account()):
                entry = manifest.entries[receipt.part]
                entry.receipts = [before for before in entry.receipts if before.sink != lane.name]
            self._enter(lane.name, account)
        if self._keeper is not None:
            await self._settle_manifest(self._keeper)

    async def _settle_manifest(self, keeper: RequiredLane) -> None:
        if (settled := await self._write(self._text.finish)) == self.told:
            return
        try:
            with keeper.owing():
                await keeper.delivery.replace_manifest(settled)
        except GatewayError as error:
            log.warning("the manifest of upload %s stays as it was: %s", self._manifest.upload, error)
        else:
            self.told = settled

    def incomplete(self, error: Exception) -> Incomplete:
        """The error to tell where this one came after something had been committed."""
        if isinstance(error, Answered):
            error = refused(error)
        detail = error.detail if isinstance(error, GatewayError) else "the upload failed"
        members = error.members if isinstance(error, GatewayError) else {}
        kept = [
            {"part": receipt.part, "sink": receipt.sink, "location": receipt.location, "status": receipt.status}
            for receipt in self.receipts
        ]
        return Incomplete(detail, **{**members, "kept": kept})

    # -- receipts

    def _enter(self, name: str, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """Write down those of that sink that count: it has no receipt for what it leaves out."""
        entries, sink = self._manifest.entries, self._sinks[name]
        if type(sink).leaves_out is not Sink.leaves_out:
            receipts = [receipt for receipt in receipts if not sink.leaves_out(entries[receipt.part].part)]
        for receipt in self._located(name, receipts):
            entry = entries[receipt.part]
            if entry.receipts:
                place = {name: number for number, name in enumerate(self._sinks)}
                entry.receipts = sorted((*entry.receipts, receipt), key=lambda one: place[one.sink])
            else:
                entry.receipts = (receipt,)
        return receipts

    def _located(self, name: str, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """The same, with the places where what a store keeps is read, but where it tells them itself."""
        if isinstance(self._sinks[name], Store):
            for receipt in receipts:
                if receipt.location is None and receipt.missed is None:
                    entry = self._manifest.entries[receipt.part]
                    filename = entry.part.filename if entry.output is None else entry.output.filename
                    receipt.location = self._locate(self._manifest.upload, receipt.part, filename)
        return receipts
