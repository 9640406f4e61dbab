"""One attempt at one HTTP request whose body is still on its way: its clocks, its answer, its abort.

1. The answer is awaited beside the body (`answer`). One that comes before the end of the body was sent:
   - 300 and above ends the upload at once, and is the client's to read on a route of kind relay: neither a refusal
     nor a redirect says that the body was taken;
   - 2xx, complete or breaking our body off, is a lie about a body that was not seen: refused;
   - 2xx whose own body is still open waits until the end of ours was sent.
2. What aiohttp raises is told apart by what had happened: no connection is SinkUnavailable, a connection
   that broke is SinkRefused without a status, a clock is SinkTimeout with the clock's name. Those that another
   destination might do better come wrapped, as `Broken`. A failure met while writing is not reported there
   (ConnectionLost): the response, if one came, says more, and `answer` has it.
3. Clocks: `connect` until the connection stands, with the wait for the pool, DNS and TLS in it; `write` while a
   write waits for room; `first_byte` from our last byte to the head of the answer; `total` for all of it. They are
   looked at when the first of them could be over: a write does not touch a timer. A destination that reads slowly but
   steadily makes progress that neither write nor end shows, since systems on both sides hold some of it: what its
   system has taken is looked at, too, a few times in each limit.
4. A body that is never completed is broken off when its exchange is left: not a byte of a closing delimiter, or
   of a declared length, is made up for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs
from yarl import URL

from gateway.concurrency.timer import RearmingTimer
from gateway.errors import SinkFault, SinkRefused, SinkTimeout
from gateway.http.lent_connection import ConnectionLost, LentConnection
from gateway.sinks import Answered
from gateway.sinks.relay.sending.connect import connection_fault
from gateway.sinks.relay.sending.request import Expecting, LentBody, RequestHead, Taught

__all__ = ["Broken", "Clocks", "Exchange"]

_LOOKS = 4
"""So often within each limit: one that has stopped is found by so much of it later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Seconds; 0 = none."""

    connect_seconds: float = 10
    write_seconds: float = 0
    first_byte_seconds: float = 0
    total_seconds: float = 0


class Broken(Exception):
    """No answer came, and perhaps another destination gives one; `error` is what to tell if not."""

    def __init__(self, error: SinkFault) -> None:
        super().__init__(str(error))
        self.error = error


class Exchange:
    """Write the body to `connection`, and its last bytes with `end`, from one task; await `answer` in another.

    `answered` is called with the seconds from the end of the body to the head of the answer, unless that came first.
    """

    def __init__(
        self,
        name: str,
        session: aiohttp.ClientSession,
        head: RequestHead,
        clocks: Clocks,
        *,
        expecting: Expecting = Expecting(),  # noqa: B008 - frozen
        taught: Taught | None = None,
        server_name: str | None = None,
        answered: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.connection = LentConnection()
        self.end_sent = False
        """Whether the last byte of the body was handed over: from here on an answer is about all of it."""
        self.end_attempted = False
        """The same, or it was tried: the destination may have the whole body."""
        self._name = name
        self._session = session
        self._head = head
        self._clocks = clocks
        self._body = LentBody(self.connection, head, expecting, taught or Taught())
        self._server_name = server_name
        self._answered = answered
        self._response: aiohttp.ClientResponse | None = None
        self._timer = RearmingTimer(self._look)
        self._began_at = 0.0
        self._ended_at: float | None = None
        self._acked: tuple[int | None, float] = (None, 0.0)
        """What the destination's system had taken, and when that was seen to be more than before."""
        self._waiting: asyncio.Timeout | None = None
        """Ends the wait for the answer; None before and after it."""
        self._expired: tuple[str, float] | None = None

    # -- the body

    async def end(self, tail: bytes) -> None:
        """The last bytes of the body, perhaps none. Raises ConnectionLost."""
        connection = self.connection
        await connection.ready()
        self.end_sent = self.end_attempted = True  # before the write: the destination may answer while that waits
        try:
            if tail:
                await connection.write(tail)
        except ConnectionLost:
            self.end_sent = False
            connection.changed.set()
            raise
        connection.complete()
        self._ended_at = asyncio.get_running_loop().time()
        connection.changed.set()
        if self._waiting is not None:
            self._timer.look()

    def abort(self) -> None:
        """Let go of the connection; unless the end was sent, break the request off."""
        self._timer.stop()
        if self._response is not None:
            self._response.close()
        else:
            self.connection.drop()
        self.connection.abort()

    # -- the answer

    async def answer(self) -> aiohttp.ClientResponse:
        """Make the request, and see to its answer: the head of one to the whole body. Its body is not read.

        Raises Answered, Broken, SinkRefused, SinkTimeout.
        """
        self._began_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as self._waiting:
                self._timer.look()
                response = self._response = await self._request()
                if self._ended_at is not None:
                    self._answered(asyncio.get_running_loop().time() - self._ended_at)
                await self._has_whole_body(response)
                return response
        except TimeoutError as error:
            if self._expired is None:
                raise
            raise self._timeout(*self._expired) from error
        finally:
            self._waiting = None
            self._timer.look()

    async def _has_whole_body(self, response: aiohttp.ClientResponse) -> None:
        """Until the answer may be taken for one to the whole body (rule 1)."""
        if response.status < 200:
            raise SinkRefused(f"sink {self._name} switched protocols", sink=self._name, sink_status=response.status)
        connection = self.connection
        response.content.on_eof(connection.changed.set)
        while not self.end_sent:
            if response.status >= 300:
                connection.lose()
                raise Answered(self._name, response)
            if response.content.is_eof() or connection.lost:
                raise SinkRefused(
                    f"sink {self._name} answered {response.status} before it had the whole body",
                    sink=self._name,
                    sink_status=response.status,
                )
            connection.changed.clear()
            await connection.changed.wait()

    async def _request(self) -> aiohttp.ClientResponse:
        clocks, head = self._clocks, self._head
        try:
            return await self._session.request(
                head.method,
                URL(head.url, encoded=True),
                data=self._body,
                headers=head.headers,
                skip_auto_headers=() if head.content_type else (hdrs.CONTENT_TYPE,),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=clocks.connect_seconds or None),
                server_hostname=self._server_name,
            )
        except TimeoutError as error:
            raise self._timeout("connect", clocks.connect_seconds) from error
        except (aiohttp.ClientError, OSError) as error:
            sent_bytes, whole = self.connection.sent_bytes, self.end_attempted
            fault = connection_fault(self._name, error, sent_bytes=sent_bytes, may_have_acted=whole)
            if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
                raise Broken(fault) from error
            raise fault from error

    # -- clocks (rule 3)

    def _look(self) -> float | None:
        """End what is over a limit. In how many seconds something could next be; None where there is no limit."""
        clocks, now = self._clocks, asyncio.get_running_loop().time()
        due: list[tuple[float, str, float]] = []
        steady = math.inf
        if clocks.total_seconds:
            due.append((self._began_at + clocks.total_seconds, "total", clocks.total_seconds))
        if self._waiting is not None and self._response is None:
            acked = self.connection.acked_bytes
            if acked != self._acked[0]:
                self._acked = (acked, now)
        if clocks.write_seconds and self._waiting is not None:
            since = self.connection.writing_since
            since = now if since is None else max(since, self._acked[1])
            due.append((since + clocks.write_seconds, "write", clocks.write_seconds))
            steady = clocks.write_seconds / _LOOKS
        if clocks.first_byte_seconds and self._ended_at is not None and self._response is None:
            since = max(self._ended_at, self._acked[1])
            due.append((since + clocks.first_byte_seconds, "first_byte", clocks.first_byte_seconds))
            steady = min(steady, clocks.first_byte_seconds / _LOOKS)
        if not due:
            return None
        when, clock, seconds = min(due)
        if when > now:
            return min(when - now, steady)
        if self._waiting is not None:
            self._expired = (clock, seconds)
            self._waiting.reschedule(now)
        elif self._response is not None:  # whoever reads its body is cut off
            self._response.close()
        return None

    def _timeout(self, clock: str, seconds: float) -> Exception:
        what = {
            "connect": "could not be connected to in",
            "write": "took nothing for",
            "first_byte": "did not answer the whole body in",
            "total": "was not done in",
        }[clock]
        error = SinkTimeout(
            f"sink {self._name} {what} {seconds:g} seconds ({clock}_seconds)",
            sink=self._name,
            clock=clock,
            limit=seconds,
            sent_bytes=self.connection.sent_bytes,
            **({"may_have_acted": True} if self.end_attempted else {}),
        )
        return error if clock == "total" else Broken(error)
