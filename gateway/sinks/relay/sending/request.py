"""A request whose body is still on its way, as aiohttp sees it: a payload that lends its connection out.

With `Expect: 100-continue` aiohttp waits for an answer without end, and some peers never say it (RFC 9110 10.1.1): a
timer of ours goes on without one. A refusal that comes instead ends the body before its first byte.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from gateway.http.lent_connection import LentConnection
from gateway.http.obs_text import restore_obs_text

__all__ = ["LentBody", "RequestHead", "StreamingRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """What a request says ahead of its body."""

    url: str
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    """All but those of the framing."""
    content_type: str
    """Empty where nobody told."""
    length: int | None
    """Of the body, in bytes; None is chunked."""


class LentBody(Payload):
    """The body of a request, written by whoever has `lent`. It waits for `100 Continue` for `expect_seconds`."""

    def __init__(self, lent: LentConnection, head: RequestHead, expect_seconds: float) -> None:
        super().__init__(None, content_type=head.content_type)
        self._size = head.length
        self.lent = lent
        self.expect_seconds = expect_seconds

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Lend the connection. Raises BodyAborted, and RuntimeError for a body that was sent already."""
        if self._consumed:
            raise RuntimeError("this body was sent already")
        self._consumed = True  # before the first await: it stops aiohttp from sending it a second time, empty
        await self.lent.lend(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """The same: the length is kept to by whoever writes."""
        await self.write(writer)

    async def close(self) -> None:
        """aiohttp may call this while the body is still being written: nothing to do."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raises TypeError."""
        raise TypeError("a streaming body cannot be decoded")

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Raises TypeError."""
        raise TypeError("a streaming body cannot be held in memory")


_used: WeakSet[object] = WeakSet()
"""Connections that have carried a request."""


class StreamingRequest(aiohttp.ClientRequest):
    """Waits for `100 Continue` no longer than its body says, and tells it if its connection is an old one."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """aiohttp's, with a look at the connection."""
        if isinstance(self.body, LentBody):
            self.body.lent.reused = conn.protocol in _used
        _used.add(conn.protocol)
        return await super().send(conn)

    async def write_bytes(self, writer: AbstractStreamWriter, conn: Any, content_length: int | None = None) -> None:
        """aiohttp's, with the fields as they are, and a wait for `100 Continue` that ends by our timer."""
        restore_obs_text(writer, self.headers.items())
        waiting, body = self._continue, self.body
        if waiting is None or not isinstance(body, LentBody):
            await super().write_bytes(writer, conn, content_length)
            return
        timer = asyncio.get_running_loop().call_later(body.expect_seconds, _go_on, waiting)
        try:
            await super().write_bytes(writer, conn, content_length)
        finally:
            timer.cancel()


def _go_on(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_result(True)
