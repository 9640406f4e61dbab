"""One body on its way to one of several destinations, over one attempt or more.

Whoever has the bytes calls `put`, and at the end `finish`; `run` goes on beside them and makes the requests.

1. *Nothing early.* `finish` has the last bytes: the closing delimiter, or of a body without one the last byte of
   its declared length. None of them is handed over before, so no destination can take the request for complete.
   What waits so, and what is told of lengths, is pending.py.
2. *What can be sent again.* While all that was handed to a transport is kept (replayable.py: up to `replay_bytes` in
   memory, or a spooled body), an attempt that ends without an answer may be followed by one at another destination,
   which gets the same from the beginning, then the rest. From the first byte beyond it on the body is pinned to where
   it is. `replay_bytes` = 0 pins with the first byte.
   A kept connection that broke says nothing about its destination, which may then be tried again; nor does an answer
   that comes on one before a byte of the body, which may be to nobody: it is asked again, on a new connection.
3. *Never twice.* Once the end was handed over, or tried to be, there is no other attempt: whoever read that far may
   have acted upon it. The one exception is the answer 411, which says that the body was refused unread.
4. *Spooled* bodies wait in a temporary file until `finish`, and go out with an exact Content-Length; they are kept
   whole, so only rule 3 ends the attempts. A body turns to this way when its destination answers 411 or 501 to a
   chunked request while all that was handed over is still kept, and from the start where that is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import aiohttp

from gateway.errors import GatewayError, NoDescriptors, SinkRefused, SinkTimeout, SinkUnavailable
from gateway.http.lent_connection import ConnectionLost
from gateway.sinks import Answered
from gateway.sinks.relay.sending.destinations import Attempt, Destination, Destinations
from gateway.sinks.relay.sending.exchange import Broken, Exchange
from gateway.sinks.relay.sending.pending import Pending
from gateway.sinks.relay.sending.replayable import Replayable

__all__ = ["RETRY_REASONS", "Outbound"]

log = logging.getLogger("gateway.outbound")

_KEPT_CONNECTION, _LENGTH_WANTED, _EXPECT_REFUSED, _STRAY_ANSWER = (
    "kept-connection",
    "length-wanted",
    "expect-refused",
    "stray-answer",
)
RETRY_REASONS = (
    *(error.slug() for error in (SinkRefused, SinkTimeout, SinkUnavailable)),
    *(_KEPT_CONNECTION, _LENGTH_WANTED, _EXPECT_REFUSED, _STRAY_ANSWER),
)
"""Why another request is made for a body: what the one before it failed with, a kept connection that broke, or an
answer that asks for another request.
"""


class Outbound:
    """`put`, `pass_on` and `finish` are called from one task at a time; they wait as long as the destination does.

    `exchange` makes the request to a destination, for a body of so many bytes (None: chunked), on a new connection or
    any. `excused` is entered while a request of ours, with its own clocks, is what is waited for. `retried` is called
    when another request is made, with one of RETRY_REASONS.
    """

    def __init__(
        self,
        name: str,
        destinations: Destinations,
        exchange: Callable[[Destination, int | None, bool], Exchange],
        *,
        length: int | None,
        replayable: Replayable,
        excused: Callable[[], AbstractContextManager[None]] = nullcontext,
        retried: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._name = name
        self._destinations = destinations
        self._make_exchange = exchange
        self._excused = excused
        self._retried = retried
        self._pending = Pending(length)
        self._replayable = replayable
        self._attempt: Attempt | None = None
        self._on_new_connection = False
        self._response: aiohttp.ClientResponse | None = None
        self._begun = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def arrived_bytes(self) -> int:
        """What the destination's system has taken of the body, on the attempt that is under way."""
        exchange = None if self._attempt is None else self._attempt.exchange
        return 0 if exchange is None else exchange.connection.arrived_bytes

    @property
    def backlog_bytes(self) -> int:
        """What was put, and has not arrived."""
        return 0 if self._response is not None else max(0, self._pending.put_bytes - self.arrived_bytes)

    # -- the bytes

    async def put(self, data: bytes) -> None:
        """The next bytes of the body. Small ones may be held back until `pass_on`, or more of them."""
        self._begun.set()
        for piece in self._pending.add((data,)):
            await self._hand_over(piece)

    async def pass_on(self, chunks: Iterable[bytes] = ()) -> None:
        """More of the body, and all that was held back."""
        self._begun.set()
        for piece in self._pending.add(chunks):
            await self._hand_over(piece)
        if self._pending:
            await self._hand_over(self._pending.take())

    async def finish(self, tail: bytes) -> aiohttp.ClientResponse:
        """The end of the body, and the answer to all of it. Raises Malformed where a declared length was not kept."""
        await self.pass_on()
        self._pending.finish(tail)
        while self._response is None:
            if self._replayable.is_spooled and not self._replayable.spooled.is_set():
                await self._replayable.finish_spool()
            attempt = await self._caught_up()
            if attempt is None:
                continue
            assert attempt.exchange is not None
            if not attempt.exchange.end_attempted:
                try:
                    await attempt.exchange.end(self._pending.tail)
                except ConnectionLost:
                    continue
            if self._response is None and attempt is self._attempt:
                await self._move()
        return self._response

    async def _hand_over(self, data: bytes) -> None:
        kept = self._replayable
        if not kept.is_pinned:
            if kept.keep(data):
                await self._caught_up()
                return
            if await self._caught_up() is None:
                await kept.spool(data)
                return
            kept.pin()
        assert self._attempt is not None
        assert self._attempt.exchange is not None
        try:
            await self._attempt.exchange.connection.write(data)
        except ConnectionLost:
            await asyncio.get_running_loop().create_future()  # `run` says why, and ends this

    async def _caught_up(self) -> Attempt | None:
        """The attempt that has all that is kept, and takes more. None if the rest is to be spooled first."""
        while not self._replayable.is_spooled or self._replayable.spooled.is_set():
            attempt = self._attempt
            exchange = None if attempt is None else attempt.exchange
            if attempt is None or exchange is None or exchange.connection.lost:
                await self._move()
                continue
            if exchange.end_attempted:
                return attempt
            try:
                piece, handed = await self._replayable.after(attempt.handed)
                if not piece:
                    await exchange.connection.ready()
                    if attempt is self._attempt:
                        return attempt
                elif attempt is self._attempt:
                    attempt.handed = handed
                    await exchange.connection.write(piece)
            except ConnectionLost:
                continue
        return None

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
        reason = ""
        while True:
            if self._replayable.is_spooled:
                await self._replayable.spooled.wait()
            attempt = self._attempt = self._destinations.choose(tried)
            if attempt is None:
                raise error
            if self._wants_other_length(attempt.destination):
                attempt.leave()
                continue
            if reason:
                self._retried(reason)
            try:
                with self._excused():
                    reason = await self._why_again(attempt)
                if not reason:
                    return
            except Broken as broken:
                error = broken.error
                reason = error.slug()
                self._explain(error)
                if isinstance(error, NoDescriptors):  # says nothing of the destination, and there is none for another
                    raise error from broken
                assert attempt.exchange is not None
                if attempt.exchange.connection.reused:
                    reason = _KEPT_CONNECTION
                else:
                    attempt.failed()
                    tried.add(attempt.destination)
                if attempt.exchange.end_attempted or self._replayable.is_pinned:
                    raise error from broken
                log.debug("%s: %s; another destination may do", self._name, error.detail)
            attempt.leave()

    def _wants_other_length(self, destination: Destination) -> bool:
        """Whether this body has to be spooled before it can be sent there."""
        if self._replayable.is_spooled or self._pending.length is not None or not destination.wants_length:
            return False
        self._turn_to_spool()
        return True

    async def _why_again(self, attempt: Attempt) -> str:
        """Make the request. Why there is to be another one, although none failed; "" where it is answered."""
        length, kept = self._pending.length, self._replayable
        if kept.is_spooled:
            length = kept.size + len(self._pending.tail)
        exchange = attempt.exchange = self._make_exchange(attempt.destination, length, self._on_new_connection)
        self._moved.set()
        try:
            response = await exchange.answer()
        except Answered as answered:
            attempt.answered()
            response = answered.response
            if self._wants_length(attempt, response, length):
                return _LENGTH_WANTED
            if self._refuses_expect(attempt, response):
                return _EXPECT_REFUSED
            if self._may_be_stray(attempt):
                return _STRAY_ANSWER
            raise
        except GatewayError as error:
            if isinstance(error, SinkRefused) and self._may_be_stray(attempt):
                return _STRAY_ANSWER
            self._explain(error)
            if isinstance(error, SinkTimeout):
                attempt.failed()
            raise
        attempt.answered()
        if self._wants_length(attempt, response, length):
            return _LENGTH_WANTED
        self._response = response
        self._moved.set()
        return ""

    def _wants_length(self, attempt: Attempt, response: aiohttp.ClientResponse, length: int | None) -> bool:
        """Whether the answer means that the destination wants a length, and this body can be sent with one yet."""
        assert attempt.exchange is not None
        unseen = response.status == 411 or (response.status == 501 and not attempt.exchange.end_attempted)
        if length is not None or not unseen:
            return False
        log.info("%s: %s wants a length: %d", self._name, attempt.destination.shown, response.status)
        attempt.destination.wants_length = True
        if self._replayable.is_pinned:
            return False
        attempt.leave()
        self._turn_to_spool()
        return True

    def _refuses_expect(self, attempt: Attempt, response: aiohttp.ClientResponse) -> bool:
        """Whether only our Expect was refused, which the client never sent: again without it (RFC 9110 10.1.1)."""
        assert attempt.exchange is not None
        if response.status != 417 or attempt.exchange.connection.sent_bytes or attempt.destination.taught.refuses:
            return False
        attempt.destination.taught.refuses = True
        return True

    def _may_be_stray(self, attempt: Attempt) -> bool:
        """Whether what came on a kept connection may be an answer to nobody, since nothing of the body was sent."""
        assert attempt.exchange is not None
        connection = attempt.exchange.connection
        if not connection.reused or connection.sent_bytes or attempt.exchange.end_attempted:
            return False
        log.debug("%s: an answer before its question may be another's", self._name)
        self._on_new_connection = True
        return True

    def _turn_to_spool(self) -> None:
        self._replayable.is_spooled = True
        self._moved.set()

    def _explain(self, error: GatewayError) -> None:
        """How much was on its way, against how much could have been sent again."""
        if "sent_bytes" in error.members:
            error.members["replay_bytes"] = self._replayable.limit

    async def end(self) -> None:
        """Let go of everything; a request that was not finished is broken off."""
        if self._attempt is not None:
            self._attempt.leave()
        self._pending.forget()
        await self._replayable.close()
