"""A connection that aiohttp lends to whoever has the body of a request.

aiohttp calls a payload's `write` in a task of its own when the connection is there; that only lends us the
connection's writer, and parks. Whoever has bytes writes them to the connection directly, at its pace. The
parked call returns after `complete` (and aiohttp ends the request), and raises after `abort` (and aiohttp
closes the connection without ending the request, so that the destination sees a broken one). It is never
left to end by itself: a request whose body ends early would be a complete one.
"""

from __future__ import annotations

import asyncio

from aiohttp.abc import AbstractStreamWriter

from gateway.http.sockets import DestinationSocket, acked_bytes, socket_of, unsent_bytes

__all__ = ["BodyAborted", "ConnectionLost", "LentConnection"]


class BodyAborted(Exception):
    """Raised within aiohttp to break a request off; never seen outside of it."""


class ConnectionLost(Exception):
    """The body cannot be sent any more. Why is known to whoever made the request."""


class LentConnection:
    """Written to by one task at a time."""

    def __init__(self) -> None:
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._socket: DestinationSocket | None = None
        self._settled = asyncio.Event()  # lent, or lost before it could be
        self._end = asyncio.Event()
        self._aborted = False
        self.lost = False
        """Whether the connection is gone, or aiohttp stopped sending because the response is complete."""
        self.changed = asyncio.Event()
        """Set when it is lost, or when its user says so; whoever waits clears it."""
        self.reused = False
        """Whether it had carried another request before."""
        self.sent_bytes = 0
        """Bytes of the body that were handed to the transport, those of a write that failed among them."""
        self.writing_since: float | None = None
        """Since when (by the loop's clock) a write has been waiting for room; None while none waits."""

    @property
    def acked_bytes(self) -> int | None:
        """What the peer's system has taken, on this connection, ever; None where nobody tells."""
        return None if self._transport is None else acked_bytes(self._transport)

    @property
    def arrived_bytes(self) -> int:
        """Bytes of the body that the peer's system has taken, as far as ours tells."""
        return 0 if self._transport is None else max(0, self.sent_bytes - unsent_bytes(self._transport))

    async def lend(self, writer: AbstractStreamWriter) -> None:
        """For the payload's `write`: lend, and park. Raises BodyAborted after `abort`."""
        transport: asyncio.WriteTransport | None = writer.transport
        self._writer, self._transport = writer, transport
        self._socket = None if transport is None else socket_of(transport)
        self._settled.set()
        try:
            await self._end.wait()
        except asyncio.CancelledError:
            self.lose()
            raise
        finally:
            self._writer = None
        if self._aborted:
            raise BodyAborted

    async def ready(self) -> None:
        """Wait for the connection. Raises ConnectionLost, also where the next write could not hand over a byte."""
        if self._writer is None and not self.lost:
            await self._settled.wait()
        transport = None if self._writer is None else self._writer.transport
        was_reset = self._socket is not None and self._socket.reset is not None
        if self.lost or transport is None or transport.is_closing() or was_reset:
            self.lose()
            raise ConnectionLost

    async def write(self, data: bytes) -> None:
        """Hand bytes to the transport when it is `ready`, and wait while it is full. Raises ConnectionLost."""
        await self.ready()
        assert self._writer is not None
        self.sent_bytes += len(data)
        self.writing_since = asyncio.get_running_loop().time()
        try:
            await self._writer.write(data)
            if self._socket is not None and self._socket.reset is not None:
                raise ConnectionResetError
        except (OSError, RuntimeError) as error:  # RuntimeError: the transport was closed meanwhile
            self.lose()
            raise ConnectionLost from error
        finally:
            self.writing_since = None

    def complete(self) -> None:
        """Every byte was written: the request may end."""
        self._end.set()

    def abort(self) -> None:
        """Break the request off. Without effect after `complete`."""
        if not self._end.is_set():
            self._aborted = True
            self._end.set()
            self.lose()
            self.drop()

    def drop(self) -> None:
        """Close the connection and forget what was not sent: a mere close, such as aiohttp's, waits for the peer."""
        transport = self._transport
        # One that is closing, and has sent everything, may be gone altogether: it must not be touched.
        if transport is not None and (transport.get_write_buffer_size() or not transport.is_closing()):
            transport.abort()

    def lose(self) -> None:
        """Nothing more is to be written."""
        self.lost = True
        self._settled.set()
        self.changed.set()
