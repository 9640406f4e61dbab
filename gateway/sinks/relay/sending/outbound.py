"""One body on its way to one of several destinations, over one attempt or more.

Whoever has the bytes calls `put`, and at the end `finish`; `run` goes on beside them and makes the requests.

1. *Nothing early.* `finish` has the last bytes: the closing delimiter, or of a body without one the last byte of
   its declared length. None of them is handed over before, so no destination can take the request for complete.
2. *The kept prefix.* Up to `replay_bytes` of what was put is kept, by reference. While it is all that was handed
   to a transport, an attempt that ends without an answer may be followed by one at another destination, which
   gets the prefix again, then the rest. From the first byte beyond it on the body is pinned to where it is, and
   the prefix is let go of. `replay_bytes` = 0 pins with the first byte.
   A pooled connection that broke says nothing about its destination, which may then be tried again.
3. *Never twice.* Once the end was handed over, or tried to be, there is no other attempt: whoever read that far may
   have acted upon it. The one exception is the answer 411, which says that the body was refused unread.
4. *Spooled* bodies wait in a temporary file until `finish`, and go out with an exact Content-Length; they are kept
   whole, so only rule 3 ends the attempts. A body turns to this way when its destination answers 411 or 501 to a
   chunked request while all that was handed over is still kept, and from the start where that is known.
5. *A declared length* is kept to: a byte too many is Malformed before it is handed over, one too few when the body
   is finished, and either breaks the request off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import aiohttp

from gateway.errors import GatewayError, Malformed, SinkTimeout, SinkUnavailable
from gateway.http.lent_connection import ConnectionLost
from gateway.sinks import Answered
from gateway.sinks.relay.sending.destinations import Destination, Destinations, Visit
from gateway.sinks.relay.sending.exchange import Broken, Exchange, Framing
from gateway.sinks.relay.sending.spool import Region, Spool

__all__ = ["COALESCE_BYTES", "Outbound"]

log = logging.getLogger("gateway.outbound")

COALESCE_BYTES = 256 << 10
"""Smaller pieces are joined up to this size: to send a part's head on its own costs as much as copying its data."""


