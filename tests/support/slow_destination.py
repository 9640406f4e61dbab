"""A destination that reads slowly, for what is told of how much it has."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

__all__ = ["SOCKETS_BYTES", "SlowDestination"]

_RECEIVED_BYTES = 2 << 20
SOCKETS_BYTES = 8 << 20
"""What the sockets between us and it hold at most."""


class SlowDestination:
    """Takes what is posted to /upload, so many bytes per second, counts them, and answers with `status` when it may."""

    def __init__(self, bytes_per_second: int = 20_000_000, status: int = 200) -> None:
        self.bytes_per_second = bytes_per_second
        self.status = status
        self.read_bytes = 0
        self.completed = 0
        """Requests that came to their end."""
        self.answers = asyncio.Event()
        self.answers.set()
        self.url = ""
        """Where it was started, for who notes that down."""
        self.app = web.Application(client_max_size=0)
        self.app.router.add_post("/upload", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        # by itself the system would let it grow to as much as it is configured to
        held = request.transport.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_BYTES)
        loop = asyncio.get_running_loop()
        began, read = loop.time(), 0
        try:
            async for chunk in request.content.iter_any():
                read += len(chunk)
                self.read_bytes += len(chunk)
                await asyncio.sleep(began + read / self.bytes_per_second - loop.time())
        except ConnectionError:
            return web.Response(status=400)  # it was broken off
        self.completed += 1
        await self.answers.wait()
        return web.Response(status=self.status)
