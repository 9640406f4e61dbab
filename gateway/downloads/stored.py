"""What was stored, given back: files with ranges and conditions, the manifest, a zip of everything; and its removal.

1. A file's bytes never change, so its validators are strong: the entity tag is the digest of the stored
   bytes where the manifest has one, and the date is good for If-Range, too.
2. Conditions are judged in the order of RFC 9110 13.2.2. HEAD is answered as GET is, ranges included.
3. One range is served. Several, or one of invalid syntax, are answered with the whole (14.2 allows both).
4. Whatever was stored is a download, never a page of ours: attachment, nosniff.
5. The upload is locked for as long as there is something left to read (upload_directory.py). The lock goes before
   the last bytes do, so that a client that has read all of it can remove it at once.
6. A body that cannot be sent to its end breaks the connection, and never looks like a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from aiohttp import hdrs, web

from gateway.downloads.archive import Archive
from gateway.errors import GatewayError, NotFound, PreconditionFailed, RangeNotSatisfiable
from gateway.http.answers import reset
from gateway.http.conditions import chosen
from gateway.http.problems import problem
from gateway.multipart.filenames import safe_name
from gateway.sinks.store import UPLOAD_ID, LockedUpload, Store, StoredFile

__all__ = [
    "STORES",
    "delete_upload",
    "get_archive",
    "get_file",
    "get_upload",
]

log = logging.getLogger("gateway.stored")

STORES: web.AppKey[Sequence[Store]] = web.AppKey("stores", Sequence[Store])

_STALLED_SECONDS = 60
"""A client that takes nothing for so long is cut off, or the lock would stay for ever. nginx's send_timeout."""
_SLICE_BYTES = 1 << 20
"""Sent in one go. It bounds how long a disk that is not cached holds up the event loop."""
_TAIL_BYTES = 64 << 10
"""The end of a file, read before the lock goes, sent after."""
_CHUNK_BYTES = 256 << 10
"""Read in one job where sendfile cannot be had."""

_OCTETS = "application/octet-stream"
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}
_CODINGS = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_FIELD_VALUE = re.compile("[\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+")


# -- the stories


async def get_upload(request: web.Request) -> web.Response:
    """The manifest, as it was kept. Raises NotFound."""
    upload_id = _upload_id(request)
    for store in request.app[STORES]:
        manifest = await store.manifest(upload_id)
        if manifest is not None:
            return web.Response(body=manifest, content_type="application/json")
    raise NotFound(f"there is no upload {upload_id}")


async def delete_upload(request: web.Request) -> web.Response:
    """All of it or, where somebody reads it at one of the stores, nothing."""
    upload_id = _upload_id(request)
    async with AsyncExitStack() as stack:
        shares = await _locked(request, upload_id, stack, exclusive=True)
        if not shares:
            raise NotFound(f"there is no upload {upload_id}")
        for share in shares:
            await share.remove()
    return web.Response(status=204)


async def get_file(request: web.Request) -> web.StreamResponse:
    """`{id}` and `{index}` decide; the last segment is for people."""
    upload_id, index = _upload_id(request), request.match_info["index"]
    async with _reading(request, upload_id) as (parts, shares):
        for part in parts:
            if str(part["index"]) != index:
                continue
            for share in shares:
                stored = await share.open(part["index"])
                if stored is not None:
                    await _release([other for other in shares if other is not share])
                    return await _answer_file(request, upload_id, part, share, stored)
    raise NotFound(f"upload {upload_id} has no file {index}")


async def _answer_file(
    request: web.Request, upload_id: str, part: Mapping[str, Any], share: LockedUpload, stored: StoredFile
) -> web.StreamResponse:
    described = _as_stored(part, share.sink)
    digest, modified = described["sha256"], int(stored.modified)
    etag = f'"{digest}"' if digest else f'"{upload_id}-{part["index"]}"'
    validators: dict[str, str] = {hdrs.ETAG: etag, hdrs.LAST_MODIFIED: formatdate(modified, usegmt=True)}
    status, start, stop = chosen(request.headers, etag=etag, modified=modified, size=stored.size)
    match status:
        case 304:
            return web.Response(status=304, headers=validators)
        case 412:
            raise PreconditionFailed(f"file {part['index']} of upload {upload_id} is another one")
        case 416:
            refusal = problem(RangeNotSatisfiable(f"the file has {stored.size} bytes", size=stored.size))
            refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{stored.size}"
            return refusal
    content_type = described["content_type"] or ""
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: content_type if _FIELD_VALUE.fullmatch(content_type) else _OCTETS,
        hdrs.CONTENT_LENGTH: str(stop - start),
        hdrs.CONTENT_DISPOSITION: _attachment(safe_name(described["filename"])),
        hdrs.ACCEPT_RANGES: "bytes",
        **validators,
        **_NOSNIFF,
    }
    coding = part.get("content_encoding", "")
    if _CODINGS.fullmatch(coding):  # its bytes are as they came, or no flow would have been let to them
        headers[hdrs.CONTENT_ENCODING] = coding
    if status == 206:
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{stored.size}"
    response = web.StreamResponse(status=status, headers=headers)
    return await _sent(request, response, [share], lambda: _send_file(request, response, share, stored, start, stop))


