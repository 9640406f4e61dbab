"""One upload's share of an object sink: what is written when, and what is done where it is not to stay.

1. Every object is written under its final name, which nobody is told of before the manifest is there.
2. Where the upload fails: the calls that run come to their end, what is not whole is aborted, then all that lies under
   the upload's prefix is removed, the manifest first, since a store that does not answer may have taken it.
3. That is waited for, but not for ever: the rest is done behind the answer, and tried again while the store fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Protocol

from gateway.concurrency.pipe import Progress, batches
from gateway.concurrency.tasks import OwnTasks
from gateway.errors import Conflict, SinkFault
from gateway.model import Part, Receipt, Upload
from gateway.sinks import Delivery
from gateway.sinks.objects import layout
from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.claim import Claim
from gateway.sinks.objects.layout import MANIFEST, PARTS_IN_FLIGHT, WRITE_BYTES
from gateway.sinks.objects.upload_prefix import remove_prefix
from gateway.sinks.objects.writer import ObjectWriter

__all__ = ["ObjectDelivery", "PartSizes"]

_NO_ATTRIBUTES: Mapping[str, str] = {}
_AT_ONCE = 16
"""Small files that are on their way at a time: each is a round trip."""


class PartSizes(Protocol):
    """How objects are cut; that of the sink."""

    part_bytes: int
    max_part_bytes: int
    stall_seconds: float
    counts_owners: bool


class ObjectDelivery(Delivery):
    """One upload on its way into a bucket."""

    takes_batches = True

    def __init__(self, upload: Upload, bucket: Bucket, sizes: PartSizes) -> None:
        self.upload_id = upload.id
        self.began_at = asyncio.get_running_loop().time()
        self.is_kept = False
        self._bucket = bucket
        self._declared = upload.content_length
        self._part_bytes = layout.part_bytes_for(
            upload.content_length, part_bytes=sizes.part_bytes, max_part_bytes=sizes.max_part_bytes
        )
        self._counts_owners = sizes.counts_owners
        self._stall_seconds = sizes.stall_seconds
        self._claim = Claim(bucket, upload.id)
        self._puts, self._removals = OwnTasks(), OwnTasks()
        self._writers: dict[int, ObjectWriter] = {}
        self._receipts: dict[int, Receipt] = {}
        self._given: set[str] = set()
        """Keys of which there may be an object."""
        self._ends = False
        self._manifest: bytes | None = None
        self._progress = Progress()

    @property
    def key(self) -> str:
        """Of all its objects, the beginning."""
        return f"{self.upload_id}/"

    def keep_time(self, progress: Progress) -> None:
        """Each small file that is taken is a move, too."""
        self._progress = progress

    async def claim(self) -> None:
        """Of all who come with this id, at whichever replica, have it to itself until the end. Raises Conflict."""
        is_ours = await self._puts.finish(self._claim.take())
        if not is_ours or await self._bucket.head(f"{self.key}{MANIFEST}") is not None:
            raise Conflict(f"the upload id {self.upload_id} is taken")

    # -- parts

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """Write a part as it comes; its object is whole when this returns."""
        writer = self._writers[part.index] = self._writer(part)
        written = 0
        async for batch, size in batches(chunks, WRITE_BYTES):
            written += size
            if written > self._part_bytes * layout.MAX_PARTS:
                raise layout.too_long(self._bucket.name, limit=self._part_bytes, is_declared=bool(self._declared))
            await writer.write(b"".join(batch))
        await self._closed(writer)
        self._receipts[part.index] = Receipt(part.index, self._bucket.name)

    def _writer(self, part: Part) -> ObjectWriter:
        attributes = layout.attributes_of(part, self.upload_id)
        return ObjectWriter(self._bucket, self._key_of(part), attributes, part_bytes=self._part_bytes)

    async def _closed(self, writer: ObjectWriter) -> None:
        """The parts in flight, and the last one, have as long as each of them would have alone."""
        seconds = self._stall_seconds * (PARTS_IN_FLIGHT + 1)
        with self._progress.excused():
            try:
                async with asyncio.timeout(seconds or None):
                    await writer.close()
            except TimeoutError as error:
                raise self._bucket.late() from error

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """Many small parts, a request for each, several at a time."""
        waiting = iter(parts)

        async def put_some() -> None:
            for part, data in waiting:
                await self._put(self._key_of(part), data, layout.attributes_of(part, self.upload_id))
                self._receipts[part.index] = Receipt(part.index, self._bucket.name)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(parts))):
                    group.create_task(put_some())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _key_of(self, part: Part) -> str:
        key = f"{self.key}{part.index}"
        self._given.add(key)
        return key

    async def _put(self, key: str, data: bytes, attributes: Mapping[str, str] = _NO_ATTRIBUTES) -> None:
        self._given.add(key)
        await self._puts.finish(self._bucket.put(key, data, attributes))
        self._progress.moved()

    async def drop(self, part: Part) -> None:
        """Forget one part: its object, too, if it was whole already."""
        self._receipts.pop(part.index, None)
        if f"{self.key}{part.index}" in self._given:
            await self._removals.finish(self._forget(part.index))

    async def _forget(self, index: int) -> None:
        if (writer := self._writers.get(index)) is not None:
            await writer.abort()
        else:
            await self._puts.ended()
        await self._bucket.delete([f"{self.key}{index}"])

    # -- the end

    def receipts(self) -> list[Receipt]:
        """Those of the parts that were accepted, by index."""
        return [self._receipts[index] for index in sorted(self._receipts)]

    def keep_manifest(self, manifest: bytes) -> None:
        """It is written by `commit`."""
        self._manifest = manifest

    async def commit(self) -> list[Receipt]:
        """Write the manifest: from now on the upload exists. It is empty where another store keeps it, and is last."""
        if self._receipts or self._manifest is not None:
            await self._put(f"{self.key}{MANIFEST}", self._manifest or b"")
        self.is_kept = True
        if self._counts_owners and (counted := layout.counted_key(self.upload_id, self._manifest or b"")) is not None:
            with contextlib.suppress(SinkFault):  # it is in the log; what is not counted is the owner's gain
                await self._put(counted, b"")
        return self.receipts()

    async def replace_manifest(self, manifest: bytes) -> None:
        """After `commit`: another manifest, but for one that was removed meanwhile."""
        if await self._bucket.head(f"{self.key}{MANIFEST}") is not None:
            await self._put(f"{self.key}{MANIFEST}", manifest)

    def committed(self) -> list[Receipt]:
        """What is visible, whether another sink's commit failed or not."""
        return self.receipts() if self.is_kept else []

    async def show_life(self) -> None:
        """For sweeps, which take what is old and has no manifest for something that was left behind."""
        if self._given and not self.is_kept and not self._ends:
            await self._puts.finish(self._claim.renew())

    async def end(self) -> None:
        """Unless it is kept, remove everything, once nothing runs any more. Raises the errors of a sink.

        Last of all the id is nobody's again: who comes with it then meets nothing that is about to be removed.
        """
        self._ends = True
        await self._removals.ended()
        await self._puts.ended()
        if not self.is_kept:
            await asyncio.gather(*[writer.abort() for writer in self._writers.values()])
            if self._given:  # or what is there is not ours
                await remove_prefix(self._bucket, self.upload_id, self._given)
        await self._claim.let_go()
