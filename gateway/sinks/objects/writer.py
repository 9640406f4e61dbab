"""One object on its way to the store, piece by piece, by calls that are not cancelled, whoever gives up on them.

1. A call of the store's client that is cancelled midway is forgotten, not undone. If it was the one that opens a
   multipart upload, that stays open for ever, since nobody knows its name; if it sent an object, that may be there a
   moment after it was removed. So a call runs to its end, which the client's clocks see to, and whoever cleans up waits
   for it.
2. An object is there, whole, when `close` has returned; before that nothing of it is. `abort` comes after the call that
   runs, and is told to the store by the client, which has dropped the parts in flight then. Where a call fails, the
   client does so by itself.
3. The client asks to abort once, with its retries, and nobody but it knows the upload's name. If the store fails then,
   the upload stays open: the log says of which object, and it is for a rule of the bucket's.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from obstore.exceptions import BaseError

from gateway.concurrency.tasks import OwnTasks
from gateway.errors import SinkFault
from gateway.sinks.objects.bucket import Bucket

__all__ = ["ObjectWriter"]

log = logging.getLogger("gateway.objects")

_ABORTING = "performing DELETE"
"""In the client's error of a call that failed, and which it could not abort then."""
_CLOSED = "already closed"
"""In its error where it has aborted before."""


class ObjectWriter:
    """Made where nothing is sent yet. Its verbs raise the errors of a sink; after one of them only `abort` is left."""

    def __init__(self, bucket: Bucket, key: str, attributes: Mapping[str, str], *, part_bytes: int) -> None:
        self._bucket = bucket
        self._key = key
        self._file = bucket.writer(key, attributes, part_bytes=part_bytes)
        self._calls = OwnTasks()
        self._is_entered = False
        self._is_closed = False

    async def write(self, data: bytes) -> None:
        """Nothing may change `data` later: it is not copied. Waits while PARTS_IN_FLIGHT are under way."""
        await self._call(self._write(data))

    async def _write(self, data: bytes) -> None:
        if not self._is_entered:
            await self._file.__aenter__()
            self._is_entered = True
        await self._file.write(data)

    async def close(self) -> None:
        """Everything was written; the object is there when this returns."""
        await self._call(self._close())

    async def _close(self) -> None:
        if not self._is_entered:
            await self._file.__aenter__()
            self._is_entered = True
        try:
            await self._file.close()
        finally:  # where it fails, the client has aborted
            self._is_closed = True

    async def abort(self) -> None:
        """Keep nothing of what was written, unless it was closed. Raises nothing: what stays open is logged."""
        await self._calls.ended()
        if self._is_entered and not self._is_closed:
            self._is_closed = True
            error = ConnectionAbortedError("the object is not wanted")
            try:
                await self._file.__aexit__(type(error), error, None)
            except (BaseError, OSError) as failure:
                if _CLOSED not in str(failure):
                    self._stays_open(self._bucket.fault(failure))

    async def _call(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await self._calls.finish(call)
        except (BaseError, OSError) as error:
            fault = self._bucket.fault(error)
            if _ABORTING in str(error):
                self._stays_open(fault)
            raise fault from error

    def _stays_open(self, fault: SinkFault) -> None:
        text = "sink %s: the multipart upload of %s is not aborted, and is for a rule of the bucket's to end: %s"
        log.error(text, self._bucket.name, self._key, fault)