async def get_archive(request: web.Request) -> web.StreamResponse:
    """All files of an upload as one zip, not compressed, so that its length is known before it is made."""
    upload_id = _upload_id(request)
    async with _reading(request, upload_id) as (parts, shares):
        places: dict[int, LockedUpload] = {}
        for share in reversed(shares):  # of two that have a file the first one gives it, as in get_file
            for index in await share.indexes():
                places[index] = share
        files = [(part, places[part["index"]]) for part in parts if part["index"] in places]
        named = [
            (path, _as_stored(part, share.sink)["filename"])
            for part, share in files
            if (path := share.path(part["index"])) is not None
        ]
        if len(named) < len(files):
            raise NotFound(f"upload {upload_id} lies elsewhere, and has no archive")
        # of those that it reads from the first to be released, and it waits for its jobs
        reader = next((share for share in reversed(shares) if share in places.values()), None)
        run = asyncio.to_thread if reader is None else reader.run
        archive = await run(Archive, named)
        if reader is not None:
            await run(reader.close_later, archive)
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: "application/zip",
            hdrs.CONTENT_LENGTH: str(archive.left),
            hdrs.CONTENT_DISPOSITION: f'attachment; filename="{upload_id}.zip"',
            **_NOSNIFF,
        }
        response = web.StreamResponse(headers=headers)
        return await _sent(request, response, shares, lambda: _send_archive(response, archive, run, shares))


@asynccontextmanager
async def _reading(
    request: web.Request, upload_id: str
) -> AsyncIterator[tuple[list[Mapping[str, Any]], list[LockedUpload]]]:
    """(the parts of its manifest, what each store has of it), locked until left. Raises NotFound, Conflict."""
    async with AsyncExitStack() as stack:
        shares = await _locked(request, upload_id, stack, exclusive=False)
        for share in shares:
            manifest = await share.manifest()
            if manifest is not None:
                yield json.loads(manifest)["parts"], shares
                return
        raise NotFound(f"there is no upload {upload_id}")


async def _locked(
    request: web.Request, upload_id: str, stack: AsyncExitStack, *, exclusive: bool
) -> list[LockedUpload]:
    """What each of the stores has of an upload, until the stack is left. Raises Conflict."""
    stores = request.app[STORES]
    shares = [await stack.enter_async_context(store.locked(upload_id, exclusive=exclusive)) for store in stores]
    return [share for share in shares if share is not None]


def _upload_id(request: web.Request) -> str:
    upload_id = request.match_info["id"]
    if not UPLOAD_ID.fullmatch(upload_id):
        raise NotFound("there is no such upload")
    return upload_id


def _as_stored(part: Mapping[str, Any], sink: str) -> dict[str, Any]:
    """A part's description; where flows changed it on its way to this sink, the receipt's."""
    receipt: Mapping[str, Any] = next((receipt for receipt in part["receipts"] if receipt["sink"] == sink), {})
    return {key: receipt.get(key, part[key]) for key in ("filename", "content_type", "sha256")}


def _attachment(name: str) -> str:
    """RFC 6266, both forms: what is not plain ASCII, or is read in two ways, is `_` in the first one (appendix D)."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


# -- sending


async def _sent(
    request: web.Request, response: web.StreamResponse, shares: list[LockedUpload], body: Callable[[], Awaitable[None]]
) -> web.StreamResponse:
    """The response, sent to its end or broken off (rule 6). A client that goes away is no error of ours."""
    only_head = request.method == hdrs.METH_HEAD or response.content_length == 0
    if only_head:
        await _release(shares)
    try:
        _limit_patience(request)
        await response.prepare(request)
        if not only_head:
            await body()
        await response.write_eof()
    except (ConnectionError, TimeoutError) as error:
        log.debug("the client of %s went away: %r", request.path, error)
        reset(request)
    except (EOFError, OSError, GatewayError) as error:  # the file is not what it was, or its disk is not
        log.error("the answer to %s broke off: %s", request.path, error)
        reset(request)
    except Exception:
        log.exception("the answer to %s broke off", request.path)
        reset(request)
    return response


async def _release(shares: list[LockedUpload]) -> None:
    """There is nothing left to read (rule 5)."""
    for share in reversed(shares):
        await share.release()


def _limit_patience(request: web.Request) -> None:
    """The system's own timer: it runs while nothing that was sent, or waits to be, is taken. Only Linux has it."""
    connection = request.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # not TCP
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_STALLED_SECONDS * 1000))


async def _send_file(
    request: web.Request, response: web.StreamResponse, share: LockedUpload, stored: StoredFile, start: int, stop: int
) -> None:
    position, tail_at = start, max(start, stop - _TAIL_BYTES)
    while position < tail_at:
        sent = await _send_slice(request, response, stored, position, min(tail_at - position, _SLICE_BYTES))
        if not sent:
            raise EOFError("a stored file is shorter than it was")
        position += sent
    tail = await stored.read(stop - position, position)
    if len(tail) != stop - position:
        raise EOFError("a stored file is shorter than it was")
    await share.release()
    await response.write(tail)


async def _send_slice(
    request: web.Request, response: web.StreamResponse, stored: StoredFile, offset: int, count: int
) -> int:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the connection is lost")
    try:
        if stored.file is not None:
            return await asyncio.get_running_loop().sendfile(transport, stored.file, offset, count, fallback=False)
    except (NotImplementedError, RuntimeError):  # uvloop; TLS, or a file system without it
        pass
    data = await stored.read(min(count, _CHUNK_BYTES), offset)
    await response.write(data)
    return len(data)


async def _send_archive(
    response: web.StreamResponse, archive: Archive, run: Callable[..., Awaitable[bytes]], shares: list[LockedUpload]
) -> None:
    while archive.left:
        chunk = await run(archive.read)
        if not archive.left:
            await _release(shares)
        await response.write(chunk)