class Outbound:
    """`put` and `finish` are called from one task at a time; all but `end` wait as long as the destination does."""

    def __init__(
        self,
        name: str,
        destinations: Destinations,
        exchange: Callable[[Destination], Exchange],
        *,
        content_type: str,
        length: int | None,
        replay_bytes: int,
        spool: Callable[[], Spool | Region],
        spooled: bool,
        excused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._name = name
        self._destinations = destinations
        self._make_exchange = exchange
        self._content_type = content_type
        self._length = length
        self._replay_bytes = replay_bytes
        self._make_spool = spool
        self._spooled = spooled
        self._excused = excused
        """Entered while a request of ours, with its own clocks, is what is waited for."""
        self._begun = asyncio.Event()
        self._whole = asyncio.Event()
        self._moved = asyncio.Event()
        # on its way in
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._put_bytes = 0
        self._tail = b""
        # kept
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._spool: Spool | Region | None = None
        # on its way out
        self._visit: Visit | None = None
        self._exchange: Exchange | None = None
        self._handed = 0  # how many of the kept pieces, or of the spooled bytes, the exchange was given
        self._response: aiohttp.ClientResponse | None = None

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    # -- the bytes

    async def put(self, data: bytes) -> None:
        """The next bytes of the body. Small ones may be held back until `flush`, or more of them."""
        self._begun.set()
        if self._pending_bytes + len(data) > COALESCE_BYTES:
            await self.flush()
        if len(data) < COALESCE_BYTES:
            self._pending.append(data)
            self._pending_bytes += len(data)
        else:
            await self._pass_on(data)

    async def flush(self) -> None:
        if self._pending:
            data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
            await self._pass_on(data)

    async def finish(self, tail: bytes) -> aiohttp.ClientResponse:
        """The end of the body, and the answer to all of it."""
        await self.flush()
        self._count(tail)
        self._tail += tail
        if self._length is not None and self._put_bytes != self._length:
            raise Malformed(f"the body is {self._put_bytes} bytes, and was declared to be {self._length}")
        self._begun.set()
        while self._response is None:
            exchange = await self._caught_up(whole=True)
            assert exchange is not None
            if not exchange.was_closed:
                try:
                    await exchange.close(self._tail)
                except ConnectionLost:
                    continue
            if self._response is None and exchange is self._exchange:
                await self._move()
        return self._response

    async def _pass_on(self, data: bytes) -> None:
        self._count(data)
        if self._length is not None and self._put_bytes == self._length:
            data, self._tail = data[:-1], data[-1:]  # rule 1
        if not data:
            return
        exchange = None
        if not self._spooled:
            exchange = await self._caught_up()
        if self._spooled:
            await self._to_spool(data)
        elif self._kept is not None and self._kept_bytes + len(data) <= self._replay_bytes:
            self._kept.append(data)
            self._kept_bytes += len(data)
            await self._caught_up()
        else:
            assert exchange is not None
            self._kept = None
            try:
                await exchange.write(data)
            except ConnectionLost:
                await asyncio.get_running_loop().create_future()  # `run` says why, and ends this

    def _count(self, data: bytes) -> None:
        self._put_bytes += len(data)
        if self._length is not None and self._put_bytes > self._length:
            raise Malformed(f"the body is more than the {self._length} bytes that were declared")

    async def _caught_up(self, *, whole: bool = False) -> Exchange | None:
        """What has all that was put and kept, and takes more. None if that is the spool, and not yet `whole`."""
        while True:
            if self._spooled:
                await self._to_spool()
                if not whole:
                    return None
                if not self._whole.is_set():
                    assert self._spool is not None
                    await self._spool.flush()
                    self._whole.set()
            exchange = self._exchange
            if exchange is None or exchange.lost:
                await self._move()
                continue
            if exchange.was_closed:
                return exchange
            try:
                await exchange.ready()
                if exchange is self._exchange and await self._handed_over(exchange):
                    return exchange
            except ConnectionLost:
                continue

    async def _handed_over(self, exchange: Exchange) -> bool:
        """Hand over what is kept. False if something was awaited, so that the connection may have gone meanwhile."""
        if self._spool is not None:
            if self._handed < self._spool.size:
                piece = await self._spool.read(self._handed)
                if exchange is self._exchange:
                    self._handed += len(piece)
                    await exchange.write(piece)
                return False
        elif self._kept is not None and self._handed < len(self._kept):
            piece = self._kept[self._handed]
            self._handed += 1
            await exchange.write(piece)
            return False
        return True

    async def _to_spool(self, data: bytes = b"") -> None:
        if self._spool is None:
            self._spool = self._make_spool()
            kept, self._kept = self._kept, None
            for piece in kept or ():
                await self._spool.write(piece)
        if data:
            await self._spool.write(data)

    async def _move(self) -> None:
        """Until `run` has something new: an exchange, an answer, the way by the spool. If it fails, this is ended."""
        self._moved.clear()
        await self._moved.wait()

    # -- the requests

    async def run(self) -> None:
        """Make requests until one has an answer to the whole body. Raises Answered and a sink's errors."""
        await self._begun.wait()
        tried: set[Destination] = set()
        error: GatewayError = SinkUnavailable(f"no destination of sink {self._name} is healthy", sink=self._name)
        while True:
            if self._spooled:
                await self._whole.wait()
            visit = self._visit = self._destinations.choose(tried)
            if visit is None:
                raise error
            try:
                with self._excused():
                    if await self._tries(visit):
                        return
            except Broken as broken:
                error = broken.error
                self._explain(error)
                stale = self._exchange is not None and self._exchange.reused
                if not stale:
                    visit.failed()
                    tried.add(visit.destination)
                if self._ended or (not self._spooled and self._kept is None):
                    raise error from broken
                log.debug("%s: %s; another destination may do", self._name, error.detail)
            self._leave()

    async def _tries(self, visit: Visit) -> bool:
        """One attempt. False if the body is to be spooled first."""
        destination = visit.destination
        if self._length is None and not self._spooled and destination.wants_length:
            self._turn_to_spool()
            return False
        exchange = self._exchange = self._make_exchange(destination)
        self._handed = 0
        self._moved.set()
        length = self._length
        if self._spooled:
            assert self._spool is not None
            length = self._spool.size + len(self._tail)
        try:
            response = await exchange.answer(Framing(self._content_type, length))
        except Answered as answered:
            visit.answered()
            if self._learns(visit, exchange, answered.response, length) or self._unasked(visit, exchange, answered):
                return False
            raise
        except GatewayError as error:
            self._explain(error)
            if isinstance(error, SinkTimeout):
                visit.failed()
            raise
        visit.answered()
        if self._learns(visit, exchange, response, length):
            return False
        self._response = response
        self._moved.set()
        return True

    def _learns(self, visit: Visit, exchange: Exchange, response: aiohttp.ClientResponse, length: int | None) -> bool:
        """Whether the answer means that the destination wants a length, and this body can be sent with one yet."""
        if length is not None or response.status not in (411, 501) or (response.status == 501 and exchange.was_closed):
            return False
        log.info("%s: %s wants a length: %d", self._name, visit.destination.url, response.status)
        visit.destination.wants_length = True
        if self._kept is None:
            return False
        exchange.abort()
        self._turn_to_spool()
        return True

    def _unasked(self, visit: Visit, exchange: Exchange, answered: Answered) -> bool:
        """Whether only our Expect was refused, which the client never sent: again without it (RFC 9110 10.1.1)."""
        if answered.response.status != 417 or exchange.sent_bytes or visit.destination.refuses_expect:
            return False
        visit.destination.refuses_expect = True
        exchange.abort()
        self._exchange = None
        self._moved.set()
        return True

    def _turn_to_spool(self) -> None:
        self._spooled = True
        self._exchange = None
        self._moved.set()

    @property
    def _ended(self) -> bool:
        return self._exchange is not None and self._exchange.was_closed

    def _explain(self, error: GatewayError) -> None:
        """How much was on its way, against how much could have been sent again."""
        if "sent_bytes" in error.members:
            error.members["replay_bytes"] = self._replay_bytes

    def _leave(self) -> None:
        if self._exchange is not None:
            self._exchange.abort()
        if self._visit is not None:
            self._visit.leave()
        self._visit = None

    async def end(self) -> None:
        """Let go of everything; a request that was not finished is broken off."""
        self._leave()
        self._kept, self._pending = None, []  # at once, whoever may still hold on to us
        if self._spool is not None:
            await self._spool.close()
