"""A client's connection: where its requests begin and end, one at a time, and what its FIN means.

aiohttp's parser is given whole heads that `request_heads` has looked at, and nothing else. Bodies go past it.

1. The next request is begun when the one before it is answered and its body has come. What comes before that waits as
   it is, and when that is ENOUGH_BYTES nothing more is received: a connection holds a head at most, and so much.
2. What is refused by `request_heads`, or by aiohttp's parser, is answered with a problem like any other, and is the
   last one of its connection; so is one that asked for another protocol, or whose chunks are broken. What is behind is
   dropped.
3. A FIN ends what its sender sends, and it may go on receiving (RFC 9293 3.6); aiohttp would take it for a hang-up.
   Behind whole requests it ends nothing but the client's side: they are answered, in order, then the connection is
   closed.
4. A FIN within a body, whatever its framing, is a hang-up as ever: the request is aborted (G3). Where whole requests
   stand before it they are answered, and it is not begun. So is half a head dropped.
5. With nothing to answer a FIN closes the connection at once.
6. On one that came when there were more than are served nothing but health is answered, or a problem that says so, and
   that is the last answer, unless enough of the others have ended by then.
7. A head has `head_seconds`: the first one from the beginning of the connection on, others from their first byte, or
   from the answer before if that is later. Half a head is answered with 408 then, nothing with nothing. Between an
   answer and the next head aiohttp's clock runs, `keepalive_timeout`.
8. What comes behind the answer to one that may not do what it asks for is read to _UNREAD_BYTES, and no further: its
   sender gets a FIN, and the end of the connection. After any other early answer aiohttp lingers over the rest.

A client that quits right after its last byte looks the same from here. Its upload completes, and only writing the
answer can tell that nobody is left to take it: one line in the log.

TLS has no half-close: there a FIN stays what aiohttp makes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.access import Browsers, refused_origin
from gateway.config.settings import HEALTH_PATHS
from gateway.errors import Busy, ClientGone, GatewayError, Malformed, Stalled
from gateway.http.answers import SERVER_NAME, UNREAD
from gateway.http.forwarding import REQUEST_ID
from gateway.http.origin import UNIX_PEER, peer_address
from gateway.http.prefix import without_base
from gateway.http.problems import problem
from gateway.http.request_bodies import Body, ChunkedBody, LengthBody
from gateway.http.request_heads import ENOUGH_BYTES, MAX_FIELDS, RECEIVE_BYTES, checked_head, end_of_head
from gateway.http.ulids import new_ulid
from gateway.server.record import log_refused, log_untaken

__all__ = ["Connection"]

_BODY_RECEIVE_BYTES = 256 << 10
"""asyncio's own. Intake has more for large bodies."""
_UNREAD_BYTES = 64 << 10
"""What is under way when the answer leaves; to break off at once could cost the client the answer."""
_TOO_MANY = "more clients are connected than server.max_connections, or the descriptors that there are, allow"
_NO_HTTP = "the head of the request is no HTTP: its target is no URL, or a field that may stand once stands twice"


