"""`StreamingMultipartWriter`: an aiohttp.MultipartWriter that is filled while it is being sent.

    writer = StreamingMultipartWriter("form-data")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(url, data=writer))
        await writer.begin_form_part(b"file", b"a.bin", b"application/octet-stream")
        async for chunk in chunks:
            await writer.feed(chunk)
        await writer.finish()
    response = sending.result()

What differs from the stock writer: it can wait for parts, its back-pressure reaches whoever feeds it, a
part costs one write and not four, and names go as browsers send them (raw bytes, `%22`), where the stock
one percent-encodes whole file names, which most servers store as they come.

How: see http/lent_connection.py. Whoever feeds writes to the connection directly, at its pace.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import MultipartWriter
from aiohttp.abc import AbstractStreamWriter

from gateway.http.lent_connection import ConnectionLost, LentConnection
from gateway.model import Part
from gateway.multipart.encoder import Encoder
from gateway.multipart.rendering import render_head

__all__ = ["StreamingMultipartWriter"]

_COALESCE_BYTES = 64 << 10
"""Smaller pieces are joined up to this size: a write costs about as much as copying so many bytes."""


class StreamingMultipartWriter(MultipartWriter):
    """Feed it from one task at a time, in the order of the wire; every method waits for the connection."""

    def __init__(self, subtype: str = "form-data", boundary: str | None = None) -> None:
        self._encoder = Encoder(None if boundary is None else boundary.encode("ascii"))
        super().__init__(subtype, self._encoder.boundary.decode())
        self._lent = LentConnection()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.closed = False
        """Whether the closing delimiter was handed to the connection: from here on an answer is about all of it."""

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, or aiohttp stopped sending because the response is complete."""
        return self._lent.lost

    @property
    def sent_bytes(self) -> int:
        """Handed to the transport."""
        return self._lent.sent_bytes

    # -- feeding

    async def begin_part(self, headers: Mapping[str, str]) -> None:
        """Begin a part of any multipart type."""
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        if any("\r" in line[:-2] or "\n" in line[:-2] for line in lines):
            raise ValueError("a header holds a line break")
        await self._put(self._encoder.begin("".join(lines).encode() + b"\r\n"))

    async def begin_form_part(
        self, name: bytes, filename: bytes | None = None, content_type: bytes | None = None
    ) -> None:
        """Begin a part of a form (RFC 7578), its header in the one canonical form."""
        await self._put(self._encoder.begin(render_head(name, filename, content_type)))

    async def begin_relayed_part(self, part: Part) -> None:
        await self._put(self._encoder.begin_form_part(part))

    async def feed(self, chunk: bytes) -> None:
        """Bytes of the part that began last. Raises ConnectionLost."""
        if len(chunk) < _COALESCE_BYTES:
            await self._put(chunk)
        else:
            await self.flush()
            await self._lent.write(chunk)

    async def flush(self) -> None:
        """Send what was held back to be joined with more."""
        if self._pending:
            data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
            await self._lent.write(data)

    async def finish(self) -> None:
        """Send the closing delimiter, and let the request be complete. Raises ConnectionLost."""
        data = b"".join([*self._pending, self._encoder.close()])
        self._pending.clear()
        self.closed = True  # before the write: the destination may answer while that waits
        try:
            await self._lent.write(data)
        except ConnectionLost:
            self.closed = False
            raise
        self._lent.complete()

    def abort(self) -> None:
        """Break the request off. Without effect after `finish`."""
        self._lent.abort()

    async def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _COALESCE_BYTES:
            await self.flush()

    # -- what aiohttp calls

    async def write(self, writer: AbstractStreamWriter, close_boundary: bool = True) -> None:
        if self._consumed:
            raise RuntimeError("this body was sent already")
        self._consumed = True  # before the first await: it stops aiohttp from sending it a second time, empty
        await self._lent.lend(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)

    async def close(self) -> None:
        """aiohttp may call this while the body is still being written: nothing to do."""

    @property
    def size(self) -> int | None:
        return None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a streaming body cannot be decoded")

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise TypeError("a streaming body cannot be held in memory")
