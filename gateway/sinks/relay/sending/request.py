"""A request whose body is still on its way, as aiohttp sees it: a payload that lends its connection out.

1. With `Expect: 100-continue` aiohttp waits for an answer without end, and some peers never say it (RFC 9110 10.1.1): a
   timer of ours goes on without one. A refusal that comes instead ends the body before its first byte.
2. *Kept connections.* One that the destination closes just as a request begins cannot be told by looking. Whoever asks
   first finds out before a byte of the body is sent, and may take another connection unseen. A destination that will
   not be asked (417), or that once let the question go unanswered, cannot be told so: none of its connections is kept.
   A body of no bytes cannot be asked for (RFC 9110 10.1.1), and gets a new connection.
3. What comes on a kept connection before the request was sent is an answer to nobody: the connection is dropped. What
   comes before a byte of the body may be one, too, and meant for the silence before: whoever makes the request asks
   again, on a new connection.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from gateway.http.answering import AnswerHandler
from gateway.http.lent_connection import LentConnection
from gateway.http.obs_text import restore_obs_text

__all__ = ["Expecting", "LentBody", "RequestHead", "StreamingRequest", "Taught"]

log = logging.getLogger("gateway.request")


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
    on_new_connection: bool = False
    """Ask, and not on a connection that was kept (rule 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expecting:
    """Whether a destination is asked before it gets a body."""

    when: bool | Literal["reused"] = False
    """Always, never, or on connections that have carried a request before."""
    seconds: float = 1
    """How long the answer is waited for; then the body goes anyway."""


@dataclass(slots=True)
class Taught:
    """What a destination has taught us about being asked."""

    refuses: bool = False
    """It answered 417."""
    ignores: bool = False
    """It let the time pass once."""


class LentBody(Payload):
    """The body of a request, written by whoever has `lent`."""

    def __init__(self, lent: LentConnection, head: RequestHead, expecting: Expecting, taught: Taught) -> None:
        super().__init__(None, content_type=head.content_type)
        self._size = head.length
        self._on_new_connection = head.on_new_connection
        self.lent = lent
        self.expecting = expecting
        self.taught = taught

    @property
    def is_asked_for(self) -> bool:
        """Whether `Expect: 100-continue` goes ahead of it, on the connection that it has."""
        again = self.expecting.when == "reused" and (self._on_new_connection or self.lent.reused)
        return (self.expecting.when is True or again) and not self.taught.refuses and self._size != 0

    @property
    def keeps_connections(self) -> bool:
        """Rule 2. Whoever does not want to ask has said how he wants it."""
        return self.expecting.when is False or not (self.taught.refuses or self.taught.ignores)

    @property
    def takes_any_connection(self) -> bool:
        """Whether a kept one will do (rule 2)."""
        safe = self.expecting.when is False or self._size != 0
        return self.keeps_connections and safe and not self._on_new_connection

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
    """Asks as its body says, and tells it whether its connection is an old one."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """aiohttp's, with a look at the connection. Raises ServerDisconnectedError for one that is not to be used."""
        body = self.body
        if isinstance(body, LentBody):
            body.lent.reused = conn.protocol in _used
            if body.lent.reused and isinstance(conn.protocol, AnswerHandler):
                conn.protocol.expect_silence()
            if body.lent.reused and not body.takes_any_connection:
                raise aiohttp.ServerDisconnectedError("this connection was kept, which is not safe")
            if not body.keeps_connections:
                self.headers[hdrs.CONNECTION] = "close"
                conn.protocol.force_close()
            if body.is_asked_for:
                self.update_expect_continue(True)
        _used.add(conn.protocol)
        return await super().send(conn)

    async def write_bytes(self, writer: AbstractStreamWriter, conn: Any, content_length: int | None = None) -> None:
        """aiohttp's, with the fields as they are, and a wait for `100 Continue` that ends by our timer.

        A connection that is lost meanwhile is told to whoever waits for the answer: nobody asks how this ended.
        """
        restore_obs_text(writer, self.headers.items())
        protocol, body, timer = conn.protocol, self.body, None
        if protocol is None or (isinstance(protocol, AnswerHandler) and not protocol.ask()):
            conn.close()
            return
        if self._continue is not None and isinstance(body, LentBody):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(body.expecting.seconds, _go_on, self._continue, body.taught, protocol)
        try:
            await super().write_bytes(writer, conn, content_length)
        except (aiohttp.ClientError, OSError) as error:
            log.debug("%s: %r", self.url.host, error)
        finally:
            if timer is not None:
                timer.cancel()


def _go_on(waiting: asyncio.Future[Any], taught: Taught, protocol: Any) -> None:
    """Without an answer to the question."""
    if not waiting.done():
        taught.ignores = True
        protocol.force_close()
        waiting.set_result(True)
