"""Uploads in object storage: S3 and what speaks like it, GCS, Azure; a directory or this memory, for tests.

1. An upload is a prefix of objects, and exists when its manifest does, which is written last. See layout.py.
2. No process keeps anything that another one needs: any number of gateways on one bucket are one.
3. What is to go and could not be removed, since the store failed, is tried again until it is; if the process ends
   before, a sweep finds it a day later. See delivery.py, sweep.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gateway.concurrency.tasks import OwnTasks
from gateway.errors import GatewayError, SinkUnavailable
from gateway.model import Upload
from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.delivery import ObjectDelivery
from gateway.sinks.objects.layout import MAX_PARTS, owners_prefix, too_long
from gateway.sinks.objects.sweep import Sweeper
from gateway.sinks.objects.upload_prefix import OpenedPrefix, PrefixRemoval, prefix_removal
from gateway.sinks.store import Store

__all__ = ["ObjectSink"]

_MANY = 100
"""Uploads of which something could not be removed: only where a store fails."""
_MANY_LATE = 16
"""Uploads that were answered, and whose calls still run, each with its parts in memory: only where a store hangs."""
_PATIENCE_SECONDS = 5.0
"""How long an answer waits for what is removed behind it: a part in flight has to end first."""


class ObjectSink(Store):
    """`url` says which store, and `prefix` where in it. `stall_seconds`: how long a request may take.
    `counts_owners`: whether there is a quota of what is stored.

    With `redirect` whoever asks for a file is sent to the store itself, where he may read it for `redirect_seconds`.
    """

    can_drop = True
    remark = (
        "a rule of the bucket's has to abort multipart uploads that stay open for more than a day or so "
        "(AbortIncompleteMultipartUpload, on S3): of a gateway that is killed such are left, and where the store fails "
        "when it is asked to abort one"
    )

    def __init__(
        self,
        *,
        name: str,
        url: str,
        prefix: str = "",
        part_bytes: int = 16 << 20,
        max_part_bytes: int = 64 << 20,
        redirect: bool = False,
        redirect_seconds: float = 300,
        keep_seconds: float = 0,
        stall_seconds: float = 30,
        counts_owners: bool = False,
    ) -> None:
        self.name = name
        self.part_bytes = part_bytes
        self.max_part_bytes = max_part_bytes
        self.keep_seconds = keep_seconds
        self.stall_seconds = stall_seconds
        self.counts_owners = counts_owners
        self._url = url
        self._prefix = prefix
        self._redirect_seconds = redirect_seconds if redirect else 0
        self._started: Bucket | None = None
        self._open: set[ObjectDelivery] = set()
        self._sweeper: Sweeper | None = None
        self._ending: OwnTasks | None = None
        self._late: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ObjectSink:
        try:
            on_fault = partial(self.observer.failed, self.name)
            self._started = Bucket(
                self.name, self._url, self._prefix, stall_seconds=self.stall_seconds, on_fault=on_fault
            )
        except ValueError as error:
            raise OSError(f"sinks.{self.name}.url: {error}") from error
        self._sweeper = Sweeper(self._started, self._open, keep_seconds=self.keep_seconds)
        self._ending = OwnTasks()
        if self.sweeps:
            self._sweeper.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._swept.stop()
        self._endings.cancel()
        await self._endings.ended()

    @property
    def _bucket(self) -> Bucket:
        assert self._started is not None
        return self._started

    @property
    def _swept(self) -> Sweeper:
        assert self._sweeper is not None
        return self._sweeper

    @property
    def _endings(self) -> OwnTasks:
        assert self._ending is not None
        return self._ending

    def admit(self, upload: Upload) -> None:
        """Refuse uploads for a store that takes nothing away, and a file that would have too many parts."""
        if self._swept.left >= _MANY or len(self._late) >= _MANY_LATE:
            raise SinkUnavailable(f"sink {self.name} fails, and cannot remove what it has", sink=self.name)
        length = upload.content_length or 0
        if not upload.multipart and length > self.max_part_bytes * MAX_PARTS:
            raise too_long(self.name, limit=self.max_part_bytes, is_declared=True)

    @contextlib.asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[ObjectDelivery]:
        """One upload's share; nothing of it is sent before its first part. Raises what `admit` does."""
        self.admit(upload)
        delivery = ObjectDelivery(upload, self._bucket, self)
        self._open.add(delivery)
        try:
            if upload.id_chosen:
                await delivery.claim()
            yield delivery
        finally:
            ending = self._endings.start(self._end(delivery))
            try:
                await asyncio.wait([ending], timeout=_PATIENCE_SECONDS)
            finally:
                if not ending.done():
                    self._late.add(ending)
                    ending.add_done_callback(self._late.discard)

    async def _end(self, delivery: ObjectDelivery) -> None:
        try:
            await delivery.end()
        except GatewayError as error:
            self._swept.leave(delivery, error)
        finally:
            self._open.discard(delivery)

    async def cleaned_up(self) -> None:
        """Wait for what is removed behind uploads that were answered."""
        await self._endings.ended()

    # -- what was stored

    def opened(self, upload_id: str) -> OpenedPrefix:
        return OpenedPrefix(upload_id, self._bucket, redirect_seconds=self._redirect_seconds)

    async def stored_bytes(self, owner: str) -> int:
        """The bucket is asked each time: an object for each upload of that identity says how large it is."""
        listed = [one.key async for one in self._bucket.listed(owners_prefix(owner))]
        return sum(int(key.rpartition("-")[2]) for key in listed)

    def removal(self, upload_id: str) -> contextlib.AbstractAsyncContextManager[PrefixRemoval | None]:
        is_open = any(one.upload_id == upload_id for one in self._open)
        return prefix_removal(upload_id, self._bucket, is_open=is_open)
