"""Who watches an upload: `GET /uploads/{id}/progress`, as Server-Sent Events, or once as JSON.

1. Each event is all that is known then; a watcher who reads slowly is sent the newest when the one before was taken,
   and what is held for it is little: that text, and a slice of it. Who takes nothing for `_PATIENCE_SECONDS` is left.
   Nothing waits for a watcher.
2. An upload that is somebody's is not there for others.
3. The stream ends with the upload. Its last event says `kept` or `failed`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress

from aiohttp import hdrs, web

from gateway.access import ANYBODY
from gateway.downloads.stored import READER
from gateway.errors import Malformed, NotFound
from gateway.http.answers import delivered, reset
from gateway.http.prefix import PREFIX, cut, prefixed
from gateway.http.ulids import ULID, began_at
from gateway.server.board import REMEMBERED_SECONDS, Told, Watch
from gateway.server.services import SERVICES

__all__ = ["CHOSEN_ID", "PROGRESS_PATH", "check_chosen_id", "chosen_id", "get_progress"]

log = logging.getLogger("gateway.answers")

PROGRESS_PATH = "/uploads/{id}/progress"
CHOSEN_ID = "X-Upload-ID"
_JSON, _EVENTS = "application/json", "text/event-stream"
_HELD_BYTES = 32 << 10
"""Of one watcher, by the system: old texts in there come before the newest."""
_SLICE_BYTES = 32 << 10
"""Written at once, and no more before that is the system's."""
_PATIENCE_SECONDS = 10.0
_AHEAD_SECONDS = 3600
"""By so much the clock of a client may be wrong."""
_QUIET_TEXTS = 100
"""After so many texts that were the same, a comment: so a watcher who has gone away is found."""


def chosen_id(request: web.Request) -> str | None:
    """The id that the client wants its upload to have, if it is a ULID; None for none, or one that is not."""
    if CHOSEN_ID not in request.headers:
        return None
    values = request.headers.getall(CHOSEN_ID)
    return values[0] if len(values) == 1 and ULID.fullmatch(values[0]) else None


def check_chosen_id(request: web.Request) -> str:
    """The same of a request that has the header. Raises Malformed, too, for an id from the future: what looks for what
    is old goes by the times in ids.
    """
    found = chosen_id(request)
    if found is None:
        raise Malformed(f"{CHOSEN_ID} is no ULID: 26 of 0-9 and A-Z without I, L, O and U, the first one 0-7")
    if began_at(found) > time.time() + _AHEAD_SECONDS:
        raise Malformed(f"the time in {CHOSEN_ID} is more than an hour ahead, and such an upload would not expire")
    return found


async def get_progress(request: web.Request) -> web.StreamResponse:
    """How far an upload is. Raises NotFound where it is not known here, or is somebody else's."""
    services, upload_id = request.app[SERVICES], request.match_info["id"]
    if not ULID.fullmatch(upload_id):
        raise NotFound("there is no such upload")
    watch = services.board.watch(upload_id)
    try:
        told = await watch.newest()
        if told is None or not request.get(READER, ANYBODY).may_see(told.owner):
            raise NotFound(
                f"this gateway knows of no upload {upload_id} that goes on, or ended less than "
                f"{REMEMBERED_SECONDS:g} seconds ago; of several replicas another one may"
            )
        if _prefers_json(request.headers.get(hdrs.ACCEPT, "")):
            headers = {hdrs.CACHE_CONTROL: "no-store"}
            response = web.Response(body=told.text, content_type=_JSON, headers=headers)
            return await delivered(request, response, prefix=request[PREFIX])
        return await _events(request, watch, told)
    finally:
        watch.leave()


def _prefers_json(accept: str) -> bool:
    """Whether JSON is named there, and events are not before it."""
    named = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    return _JSON in named and (_EVENTS not in named or named.index(_JSON) < named.index(_EVENTS))


async def _events(request: web.Request, watch: Watch, told: Told) -> web.StreamResponse:
    headers = {hdrs.CONTENT_TYPE: _EVENTS, hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    response.force_close()
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    _hold_little(request)
    newest: Told | None = told
    text, same = b"", 0
    try:
        while newest is not None:
            if newest.text != text:
                text, same = newest.text, 0
                await _send_event(request, response, text)
            elif (same := same + 1) % _QUIET_TEXTS == 0:
                await _send(request, response, b":\n\n")
            if newest.is_last:
                break
            await watch.pause()
            newest = await watch.newest()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await response.write_eof()
    except TimeoutError:
        log.info("who watched an upload took nothing for %g s", _PATIENCE_SECONDS)
        reset(request)
    except ConnectionError:
        log.debug("who watched an upload has gone away")
    return response


async def _send_event(request: web.Request, response: web.StreamResponse, text: bytes) -> None:
    begin, sent = b"data: ", 0
    for piece in cut(text):
        sent += len(piece)
        end = b"\n\n" if sent == len(text) else b""
        await _send(request, response, begin + prefixed(piece, request[PREFIX]) + end)
        begin = b""


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """In slices, each when the one before has been taken. Raises TimeoutError, ConnectionError."""
    for start in range(0, len(data), _SLICE_BYTES):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await response.write(data[start : start + _SLICE_BYTES])
            await request.writer.drain()  # aiohttp waits only for what is more than 64 KiB


def _hold_little(request: web.Request) -> None:
    transport = request.transport
    shown = None if transport is None else transport.get_extra_info("socket")
    if transport is None or shown is None:
        return
    with suppress(OSError):
        shown.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HELD_BYTES)
        shown.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)  # a text goes there when that before is gone
    transport.set_write_buffer_limits(high=0)
