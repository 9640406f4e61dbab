"""The body of a request as bytes: counted, limited, and timed while (and only while) we wait for the client.

Between the socket and the reader. It owns what aiohttp leaves to its users: there is no clock on a body,
a hang-up surfaces as whatever the transport raised, and broken chunked framing does not surface at all
until the peer goes away (the idle clock ends that wait).
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.concurrency.timer import RearmingTimer
from gateway.errors import ClientGone, Malformed, Stalled, TooLarge
from gateway.model import Limits

__all__ = ["Intake", "received_bytes"]

_RATE_SECONDS = 60.0
"""Over which a rate is averaged: phones are in tunnels for less. A burst makes up for no later minute."""
_SMALL_BYTES = 256 << 10
"""Of a body that comes in a few pieces, at once: a part that lies whole in one buffer goes the short way."""


def received_bytes(read_buffer_bytes: int) -> int:
    """What an upload may have received at most that nobody has taken: its share of memory here.

    aiohttp pauses above twice the buffer, and then one call of the transport may have brought more: as much again, or
    asyncio's own 256 KiB where that is larger.
    """
    return 2 * read_buffer_bytes + max(2 * read_buffer_bytes, 256 << 10)


class Intake:
    """A ByteSource over `request.content`. Use as a context manager: its clocks stop with it.

    Raises, from `readany`: TooLarge over `max_body_bytes`; Stalled when no byte came for `idle_seconds`, when the rate
    over a minute spent waiting is under `min_rate_bytes` per second, or after `deadline_seconds` of waiting in all;
    ClientGone; Malformed for broken transfer coding.
    """

    def __init__(self, request: web.Request, limits: Limits) -> None:
        self._request = request
        self._content = request.content
        # A buffer as it was received costs nothing; a join of small pieces is cheaper than each alone.
        declared = request.content_length
        self._joins = declared is None or declared <= _SMALL_BYTES
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._timer = RearmingTimer(self._look)
        self._reading: asyncio.Task[object] | None = None
        self._stalled: Stalled | None = None
        self._waiting_since: float | None = None
        self._waited_seconds = 0.0
        self._rated = 0.0, 0
        """Seconds waited and bytes received when the rate was last looked at."""
        self.received_bytes = 0
        self._began = self._loop.time()
        self.first_byte_seconds: float | None = None
        """From here to the first byte; None before it."""
        self.ended = False
        """Whether the body was read to its end."""

    def __enter__(self) -> Intake:
        if not self.is_here:
            self._receive_in_large_pieces()
            self._timer.look()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.stop()

    @property
    def is_here(self) -> bool:
        """Whether all of the body has been received, so that nobody waits for any of it."""
        return self._content.is_eof()

    async def readany(self) -> bytes:
        """The next bytes, as they were received; b"" at the end of the body."""
        started = self._waiting_since = self._loop.time()
        self._reading = asyncio.current_task()
        try:
            if self._joins:
                data = await self._content.readany()
            else:
                data, _ = await self._content.readchunk()
        except (ConnectionError, RuntimeError) as error:
            # RuntimeError is aiohttp's word for a read on a connection that closed while we were busy.
            raise ClientGone("the client hung up before the end of its body") from error
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise Malformed("the transfer coding of the body is broken") from error
        except asyncio.CancelledError:
            # As asyncio.timeout does it: the cancellation was ours, unless somebody else wants it, too.
            if self._stalled is None or self._reading is None or self._reading.uncancel() > 0:
                raise
            raise self._stalled from None
        finally:
            self._waiting_since = None
            self._waited_seconds += self._loop.time() - started
        self.ended = not data
        if self.first_byte_seconds is None and data:
            self.first_byte_seconds = self._loop.time() - self._began
        self.received_bytes += len(data)
        limit = self._limits.max_body_bytes
        if limit and self.received_bytes > limit:
            raise TooLarge(f"the body has more than {limit} bytes", limit=limit)
        return data

    def _receive_in_large_pieces(self) -> None:
        """As much at a time as aiohttp's buffer holds before it pauses: each call costs about as much as looking
        through 100 KiB. asyncio's transports say with `max_size` how much they ask for; uvloop's cannot be told.
        """
        transport, declared = self._request.transport, self._request.content_length
        _, high_water = self._content.get_read_buffer_limits()
        if getattr(transport, "max_size", high_water) < high_water and (declared is None or declared >= high_water):
            transport.max_size = high_water  # type: ignore[union-attr]

    def _look(self) -> float | None:
        """End a wait that is over a limit. In how many seconds one could next be; None where there is no limit."""
        limits, now = self._limits, self._loop.time()
        idle = waited = 0.0
        if self._waiting_since is not None:
            idle = now - self._waiting_since
            waited = self._waited_seconds + idle
            stalled = self._verdict(idle, waited)
            if stalled is not None and self._reading is not None:
                self._stalled = stalled
                self._reading.cancel()
                return None
        delays = []
        if limits.idle_seconds:
            delays.append(limits.idle_seconds - idle)
        if limits.deadline_seconds:
            delays.append(limits.deadline_seconds - waited)
        if limits.min_rate_bytes:
            delays.append(
                _RATE_SECONDS - (waited - self._rated[0]) if self._waiting_since is not None else _RATE_SECONDS
            )
        return min(delays, default=None)

    def _verdict(self, idle: float, waited: float) -> Stalled | None:
        limits = self._limits
        if limits.idle_seconds and idle >= limits.idle_seconds:
            return Stalled(f"no byte came for {limits.idle_seconds:g} seconds", limit=limits.idle_seconds)
        if limits.deadline_seconds and waited >= limits.deadline_seconds:
            return Stalled(
                f"the body took more than {limits.deadline_seconds:g} seconds", limit=limits.deadline_seconds
            )
        seconds, received = waited - self._rated[0], self.received_bytes - self._rated[1]
        if limits.min_rate_bytes and seconds >= _RATE_SECONDS:
            if received < seconds * limits.min_rate_bytes:
                least = limits.min_rate_bytes
                return Stalled(f"the body came at less than {least} bytes/s for {_RATE_SECONDS:g} s", limit=least)
            self._rated = waited, self.received_bytes
        return None
