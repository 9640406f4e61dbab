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
one percent-encodes whole file names, which most servers store as they come. Parts are not appended before,
but begun and fed; it is sent once, and cannot be turned into bytes (docs/library.md has a table).

How: see http/lent_connection.py. Whoever feeds writes to the connection directly, at its pace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from aiohttp import MultipartWriter
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from gateway.http.lent_connection import ConnectionLost, LentConnection
from gateway.model import Part
from gateway.multipart.encoder import Encoder
from gateway.multipart.headers import TOKEN
from gateway.multipart.rendering import render_head

__all__ = ["StreamingMultipartWriter"]

_COALESCE_BYTES = 64 << 10
"""Smaller pieces are joined up to this size: a write costs about as much as copying so many bytes."""
_NAME = re.compile(TOKEN)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NO_APPENDING = "a StreamingMultipartWriter has no list of parts: begin_part() or begin_form_part(), then feed()"


class StreamingMultipartWriter(MultipartWriter):
    """Feed it from one task at a time, in the order of the wire; every method waits for the connection.

    Text is taken where a header has it, and goes as UTF-8; of data only bytes are. Raises ValueError for a boundary
    that is none.
    """

    def __init__(self, subtype: str = "mixed", boundary: str | None = None) -> None:
        self._encoder = Encoder(None if boundary is None else boundary.encode("ascii"))
        super().__init__(subtype, self._encoder.boundary.decode())
        self._lent = LentConnection()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._has_begun = False
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

    @property
    def arrived_bytes(self) -> int:
        """Taken by the peer's system, as far as ours tells."""
        return self._lent.arrived_bytes

    # -- feeding

    async def begin_part(self, headers: Mapping[str, str | bytes]) -> None:
        """Begin a part of any multipart type. Raises ValueError for what is no header, ConnectionLost."""
        lines = [(_bytes(name), _bytes(value)) for name, value in headers.items()]
        for name, value in lines:
            if _NAME.fullmatch(name) is None or _CONTROL.search(value):
                raise ValueError(f"{name!r} is no header, or holds a line break")
        await self._begin(b"".join([name + b": " + value + b"\r\n" for name, value in lines]) + b"\r\n")

    async def begin_form_part(
        self,
        name: bytes | str,
        filename: bytes | str | None = None,
        content_type: bytes | str | None = None,
        *,
        content_digest: bytes | None = None,
    ) -> None:
        """Begin a part of a form (RFC 7578), its header in the one canonical form; `content_digest` is as in RFC 9530.

        Raises Malformed, a ValueError, for a name that readers would not agree about, and ConnectionLost.
        """
        kind = None if content_type is None else _bytes(content_type)
        if _CONTROL.search(b"%b%b" % (kind or b"", content_digest or b"")):
            raise ValueError("a Content-Type, or a Content-Digest, holds a line break")
        extra = () if content_digest is None else ((b"Content-Digest", content_digest),)
        await self._begin(render_head(_bytes(name), None if filename is None else _bytes(filename), kind, extra))

    async def begin_relayed_part(self, part: Part) -> None:
        """Begin a part of a form as it was read. Raises Malformed, ConnectionLost."""
        self._check_open()
        self._has_begun = True
        await self._put(self._encoder.begin_form_part(part))

    async def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Bytes of the part that began last. Raises ConnectionLost, and TypeError for text."""
        self._check_open()
        if not self._has_begun:
            raise RuntimeError("no part has begun")
        if not isinstance(chunk, bytes):
            if not isinstance(chunk, bytearray | memoryview):
                raise TypeError(f"a part is fed with bytes, not {type(chunk).__name__}")
            chunk = bytes(chunk)  # what may change while it waits to be sent
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
        self._check_open()
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

    async def _begin(self, head: bytes) -> None:
        self._check_open()
        self._has_begun = True
        await self._put(self._encoder.begin(head))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("the body has its closing delimiter already")

    async def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _COALESCE_BYTES:
            await self.flush()

    # -- what the stock class has, and this one cannot do: it would be dropped without a word

    def append(self, obj: Any, headers: Mapping[str, str] | None = None) -> NoReturn:
        """Raises TypeError."""
        raise TypeError(_NO_APPENDING)

    def append_payload(self, payload: Payload) -> NoReturn:
        """Raises TypeError."""
        raise TypeError(_NO_APPENDING)

    def append_json(self, obj: Any, headers: Mapping[str, str] | None = None) -> NoReturn:
        """Raises TypeError."""
        raise TypeError(_NO_APPENDING)

    def append_form(
        self, obj: Sequence[tuple[str, str]] | Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> NoReturn:
        """Raises TypeError."""
        raise TypeError(_NO_APPENDING)

    # -- what aiohttp calls

    async def write(self, writer: AbstractStreamWriter, close_boundary: bool = True) -> None:
        """Lend the connection to whoever feeds, until `finish` or `abort`. Raises RuntimeError the second time."""
        if self._consumed:
            raise RuntimeError("this body was sent already")
        self._consumed = True  # before the first await: it stops aiohttp from sending it a second time, empty
        await self._lent.lend(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """The same: the length is not known."""
        await self.write(writer)

    async def close(self) -> None:
        """aiohttp may call this while the body is still being written: nothing to do."""

    @property
    def size(self) -> int | None:
        """Not known before the end."""
        return None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raises TypeError."""
        raise TypeError("a streaming body cannot be decoded")

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Raises TypeError."""
        raise TypeError("a streaming body cannot be held in memory")


def _bytes(text: bytes | str) -> bytes:
    """Text of a header as UTF-8. Raises TypeError for what is neither."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(f"a header is made of str or bytes, not {type(text).__name__}")
