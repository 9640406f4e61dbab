"""One attempt at one HTTP request whose body is still on its way: its clocks, its answer, its abort.

1. The answer is awaited beside the body (`answer`). One that comes before the body was closed:
   - 400 and above ends the upload at once, and is the client's to read on a route of kind relay;
   - 2xx and 3xx, complete or breaking our body off, is a lie about a body that was not seen: refused;
   - 2xx and 3xx whose own body is still open is held until the body is closed.
2. What aiohttp raises is told apart by what had happened: no connection is SinkUnavailable, a connection
   that broke is SinkRefused without a status, a clock is SinkTimeout with the clock's name. Those that another
   destination might do better come wrapped, as `Broken`. A failure met while writing is not reported there
   (ConnectionLost): the response, if one came, says more, and `answer` has it.
3. Clocks: `connect` until the connection stands, with the wait for the pool, DNS and TLS in it; `write` while a
   write waits for room; `first_byte` from our last byte to the head of the answer; `total` for all of it. The
   timer is armed for when the first of them could be over, and looks then: a write does not touch it.
4. With `expect_seconds` the body waits for `100 Continue`, or for so long: some peers never say it (RFC 9110
   10.1.1). aiohttp waits without end, so its future is set by a timer of ours. A refusal that comes instead ends
   the body before its first byte.
5. A body that is never completed is broken off when its exchange is left: not a byte of a closing delimiter, or
   of a declared length, is made up for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from yarl import URL

from gateway.errors import SinkFault, SinkRefused, SinkTimeout
from gateway.http.lent_connection import ConnectionLost, LentConnection
from gateway.sinks import Answered
from gateway.sinks.relay.sending.connect import connection_fault

__all__ = ["Broken", "Clocks", "Exchange", "Framing", "StreamingRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Seconds; 0 = none."""

    connect_seconds: float = 10
    write_seconds: float = 0
    first_byte_seconds: float = 0
    total_seconds: float = 0
    expect_seconds: float = 0
    """How long a body waits for `100 Continue`; 0 does not ask for one."""


@dataclass(frozen=True, slots=True)
class Framing:
    """What a request says about its body."""

    content_type: str
    """Empty where nobody told."""
    length: int | None
    """None is chunked."""


class Broken(Exception):
    """No answer came, and perhaps another destination gives one; `error` is what to tell if not."""

    def __init__(self, error: SinkFault) -> None:
        super().__init__(str(error))
        self.error = error