class Connection(RequestHandler):
    """aiohttp's handler of one connection, which finds its requests by itself: rules 1 to 8."""

    __slots__ = (
        "_base_path",
        "_body",
        "_browsers",
        "_count_refused",
        "_has_ended",
        "_head_clock",
        "_head_seconds",
        "_is_answered",
        "_is_beyond",
        "_is_last",
        "_is_over",
        "_late",
        "_looked_at",
        "_max_head_bytes",
        "_next_seconds",
        "_reader",
        "_received",
        "_refused",
        "_refused_from",
        "_unread_bytes",
        "peer",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        is_beyond: bool,
        is_over: Callable[[], bool],
        refused: Callable[[GatewayError], None],
        max_head_bytes: int,
        head_seconds: float,
        base_path: str,
        browsers: Browsers,
        **settings: Any,
    ) -> None:
        super().__init__(manager, **settings)
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=max_head_bytes,
            max_field_size=max_head_bytes,
            max_headers=MAX_FIELDS + 2,  # lines: the parser in Python counts the first and the last one, too
            auto_decompress=False,
            response_with_body=False,  # a message is over with its head
        )
        self._max_head_bytes = max_head_bytes
        self._head_seconds = head_seconds
        self._head_clock: asyncio.TimerHandle | None = None
        """While a head is waited for, or comes."""
        self._base_path = base_path
        self._browsers = browsers
        self._is_beyond = is_beyond
        """Whether as many as are served were there before this one."""
        self._is_over = is_over
        """Whether there are more than that now."""
        self._count_refused = refused
        self._late = 0
        """The number of the request that may begin although the gateway drains."""
        self._next_seconds = 0.0
        """Behind an answer that has not told its client that it is the last one: so long for another request."""
        self.peer = ""
        """The address of whoever is connected."""
        self._received = bytearray()
        """From the beginning of a request on that is not begun."""
        self._looked_at = 0
        """So many bytes of it have no end of a head."""
        self._body: Body | None = None
        """Of the request that was begun last, until all of it has come."""
        self._reader: StreamReader = EMPTY_PAYLOAD
        """What that request reads its body from."""
        self._refused: StreamReader | None = None
        """In place of the body of one that was refused: aiohttp lingers over it, so that the answer can be read."""
        self._refused_from: tuple[str, str | None] = ("", None)
        """The path and the origin of that one, as far as it came."""
        self._unread_bytes: int | None = None
        """So many bytes of its body may still come, where it was refused; None: it was not."""
        self._is_answered = True
        """Whether no request is in hand."""
        self._is_last = False
        """Whether nothing is begun behind that request."""
        self._has_ended = False
        """The client has sent its FIN."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiohttp's."""
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        # one by a path has a name if it wants to, and then it is any
        self.peer = peer_address(str(name[0])) if isinstance(name, tuple) else UNIX_PEER
        self._receive_at_most(RECEIVE_BYTES)
        self._start_head_clock()

    def connection_lost(self, exc: BaseException | None) -> None:
        """As aiohttp's."""
        super().connection_lost(exc)
        self._stop_head_clock()
        if self._refused is not None:
            self._refused.feed_eof()

    def let_begin(self, *, next_seconds: float) -> None:
        """Its first request may begin although the gateway drains, or whichever is next, if that has `next_seconds`; so
        may one that has come, and is not answered yet.
        """
        self._next_seconds = next_seconds
        number = self._request_count + self._is_answered
        if number == 1 or next_seconds:
            self._late = number

    def let_begin_no_more(self, *, close: bool) -> None:
        """Not what has not come by now; `close` the connection, if it was idle."""
        if self.is_to_begin:
            self._late = 0
            if close and not self._received and self._body is None:
                self.force_close()

    @property
    def is_to_begin(self) -> bool:
        """Whether what was let begin has not come, and still may."""
        return self._late > self._request_count and not self._has_ended

    @property
    def begins_late(self) -> bool:
        """Whether its request now is the one that was let begin although the gateway drains."""
        return self._request_count == self._late

    def data_received(self, data: bytes) -> None:
        """What came, by segments. b"" is aiohttp's own, when whoever reads a body has taken some of it."""
        if self._force_close or self._close or not data:
            return
        if self._unread_bytes is not None:
            self._unread_bytes -= len(data)
            if self._unread_bytes < 0:
                self._drop_body()
                return
        if self._body is not None:
            data = self._feed_body(data)
        if data and not self._is_last:
            self._received += data
        if self._received:
            self._go_on()

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp's returns None, which asyncio allows, too
        """The client sends nothing more. Whether the connection stays open."""
        if self.transport is None or self.ssl_context is not None:
            return False
        self._has_ended = True
        if self._refused is not None:
            self._refused.feed_eof()  # it has read why, or does not care
        return self._body is None and not self._is_answered

    def pause_reading(self) -> None:
        """A body's buffer is full. Not the parser's business, as in aiohttp: no body is in it."""
        self._reading_paused = True
        self._pause_transport_reading()

    def _resume_reading_if_drained(self) -> None:
        """aiohttp's, when it begins with a request; here what waits is behind that one."""

    def _go_on(self) -> None:
        """Begin the next request if it is its turn, and hold back what comes behind it."""
        if self._is_answered and self._body is None and not self._is_last:
            self._begin()
        is_full = not self._is_answered and len(self._received) >= ENOUGH_BYTES
        if is_full and not self._buffer_paused:
            self._pause_reading_for_buffer()
        elif self._buffer_paused and not is_full:
            self._resume_reading_for_buffer()

    def _begin(self) -> None:
        """Give aiohttp the next request if its head is whole."""
        received = self._received
        while received.startswith(b"\r\n"):  # RFC 9112 2.2
            del received[:2]
        try:
            end = end_of_head(received, self._looked_at, max_bytes=self._max_head_bytes) if received else None
            if end is None:
                if received and self._head_clock is None:
                    self._start_head_clock()
                self._looked_at = len(received)
                return
            head = checked_head(bytes(received[:end]))
            assert self._parser is not None
            data = without_base(head.data, self._base_path) if self._base_path else head.data
            ((message, _),), _, _ = self._parser.feed_data(data)
        except GatewayError as error:
            self._refuse(error)
            return
        except (HttpProcessingError, ValueError, LookupError):  # the latter two of what reads targets
            self._refuse(Malformed(_NO_HTTP))
            return
        rest = bytes(received[end:])
        received.clear()
        self._looked_at = 0
        if self._is_beyond:
            self._is_beyond = self._is_over()
            if self._is_beyond and message.url.path not in HEALTH_PATHS:
                self._refuse(Busy(_TOO_MANY), head.data)
                return
        self._is_answered = False
        self._is_last = message.should_close or head.asked_for_upgrade or self._is_beyond
        self._reader = EMPTY_PAYLOAD
        if head.length != 0:
            self._reader = StreamReader(self, self._read_bufsize, loop=self._loop)
            self._body = ChunkedBody() if head.length is None else LengthBody(head.length)
            rest = self._feed_body(rest)
            if self._body is not None:
                if self._has_ended:  # rule 4
                    self._is_answered = self._is_last = True
                    return
                self._receive_at_most(_BODY_RECEIVE_BYTES)
        if not self._is_last:
            received += rest
        self._hand_over(message, self._reader)

    def _hand_over(self, message: RawRequestMessage | _ErrInfo, reader: StreamReader) -> None:
        """To aiohttp, whose task may wait for it."""
        self._stop_head_clock()
        self._request_count += 1
        self._messages.append((message, reader))
        if self._body is None:
            self._wake()
        else:  # what lies in the kernel is received first: small bodies are whole then, which is quicker
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _start_head_clock(self) -> None:
        self._head_clock = self._loop.call_later(self._head_seconds, self._end_head)

    def _stop_head_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _end_head(self) -> None:
        """Rule 7."""
        self._head_clock = None
        if self._received:
            self._refuse(Stalled(f"the head of the request was not whole after {self._head_seconds:g} s"))
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        """As aiohttp's, which would end a connection within a head, too; it is set anew with each answer."""
        if self._head_clock is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = None

    def _feed_body(self, data: bytes) -> bytes:
        """What is behind it."""
        assert self._body is not None
        try:
            content, size = self._body.take(data)
        except Malformed as error:
            self._body, self._is_last = None, True
            self._reader.set_exception(error)
            self._reader.feed_eof()
            return b""
        self._reader.feed_data(content)
        if self._body.ended:
            self._body = None
            self._receive_at_most(RECEIVE_BYTES)
            self._reader.feed_eof()
        return data[size:]

    def _drop_body(self) -> None:
        """For aiohttp it has ended, and then the connection does."""
        self._body, self._is_last = None, True
        self._reader.feed_eof()

    def _receive_at_most(self, size: int) -> None:
        transport: Any = self.transport
        if hasattr(transport, "max_size"):
            transport.max_size = size

    def _refuse(self, error: GatewayError, head: bytes | None = None) -> None:
        """Rule 2. `head`: what is refused, where it is not what was received."""
        self._refused_from = refused_origin(bytes(self._received) if head is None else head, self._base_path)
        self._received.clear()
        self._is_answered, self._is_last = False, True
        self._refused = StreamReader(self, self._read_bufsize, loop=self._loop)
        self._hand_over(_ErrInfo(error.status, error, ""), self._refused)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A refusal as a problem with an id, and in the log with that; aiohttp's answer to anything else."""
        if not isinstance(exc, GatewayError):
            response = super().handle_error(request, status, exc, message)
            response.headers[hdrs.SERVER] = SERVER_NAME
            return response
        identity = new_ulid()
        log_refused(exc, identity, self.peer)
        self._count_refused(exc)
        response = problem(exc, prefix=self._base_path, close=True)
        own = {REQUEST_ID: identity, hdrs.SERVER: SERVER_NAME, hdrs.CONNECTION: "close"}
        response.headers.update(own)  # aiohttp answers as HTTP/1.0 here
        self._browsers.tell(response.headers, *self._refused_from)
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's. An answer that could not be written is a line in the log; then it is the next one's turn."""
        begun, ended = resp.prepared, self._has_ended  # where it is prepared its handler has seen what became of it
        if self._is_last or (ended and not self._begins_another()):
            resp.force_close()
        if self._next_seconds and resp.keep_alive:  # it has begun before the gateway drained
            self._late = self._request_count + 1
            self._loop.call_later(self._next_seconds, partial(self.let_begin_no_more, close=True))
        resp, lost = await super().finish_response(request, resp, start_time)
        if lost:
            if not begun and resp.status != ClientGone.status:
                log_untaken(request)
            return resp, lost
        if self._refused is not None:
            self._end_refusal(self._refused)
        if self._body is not None and resp.get(UNREAD):
            self._unread_bytes = _UNREAD_BYTES
            if self.transport is not None and self.transport.can_write_eof():
                self.transport.write_eof()
        if not resp.keep_alive:
            self._is_last = True
            self._received.clear()
        elif not ended and not self._begins_another() and self._has_ended:
            self._close = True
        return resp, lost

    def _end_refusal(self, linger: StreamReader) -> None:
        """The client is told that nothing more comes, and aiohttp waits for it to stop."""
        if self._has_ended:
            linger.feed_eof()
        elif self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def _begins_another(self) -> bool:
        self._is_answered = True
        self._go_on()
        return not self._is_answered
