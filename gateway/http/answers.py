"""Answers on their way to the client: a destination's streamed through, a document of ours that may be long."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from aiohttp import ClientError, ClientResponse, hdrs, web

from gateway.http.forwarding import answer_headers
from gateway.http.obs_text import ForwardedResponse
from gateway.http.prefix import cut, prefixed, prefixed_bytes

__all__ = ["SENT_BYTES", "SERVER_NAME", "UNREAD", "delivered", "passed_through", "reset", "strip_aiohttp_headers"]

log = logging.getLogger("gateway.answers")

SERVER_NAME = "gateway"
_WRITE_BYTES = 64 << 10
UNREAD = web.ResponseKey("unread", bool)
"""An answer to one whose body nobody wants to see: what comes of it behind that is not read."""
SENT_BYTES = web.RequestKey("sent_bytes", int)
"""How many bytes of a file, or of what describes it, went to the client; told by who reads or downloads."""
PASSED_THROUGH = web.ResponseKey("passed_through", list[str])


async def passed_through(
    request: web.Request,
    answer: ClientResponse,
    *,
    stall_seconds: float,
    close: bool,
    gateway: str,
    location: str | None = None,
) -> web.StreamResponse:
    """A destination's answer: its status, end-to-end headers and body, streamed. Where a good one has no
    Location, `location` is it.

    One that breaks, or stalls for `stall_seconds`, after its headers went out breaks the client's connection:
    never a clean end.
    """
    response = ForwardedResponse(status=answer.status, reason=answer.reason)
    version = answer.version
    protocol = "1.1" if version is None else f"{version.major}.{version.minor}"
    for name, value in answer_headers(answer.headers.items(), status=answer.status, protocol=protocol, gateway=gateway):
        if name.lower() == "content-length":
            response.content_length = int(value)
        else:
            response.headers.add(name, value)
    if location is not None and 200 <= answer.status < 300:
        response.headers.setdefault(hdrs.LOCATION, location)
    response.headers.setdefault("X-Accel-Buffering", "no")  # nginx in front of us is to stream it as we do
    response[PASSED_THROUGH] = [name for name in ("Content-Type", "Server") if name not in answer.headers]
    if close:
        response.force_close()
    connection = answer.connection
    closed = connection.protocol.closed if connection is not None and connection.protocol is not None else None
    if closed is not None:
        closed.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs a traceback
    await response.prepare(request)
    while True:
        try:
            async with asyncio.timeout(stall_seconds or None):
                data = await answer.content.readany()
            if not data and closed is not None and closed.done() and not closed.cancelled():
                closed.result()  # a body that ends with its connection ends cleanly for aiohttp even by a RST
        except (ClientError, OSError, RuntimeError) as error:  # the last is aiohttp's "Connection closed."
            log.info("the answer of %s broke off: %s", answer.url.host, type(error).__name__)
            reset(request)
            return response
        # Not in that try: the client's own hang-up is a ClientError, too.
        if not data:
            await response.write_eof()
            return response
        for start in range(0, len(data), _WRITE_BYTES):
            await response.write(data[start : start + _WRITE_BYTES])


async def delivered(request: web.Request, response: web.Response, *, prefix: str) -> web.StreamResponse:
    """A document of ours as JSON, with the prefix before its addresses; one larger than a socket takes at once is sent
    before the upload's slot is given back.
    """
    body = response.body
    assert isinstance(body, bytes)
    if len(body) <= _WRITE_BYTES:
        if prefix:
            response.body = prefixed(body, prefix)
        return response
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = await asyncio.to_thread(prefixed_bytes, body, prefix) if prefix else len(body)
    if response.keep_alive is False:
        stream.force_close()
    await stream.prepare(request)
    for piece in cut(body):
        await stream.write(prefixed(piece, prefix))
    await stream.write_eof()
    return stream


def strip_aiohttp_headers(response: web.StreamResponse) -> None:
    """Of an answer about to be sent: aiohttp adds headers of its own to a destination's answer, take them out again; in
    an answer of ours it says its version, and Python's.
    """
    if PASSED_THROUGH not in response:
        response.headers[hdrs.SERVER] = SERVER_NAME
    for name in response.get(PASSED_THROUGH, ()):
        response.headers.popall(name, None)


def reset(request: web.Request) -> None:
    """Break the client's connection with a RST: a FIN would look like the end of a close-delimited body."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
