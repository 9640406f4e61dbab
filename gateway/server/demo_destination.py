"""The demo destination: takes whatever is sent to it, says exactly what it got, and misbehaves on request.

`gateway receiver` runs it, so that a relay can be tried without a destination of one's own; the tests
run it as the peer that can be as slow, rude or dead as real ones are.

POST, PUT or PATCH to any path: the answer is the manifest of what came in, shaped like the gateway's own, plus
the request `headers` and the `query` string as they came. Nothing is stored; of the body one chunk is
held at a time, of each field up to 64 KiB. Query parameters, others are ignored:

    status=503              read everything, then answer with this status
    delay_seconds=1         wait so long between the end of the body and the answer
    rate_bytes=1000000      read no faster than so many bytes per second
    die_after_bytes=N       after N bytes of the body reset the connection
    answer_after_bytes=N    after N bytes of the body answer (`status`, else 200), read no more, and close
    never_answer=1          read everything, then be silent until the peer goes away

`GET /seen` counts the bodies since the start: completed are those that were read to their end, closing
delimiter included, whatever was answered then; aborted are all others that are over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web

from gateway.errors import ClientGone, GatewayError, Malformed
from gateway.model import Part, text
from gateway.multipart.codec import Event, Kind
from gateway.multipart.headers import filename_of, media_type
from gateway.multipart.reader import StreamingMultipartReader, raw_body_events, raw_part

__all__ = ["receiver_app"]

_log = logging.getLogger("gateway.receiver")

_CHUNK_BYTES = 65536
_VALUE_BYTES = 65536
_HEADER_BYTES = 1 << 20  # per part: the demo destination should not be the one who refuses
_READS_PER_SECOND = 20  # under `rate_bytes`: often enough that the sender feels an even pace
_LINGER_SECONDS = 1.0  # closing at once, with bytes unread, would reset the connection and lose the answer
_POLL_SECONDS = 0.05
_WISHES = {  # least and most; all are whole numbers but the delay
    "status": (200, 599),
    "delay_seconds": (0, 86400),
    "rate_bytes": (1, 1 << 50),
    "die_after_bytes": (0, 1 << 50),
    "answer_after_bytes": (0, 1 << 50),
    "never_answer": (0, 1),
}


@dataclass(slots=True)
class _Seen:
    started: int = 0
    completed: int = 0
    aborted: int = 0
    last: dict[str, Any] | None = None
    connections: set[asyncio.Transport] = field(default_factory=set)  # of the requests that are running


_SEEN = web.AppKey("seen", _Seen)


class _Enough(Exception):
    """The body is not to be read any further."""


def _wishes(query: Mapping[str, str]) -> dict[str, float]:
    wishes: dict[str, float] = {}
    for name, (least, most) in _WISHES.items():
        if name in query:
            with contextlib.suppress(ValueError):
                wishes[name] = float(query[name]) if name == "delay_seconds" else int(query[name])
            if not least <= wishes.get(name, math.nan) <= most:
                raise Malformed(f"{name} is to be a number from {least} to {most}")
    return wishes


class _Source:
    """The body in pieces, as slow and as short as wished. Raises ClientGone, Malformed, _Enough."""

    def __init__(self, content: Any, wishes: dict[str, float]) -> None:
        self._content = content
        self._seconds_per_byte = 1 / wishes.get("rate_bytes", math.inf)
        self._piece_bytes = max(1, int(min(_CHUNK_BYTES, wishes.get("rate_bytes", math.inf) / _READS_PER_SECOND)))
        self._stop_at = min(wishes.get(name, math.inf) for name in ("die_after_bytes", "answer_after_bytes"))
        self._not_before = 0.0
        self.count = 0

    async def readany(self) -> bytes:
        if self.count >= self._stop_at:
            raise _Enough
        clock = asyncio.get_running_loop().time
        if (early := self._not_before - clock()) > 0:
            await asyncio.sleep(early)
        try:
            data: bytes = await self._content.read(int(min(self._piece_bytes, self._stop_at - self.count)))
        except web.RequestPayloadError as error:
            raise Malformed("the transfer coding is malformed") from error
        except (ConnectionError, RuntimeError) as error:  # the latter where it went before the first read
            raise ClientGone(f"the client went away after {self.count} bytes") from error
        self.count += len(data)
        self._not_before = max(self._not_before, clock()) + len(data) * self._seconds_per_byte
        return data


def _events(request: web.Request, source: _Source) -> AsyncIterator[list[Event]]:
    content_type, disposition = (
        request.headers.get(name, "").encode("utf-8", "surrogateescape")
        for name in (hdrs.CONTENT_TYPE, hdrs.CONTENT_DISPOSITION)
    )
    if media_type(content_type).startswith(b"multipart/"):
        reader = StreamingMultipartReader(request.headers, source, max_headers=0, max_header_bytes=_HEADER_BYTES)
        return reader.events()
    return raw_body_events(source, raw_part(filename_of(disposition), content_type or None))


async def _manifest(request: web.Request, source: _Source) -> dict[str, Any]:
    """Read the body to its end and say what was in it."""
    parts: list[dict[str, Any]] = []
    async for batch in _events(request, source):
        for kind, part, data, _ in batch:
            if kind is Kind.CLOSE:
                continue
            if part is not None:
                current, size, digest, kept = part, 0, hashlib.sha256(), b""
            size += len(data)
            digest.update(data)
            if not current.is_file and size <= _VALUE_BYTES:
                kept += data
            if kind is Kind.END or kind is Kind.WHOLE:
                parts.append(_entry(current, size, digest.hexdigest(), kept))
    headers = [[text(name), text(value)] for name, value in request.raw_headers]
    return {"upload": None, "parts": parts, "headers": headers, "query": request.raw_path.partition("?")[2]}


def _entry(part: Part, size: int, sha256: str, kept: bytes) -> dict[str, Any]:
    content_type = None if part.content_type is None else text(part.content_type)
    entry = {"index": part.index, "name": part.name, "filename": part.filename, "content_type": content_type}
    entry |= {"size": size, "sha256": sha256}
    if not part.is_file and size <= _VALUE_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            entry["value"] = kept.decode()
    return entry | {"receipts": []}


async def _receive(request: web.Request) -> web.Response:
    seen, transport = request.app[_SEEN], request.transport
    if transport is None:
        return _nobody_there()
    seen.connections.add(transport)
    try:
        return await _take(request, transport, seen)
    except ClientGone as error:
        _log.info("%s", error.detail)
        return _nobody_there()
    except GatewayError as error:
        _log.info("refused: %s", error.detail)
        return await _answer_unread(request, error.status, {"title": error.title, "detail": error.detail})
    finally:
        seen.connections.discard(transport)


async def _take(request: web.Request, transport: asyncio.Transport, seen: _Seen) -> web.Response:
    wishes = _wishes(request.query)
    status = int(wishes.get("status", 200))
    source = _Source(request.content, wishes)
    seen.started += 1
    try:
        manifest = await _manifest(request, source)
    except BaseException as error:
        seen.aborted += 1
        if not isinstance(error, _Enough):
            raise
        if source.count == wishes.get("die_after_bytes"):
            _reset(transport)
            return _nobody_there()
        return await _answer_unread(request, status, {"answered_after_bytes": source.count})
    seen.completed += 1
    seen.last = manifest
    _log.info("received %d parts in %d bytes", len(manifest["parts"]), source.count)
    await _wait(transport, math.inf if wishes.get("never_answer") else wishes.get("delay_seconds", 0))
    return web.json_response(manifest, status=status)


async def _wait(transport: asyncio.Transport, seconds: float) -> None:
    """Wait, but no longer than the peer is there."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    while not transport.is_closing() and clock() < until:  # noqa: ASYNC110 - nothing wakes a handler whose peer goes
        await asyncio.sleep(min(_POLL_SECONDS, until - clock()))


