"""What it means that one part fails: the end of the upload or, with `keep = "each"`, of that part alone.

Where each part is kept for itself, what is wrong with one is said of that one, and the others are kept:

1. A part fails by what it is (no rule takes it, it is too large, its bytes are not those declared), by a
   verdict or failure of its flows, or because a sink fails on it. What is wrong with the body as a whole,
   or with a sink as a whole, fails the upload as ever.
2. A part that failed is forgotten by all its sinks: those at work on it are cancelled, and then each is told
   to forget it. One failure of a part is told, the first.
3. Its bytes that still come are counted, hashed and dropped.
4. Where small parts are handed over many at a time, the failure of such a batch is that of each part in it.
   Its parts may be at other sinks: those forget them before the commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from gateway.concurrency.pipe import Pipe
from gateway.concurrency.scope import Scope
from gateway.concurrency.tasks import start
from gateway.errors import DigestMismatch, FlowStalled, GatewayError, InternalError, NoRoute, NotMultipart, TooLarge
from gateway.http.problems import problem_document
from gateway.model import Entry, Manifest
from gateway.sinks import Answered, refused
from gateway.upload.failures import first_error, forget_frames
from gateway.upload.lanes import Accepting, Batch, Lane

__all__ = ["OF_ONE_PART", "AllOrNothing", "KeepEach"]

OF_ONE_PART = (NoRoute, NotMultipart, TooLarge, DigestMismatch)
"""What may be wrong with a part as it comes."""

Ends = Sequence[tuple[Pipe, Accepting | None]]


class AllOrNothing:
    """A part that fails fails the upload."""

    def part_failed(self, entry: Entry, error: GatewayError, *, given: bool) -> None:
        """The pump found something wrong with a part, which sinks may have been `given`. Raises what the upload fails
        with; where it returns, nothing more of the part is handed out.
        """
        raise error

    def batch_failed(self, batch: Batch, error: GatewayError | Answered) -> None:
        """A sink failed on small parts that it was given many at a time. Raises what the upload fails with."""
        raise error

    def forgo(self, stalled: GatewayError) -> bool:
        """Whether the upload goes on though somebody has stalled, without the part that this is about."""
        return False

    def accepting(self, entry: Entry, lanes: Sequence[Lane], ends: Ends) -> list[Accepting]:
        """What has to run, each in a task, for a part that goes to these lanes the long way."""
        return [accept for _, accept in ends if accept is not None]

    async def settle(self, lanes: Sequence[Lane]) -> None:
        """All accepts have returned, and no sink has committed."""


class KeepEach(AllOrNothing):
    """A part that fails is left out, and the others are kept."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._scopes: dict[int, Scope] = {}
        """Of the parts that are at work the long way, by index."""
        self._given: list[Entry] = []
        """Those with a problem that some sink may have."""

    def part_failed(self, entry: Entry, error: GatewayError, *, given: bool) -> None:
        if "part" not in error.members:  # of the limits on fields all parts are guilty
            raise error
        self._fail(entry, error, given=given)
        if (scope := self._scopes.get(entry.part.index)) is not None:
            scope.end()

    def forgo(self, stalled: GatewayError) -> bool:
        if not isinstance(stalled, FlowStalled):
            return False
        entry = self._manifest.entries[cast(int, stalled.members["part"])]
        if entry.problem is None:
            self.part_failed(entry, stalled, given=True)
        return True

    def accepting(self, entry: Entry, lanes: Sequence[Lane], ends: Ends) -> list[Accepting]:
        self._scopes[entry.part.index] = Scope()
        return [lambda: self._accept(entry, lanes, ends)]

    async def settle(self, lanes: Sequence[Lane]) -> None:
        for entry in self._given:
            for lane in lanes:  # of the fields, too, and of empty file inputs
                if entry.part.index not in lane.forgotten:
                    await lane.forget(entry.part)

    async def _accept(self, entry: Entry, lanes: Sequence[Lane], ends: Ends) -> None:
        """One part to its sinks; if it fails, there or elsewhere, they forget it."""
        required = [(pipe, accept) for pipe, accept in ends if accept is not None]
        try:
            async with self._scopes[entry.part.index], asyncio.TaskGroup() as tasks:
                for _, accept in required:
                    start(tasks, accept())
        except Exception as error:
            found = first_error(error)
            if isinstance(found, Answered):
                found = refused(found)
            if not isinstance(found, GatewayError) or isinstance(found, InternalError):
                raise
            self._fail(entry, found, given=True)
            forget_frames(error)
        except BaseException as error:
            forget_frames(error)
            raise
        finally:
            del self._scopes[entry.part.index]
            for pipe, _ in required:  # the others may still be read from
                pipe.close()
        if entry.problem is not None:
            entry.output, entry.findings = None, {}
            for lane in lanes:
                await lane.forget(entry.part)

    def batch_failed(self, batch: Batch, error: GatewayError | Answered) -> None:
        found = refused(error) if isinstance(error, Answered) else error
        for part, _ in batch:
            self._fail(self._manifest.entries[part.index], found, given=True)

    def _fail(self, entry: Entry, error: GatewayError, *, given: bool) -> None:
        self._manifest.partial = True
        if entry.problem is None:
            entry.problem = problem_document(error)
        if given:
            self._given.append(entry)
