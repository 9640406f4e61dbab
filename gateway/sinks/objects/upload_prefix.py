"""What an object sink has published: found, read, removed. One prefix per upload.

1. An upload is there while its manifest is: it is asked for each time, so that what one replica writes or removes is so
   for all of them at once. Where the store keeps its promise (S3, GCS, Azure: strongly consistent), so do we.
2. Removed is first what counts the upload as somebody's, since only the manifest says where that is; then the manifest,
   by which the upload is gone, then the rest. What that leaves, a sweep removes.
3. Who removes has claimed the prefix before, as one does who uploads under an id that he chose: so nobody uploads there
   what is about to be removed, and of two that remove one upload at once one is refused. See claim.py.
4. Who reads locks nothing. He has asked for a file with one request, which the store answers to its end or breaks off;
   it never ends early and looks whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any, Literal, TypeVar

from gateway.concurrency.tasks import OwnTasks
from gateway.errors import Conflict, SinkFault
from gateway.manifest import HEAD_BYTES
from gateway.sinks.objects.bucket import Bucket, Stored
from gateway.sinks.objects.claim import claimed
from gateway.sinks.objects.layout import MANIFEST, RUNNING, counted_key
from gateway.sinks.store import PIECE_BYTES, Closable, Removal, StoredFile, StoredPieces, StoredUpload

__all__ = ["OpenedPrefix", "PrefixRemoval", "prefix_removal", "published", "remove_prefix"]

log = logging.getLogger("gateway.objects")

_WHOLE_BYTES = 1 << 20
"""A manifest that is no longer is read at once."""

T = TypeVar("T")


class OpenedPrefix(StoredUpload):
    """One bucket's share of an upload. None where there is none.

    `redirect_seconds`: for how long a file may be read at the store itself; 0: here only.
    """

    def __init__(self, upload_id: str, bucket: Bucket, *, redirect_seconds: float) -> None:
        self.sink = bucket.name
        self._upload_id = upload_id
        self._bucket = bucket
        self._redirect_seconds = redirect_seconds
        self._manifest: StoredObject | None = None
        self._listed: dict[int, Stored] | None = None
        self._opened: list[Closable] = []

    async def __aenter__(self) -> OpenedPrefix | None:
        found = await self._bucket.fetch(f"{self._upload_id}/{MANIFEST}", at_most=_WHOLE_BYTES)
        if found is None:
            return None
        if found[0].size:
            self._manifest = StoredObject(self._bucket, *found)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for one in self._opened:
            with contextlib.suppress(ValueError):  # a thread reads it yet, and is the last to hold it
                one.close()

    async def manifest(self) -> StoredObject | None:
        return self._manifest

    async def indexes(self) -> set[int]:
        return set(await self._files())

    async def open(self, index: int) -> StoredObject | None:
        found = await self._bucket.head(f"{self._upload_id}/{index}")
        return None if found is None else StoredObject(self._bucket, found, seconds=self._redirect_seconds)

    async def _files(self) -> dict[int, Stored]:
        if self._listed is None:
            names = {one.key.rpartition("/")[2]: one async for one in self._bucket.listed(f"{self._upload_id}/")}
            self._listed = {int(name): one for name, one in names.items() if name.isdecimal()}
        return self._listed

    async def pieces(self, index: int) -> StoredPieces:
        found = (await self._files())[index]
        return StoredPieces(found.size, self._bucket.blocking(found, piece_bytes=PIECE_BYTES))

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(function, *args)

    def close_later(self, thing: Closable) -> None:
        self._opened.append(thing)


class StoredObject(StoredFile):
    """`data`: its bytes, where they are known."""

    def __init__(self, bucket: Bucket, found: Stored, data: bytes | None = None, *, seconds: float = 0) -> None:
        self.size, self.modified = found.size, found.modified
        self._bucket = bucket
        self._found = found
        self._data = data
        self._seconds = seconds

    async def read(self, size: int, offset: int) -> bytes:
        if self._data is not None:
            return self._data[offset : offset + size]
        return b"".join([piece async for piece in self.pieces(offset, min(self.size, offset + size))])

    async def pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        if self._data is not None:
            yield self._data[start:stop]
        elif start < stop:
            async for piece in self._bucket.stream(self._found, start, stop, piece_bytes=PIECE_BYTES):
                yield piece

    async def elsewhere(self, method: Literal["GET", "HEAD"]) -> str | None:
        return await self._bucket.sign(method, self._found.key, self._seconds) if self._seconds else None


@contextlib.asynccontextmanager
async def prefix_removal(upload_id: str, bucket: Bucket, *, is_open: bool) -> AsyncIterator[PrefixRemoval | None]:
    """One bucket's share of an upload that is about to be removed. None where there is none. Raises Conflict.

    `is_open`: whether the upload runs, in this process. Others know nothing of an upload that nobody was told of.
    """
    if is_open:
        raise Conflict(f"upload {upload_id} has not ended")
    if await bucket.head(f"{upload_id}/{MANIFEST}") is None:
        yield None
        return
    async with claimed(bucket, upload_id) as calls:
        if calls is None:
            raise Conflict(f"upload {upload_id} has not ended, or is being removed")
        found = await published(bucket, upload_id)
        yield None if found is None else PrefixRemoval(upload_id, bucket, calls, counted=found[1])


class PrefixRemoval(Removal):
    """See `prefix_removal`. `counted`: where it is counted as somebody's."""

    def __init__(self, upload_id: str, bucket: Bucket, calls: OwnTasks, *, counted: Collection[str]) -> None:
        self._upload_id = upload_id
        self._bucket = bucket
        self._calls = calls
        self._counted = counted

    async def remove(self) -> None:
        await self._calls.finish(self._remove())

    async def _remove(self) -> None:
        await self._bucket.delete(self._counted)
        await self._bucket.delete([f"{self._upload_id}/{MANIFEST}"])
        try:
            await remove_prefix(self._bucket, self._upload_id)
        except SinkFault as error:
            log.warning("upload %s is removed, its objects are left to a sweep: %s", self._upload_id, error)


async def published(bucket: Bucket, upload_id: str) -> tuple[Stored, list[str]] | None:
    """The manifest that is there, and where the upload is counted as somebody's, if it is. Raises the errors of a
    sink.
    """
    found = await bucket.fetch(f"{upload_id}/{MANIFEST}", at_most=_WHOLE_BYTES)
    if found is None:
        return None
    head = await StoredObject(bucket, *found).read(HEAD_BYTES, 0)
    return found[0], [] if (key := counted_key(upload_id, head)) is None else [key]


async def remove_prefix(bucket: Bucket, upload_id: str, given: Iterable[str] = ()) -> None:
    """Remove all that lies there, the manifest first, but for the claim on it. `given`: what may be there though no
    listing has it yet.

    Raises the errors of a sink.
    """
    manifest = f"{upload_id}/{MANIFEST}"
    keys = {*given, *[one.key async for one in bucket.listed(f"{upload_id}/")]}
    if manifest in keys:
        await bucket.delete([manifest])
    await bucket.delete(sorted(keys - {manifest, f"{upload_id}/{RUNNING}"}))