async def _answer_unread(request: web.Request, status: int, answer: dict[str, Any]) -> web.Response:
    """Answer although a rest of the body may be unread, and leave the answer time to arrive."""
    response = web.json_response(answer, status=status)
    if not request.content.is_eof():
        response.force_close()
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write_eof()
            if request.transport is not None:
                await _wait(request.transport, _LINGER_SECONDS)
    return response


def _nobody_there() -> web.Response:
    """aiohttp wants a response even where the connection is gone; the access log shows its status."""
    return web.Response(status=ClientGone.status)


def _reset(transport: asyncio.Transport) -> None:
    """RST instead of FIN: what a close does that may linger for 0 seconds."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _report(request: web.Request) -> web.Response:
    seen = request.app[_SEEN]
    counters = {"started": seen.started, "completed": seen.completed, "aborted": seen.aborted}
    return web.json_response(counters | {"last": seen.last})


async def _health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _hang_up(app: web.Application) -> None:
    """aiohttp drops what comes in while it shuts down, but waits a minute for those who read it."""
    for transport in app[_SEEN].connections:
        transport.abort()


def receiver_app() -> web.Application:
    """The demo destination, with counters of its own."""
    handler_args = {
        "read_bufsize": _CHUNK_BYTES,
        "handler_cancellation": False,
        "auto_decompress": False,
        "lingering_time": 0,  # it would read and drop the rest of a body that is answered early
    }
    app = web.Application(client_max_size=_CHUNK_BYTES, handler_args=handler_args)
    app[_SEEN] = _Seen()
    app.on_shutdown.append(_hang_up)
    app.router.add_get("/seen", _report)
    app.router.add_get("/healthz", _health)
    for method in ("POST", "PUT", "PATCH"):
        app.router.add_route(method, "/{path:.*}", _receive)
    return app