class Exchange:
    """Write the body with `write` and `close` from one task, and await `answer` in another."""

    def __init__(
        self,
        name: str,
        session: aiohttp.ClientSession,
        url: str,
        headers: Sequence[tuple[str, str]],
        clocks: Clocks,
        *,
        method: str = "POST",
        server_name: str | None = None,
    ) -> None:
        self.name = name
        self.closed = False
        """Whether the last byte of the body was handed over: from here on an answer is about all of it."""
        self.was_closed = False
        """The same, or it was tried: the destination may have the whole body."""
        self._session = session
        self._method = method
        self._url = url
        self._headers = list(headers)
        self._clocks = clocks
        self._server_name = server_name
        self._lent = LentConnection()
        self._response: aiohttp.ClientResponse | None = None
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.Timeout | None = None
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None
        self._began_at = 0.0
        self._closed_at: float | None = None
        self._expired: tuple[str, float] | None = None

    # -- the body

    @property
    def sent_bytes(self) -> int:
        """Handed to the transport."""
        return self._lent.sent_bytes

    @property
    def lost(self) -> bool:
        return self._lent.lost

    @property
    def reused(self) -> bool:
        """Whether its connection was an old one, which the destination may have given up."""
        return self._lent.reused

    async def ready(self) -> None:
        """Wait for the connection, and for leave to send. Raises ConnectionLost."""
        await self._lent.ready()

    async def write(self, data: bytes) -> None:
        await self._lent.write(data)

    async def close(self, tail: bytes) -> None:
        """The last bytes of the body, perhaps none. Raises ConnectionLost."""
        await self._lent.ready()
        self.closed = self.was_closed = True  # before the write: the destination may answer while that waits
        try:
            if tail:
                await self._lent.write(tail)
        except ConnectionLost:
            self.closed = False
            self._lent.changed.set()
            raise
        self._lent.complete()
        self._closed_at = self._loop.time()
        self._lent.changed.set()
        if self._answering:
            self._look()

    def abort(self) -> None:
        """Let go of the connection; unless the body was closed, break the request off."""
        if self._timer is not None:
            self._timer.cancel()
        if self._response is not None:
            self._response.close()
        else:
            self._lent.drop()
        self._lent.abort()

    # -- the answer

    async def answer(self, framing: Framing) -> aiohttp.ClientResponse:
        """Make the request, and see to its answer: the head of one to the whole body. Its body is not read.

        Raises Answered, Broken, SinkRefused, SinkTimeout.
        """
        self._began_at = self._loop.time()
        try:
            async with asyncio.timeout(None) as self._alarm:
                self._answering = True
                self._look()
                response = self._response = await self._request(framing)
                await self._held(response)
                return response
        except TimeoutError as error:
            if self._expired is None:
                raise
            raise self._timeout(*self._expired) from error
        finally:
            self._answering = False
            if self._timer is not None:
                self._timer.cancel()
            if self._response is not None and self._clocks.total_seconds:
                self._timer = self._loop.call_at(self._began_at + self._clocks.total_seconds, self._response.close)

    async def _held(self, response: aiohttp.ClientResponse) -> None:
        """Until the answer may be taken for one to the whole body (rule 1)."""
        if response.status < 200:
            raise SinkRefused(f"sink {self.name} switched protocols", sink=self.name, sink_status=response.status)
        lent = self._lent
        response.content.on_eof(lent.changed.set)
        while not self.closed:
            if response.status >= 400:
                lent.lose()
                raise Answered(self.name, response)
            if response.content.is_eof() or lent.lost:
                raise SinkRefused(
                    f"sink {self.name} answered {response.status} before it had the whole body",
                    sink=self.name,
                    sink_status=response.status,
                )
            lent.changed.clear()
            await lent.changed.wait()

    async def _request(self, framing: Framing) -> aiohttp.ClientResponse:
        clocks = self._clocks
        body = _Body(self._lent, framing, clocks.expect_seconds)
        try:
            return await self._session.request(
                self._method,
                URL(self._url, encoded=True),
                data=body,
                headers=self._headers,
                expect100=clocks.expect_seconds > 0,
                skip_auto_headers=() if framing.content_type else (hdrs.CONTENT_TYPE,),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=clocks.connect_seconds or None),
                server_hostname=self._server_name,
            )
        except TimeoutError as error:
            raise self._timeout("connect", clocks.connect_seconds) from error
        except (aiohttp.ClientError, OSError) as error:
            fault = connection_fault(self.name, error, sent_bytes=self.sent_bytes)
            if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
                raise Broken(fault) from error
            raise fault from error

    # -- clocks (rule 3)

    def _look(self) -> None:
        """End what is over the limit, and come back when something could next be."""
        clocks, now = self._clocks, self._loop.time()
        due: list[tuple[float, str, float]] = []
        if clocks.total_seconds:
            due.append((self._began_at + clocks.total_seconds, "total", clocks.total_seconds))
        if clocks.write_seconds:
            since = self._lent.writing_since
            due.append(((now if since is None else since) + clocks.write_seconds, "write", clocks.write_seconds))
        if clocks.first_byte_seconds and self._closed_at is not None and self._response is None:
            due.append((self._closed_at + clocks.first_byte_seconds, "first_byte", clocks.first_byte_seconds))
        if self._timer is not None:
            self._timer.cancel()
        if not due:
            return
        when, clock, seconds = min(due)
        if when > now:
            self._timer = self._loop.call_at(when, self._look)
            return
        self._expired = (clock, seconds)
        assert self._alarm is not None
        self._alarm.reschedule(now)

    def _timeout(self, clock: str, seconds: float) -> Exception:
        what = {
            "connect": "could not be connected to in",
            "write": "took nothing for",
            "first_byte": "did not answer the whole body in",
            "total": "was not done in",
        }[clock]
        error = SinkTimeout(
            f"sink {self.name} {what} {seconds:g} seconds ({clock}_seconds)",
            sink=self.name,
            clock=clock,
            limit=seconds,
            sent_bytes=self.sent_bytes,
        )
        return error if clock == "total" else Broken(error)


class _Body(Payload):
    """The body as aiohttp sees it."""

    def __init__(self, lent: LentConnection, framing: Framing, expect_seconds: float) -> None:
        super().__init__(None, content_type=framing.content_type)
        self._size = framing.length
        self.lent = lent
        self.expect_seconds = expect_seconds

    async def write(self, writer: AbstractStreamWriter) -> None:
        if self._consumed:
            raise RuntimeError("this body was sent already")
        self._consumed = True  # before the first await: it stops aiohttp from sending it a second time, empty
        await self.lent.lend(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)

    async def close(self) -> None:
        """aiohttp may call this while the body is still being written: nothing to do."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a streaming body cannot be decoded")

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise TypeError("a streaming body cannot be held in memory")


_used: WeakSet[object] = WeakSet()
"""Connections that have carried a request."""


class StreamingRequest(aiohttp.ClientRequest):
    """Waits for `100 Continue` no longer than its body says (rule 4), and tells it if its connection is an old one."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        if isinstance(self.body, _Body):
            self.body.lent.reused = conn.protocol in _used
        _used.add(conn.protocol)
        return await super().send(conn)

    async def write_bytes(self, writer: AbstractStreamWriter, conn: Any, content_length: int | None = None) -> None:
        waiting, body = self._continue, self.body
        if waiting is None or not isinstance(body, _Body):
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
