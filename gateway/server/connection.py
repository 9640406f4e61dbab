"""A client's connection: one that has sent all, and says so with its FIN, is still answered.

A FIN ends what its sender sends, and it may go on receiving (RFC 9293 3.6). aiohttp takes every FIN for a hang-up: it
closes the connection, and a request that came whole dies with it. Here:

1. A FIN behind whole requests ends nothing but the client's side. They are answered, in order, those that wait in the
   queue among them; then the connection is closed.
2. A FIN within a body, whatever its framing, is a hang-up as ever: the request is aborted (G3). Where whole requests
   stand before it they are answered, and it is not begun. So is half a head dropped.
3. With nothing to answer the connection is closed at once.
4. What comes in the same segment as a request that asks for another protocol than websocket is lost in aiohttp's
   parser, and what comes after it is read from wherever it begins. Such a request is answered as if it did not ask, and
   is the last one of its connection: who sent more is told so by the close, and sends it again.

A client that quits right after its last byte looks the same from here. Its upload completes, and only writing the
answer can tell that nobody is left to take it: one line in the log.

TLS has no half-close: there a FIN stays what aiohttp makes of it.
"""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import Any

from aiohttp import StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from gateway.errors import ClientGone
from gateway.model import Limits
from gateway.server.answer_clocks import AnswerClocks
from gateway.server.record import log_untaken

__all__ = ["Connection", "Server"]


class Connection(RequestHandler):
    """aiohttp's handler of one connection, which does not take a FIN for a hang-up."""

    __slots__ = ("_in_hand",)

    def __init__(self, manager: Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._in_hand: StreamReader | None = None
        """The body of the request that was taken from the queue last."""
        make_request = manager.request_factory

        def taken(
            message: RawRequestMessage,
            body: StreamReader,
            connection: RequestHandler,
            writer: AbstractStreamWriter,
            task: Any,
        ) -> web.BaseRequest:
            self._in_hand = body
            if message.headers.get(hdrs.UPGRADE, "websocket").lower() != "websocket":
                message = message._replace(should_close=True)  # rule 4
            return make_request(message, body, connection, writer, task)

        self._request_factory = taken

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp's returns None, which asyncio allows, too
        """The client sends nothing more. Whether the connection stays open; it may be asked again."""
        if self.transport is None or self.ssl_context is not None:
            return False
        self._parse_the_rest()
        if self._buffer_paused:
            return True  # more requests than may queue: it is asked again when some of them are answered
        if not self._keep_whole_requests():
            return False
        if self._messages:
            message, body = self._messages[-1]
            if isinstance(message, RawRequestMessage):
                self._messages[-1] = (message._replace(should_close=True), body)
        else:
            self._close = True
        return True

    def _parse_the_rest(self) -> None:
        """What was received, and waits for a request before it: an upgrade that nobody will accept, a full queue.

        Not behind what is no HTTP: the parser would say so again, and again.
        """
        while self._upgraded:
            tail, self._message_tail, self._upgraded = self._message_tail, b"", False
            assert self._parser is not None
            self._parser.set_upgraded(False)
            self.data_received(tail)
        known = -1
        while known < self._request_count and not self._buffer_paused:
            known = self._request_count
            if not self._messages or isinstance(self._messages[-1][0], RawRequestMessage):
                self.data_received(b"")

    def _keep_whole_requests(self) -> bool:
        """Forget the queued ones whose body was cut off. False where nothing is left to be answered."""
        body = self._in_hand if self._waiter is None else None  # with a waiter the last request is answered
        if body is not None and not body.is_eof():
            return False
        whole = list(takewhile(lambda queued: queued[1].is_eof(), self._messages))
        if not whole and body is None:
            return False
        self._messages = deque(whole)
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's; an answer that could not be written is a line in the log."""
        begun = resp.prepared  # then its handler has seen what became of it
        resp, lost = await super().finish_response(request, resp, start_time)
        if lost and not begun and resp.status != ClientGone.status:
            log_untaken(request)
        return resp, lost


class Server(web.Server):
    """aiohttp's, with connections of ours, and clocks on what is answered there."""

    def __init__(self, handler: Any, *, limits: Limits, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._clocks = AnswerClocks(
            self._connections, idle_seconds=limits.idle_seconds, min_rate_bytes=limits.min_answer_rate_bytes
        )
        self._clocks.start()

    def __call__(self) -> Connection:
        """A connection's handler. Raises TypeError for a setting that it does not know."""
        return Connection(self, loop=self._loop, **self._kwargs)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own
        """As aiohttp's: the end of all connections."""
        await super().shutdown(timeout)
        self._clocks.stop()

    @classmethod
    def like(cls, server: web.Server, limits: Limits) -> Server:
        """One with the settings of aiohttp's own, which makes them of an application."""
        return cls(
            server.request_handler,
            limits=limits,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,
            **server._kwargs,
        )
