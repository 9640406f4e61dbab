"""Who is still there while a remote file is on its way, where neither reading nor writing tells by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from gateway.concurrency.timer import RearmingTimer
from gateway.errors import ClientGone

__all__ = ["report_loss", "while_connected"]

_LOOK_SECONDS = 0.25
"""How often to see whether the client is still there; only writes would tell otherwise."""


def report_loss(answer: aiohttp.ClientResponse) -> None:
    """Have reads fail once the connection is lost.

    aiohttp's parser closes it over broken chunked framing, and leaves whoever reads waiting, its clock stopped.
    """
    content, connection = answer.content, answer.connection

    def lost(closed: asyncio.Future[None] | None) -> None:
        if closed is not None and not closed.cancelled():
            closed.exception()  # looked at, so that nobody complains
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection was lost"))

    protocol = None if connection is None else connection.protocol
    closed = None if protocol is None else protocol.closed
    if closed is None:
        lost(None)
    else:
        closed.add_done_callback(lost)


@asynccontextmanager
async def while_connected(request: web.Request) -> AsyncIterator[None]:
    """Cancels what it holds when the client has hung up, and raises ClientGone: a clock that runs out then."""

    def look() -> float | None:
        if request.transport is not None and not request.transport.is_closing():
            return _LOOK_SECONDS
        clock.reschedule(asyncio.get_running_loop().time())
        return None

    clock, timer = asyncio.timeout(None), RearmingTimer(look)
    try:
        async with clock:
            timer.look()
            yield
    except TimeoutError as error:
        if clock.expired():
            raise ClientGone("the client hung up before the end of the download") from error
        raise
    finally:
        timer.stop()
