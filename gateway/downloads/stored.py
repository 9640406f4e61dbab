"""What was stored, given back: files with ranges and conditions, the manifest, a zip of everything; and its removal.

1. A file's bytes never change, so its validators are strong: the entity tag is the digest of the stored
   bytes where the manifest has one, and the date is good for If-Range, too.
2. Conditions are judged in the order of RFC 9110 13.2.2. HEAD is answered as GET is, ranges included.
3. One range is served. Several, or one of invalid syntax, are answered with the whole (14.2 allows both). Where the
   store itself gives files away, whoever may have one is sent there, and asks it for the range.
4. Whatever was stored is a download, never a page of ours, nor a piece of another site's: attachment, nosniff, sandbox,
   same-origin. No cache between gives it to others, or without asking whether it is still there.
5. Who reads keeps nobody from removing the upload: a file that was opened is read to its end, an archive breaks off. An
   archive never looks whole that is not: where a file is gone before it has begun, there is none.
6. An upload that is somebody's is not there for others: unknown and foreign ones are not told apart.
7. A body that cannot be sent to its end breaks the connection, and never looks like a whole one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import hdrs, web

from gateway.access import ANYBODY, Identity
from gateway.downloads.archive import Archive
from gateway.downloads.parts import StoredPart, owner_of, part_of, parts_of
from gateway.errors import ClientGone, GatewayError, InternalError, NotFound, PreconditionFailed, RangeNotSatisfiable
from gateway.http.answers import SENT_BYTES, reset
from gateway.http.conditions import chosen
from gateway.http.prefix import PREFIX, prefixed
from gateway.http.problems import problem
from gateway.http.ulids import ULID
from gateway.multipart.filenames import attachment, safe_name
from gateway.sinks.store import PIECE_BYTES, Store, StoredFile, StoredPieces, StoredUpload

__all__ = [
    "OUTCOME",
    "READER",
    "STORES",
    "delete_upload",
    "get_archive",
    "get_file",
    "get_upload",
    "stored_owner",
]

log = logging.getLogger("gateway.stored")
access_log = logging.getLogger("gateway.access")

READER: web.RequestKey[Identity] = web.RequestKey("reader", Identity)
"""Who asks; anybody where it is not said."""
STORES: web.AppKey[Sequence[Store]] = web.AppKey("stores", Sequence[Store])
OUTCOME = web.ResponseKey("outcome", str)
"""What became of an answer, in one word, if it is not `ok`."""

_SLICE_BYTES = 1 << 20
"""Sent in one go. It bounds how long a disk that is not cached holds up the event loop."""

_OCTETS = "application/octet-stream"
_CACHING: dict[str, str] = {hdrs.CACHE_CONTROL: "private, no-cache"}
_NO_PAGE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_INDEX = re.compile("0|[1-9][0-9]{0,8}")
_FIELD_VALUE = re.compile("[\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+")


# -- the stories


async def get_upload(request: web.Request) -> web.StreamResponse:
    """The manifest, as it was kept, but for the prefix of whoever reads it. Raises NotFound."""
    upload_id, prefix = _upload_id(request), request.get(PREFIX, "")
    async with _opened(request, upload_id) as (manifest, _):
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/json"})
        if not prefix:
            response.content_length = manifest.size
            return await _sent(request, response, lambda: _send_file(request, response, manifest, 0, manifest.size))
        response.content_length = sum([len(piece) async for piece in _prefixed(manifest, prefix)])
        return await _sent(request, response, lambda: _send_pieces(request, response, _prefixed(manifest, prefix)))


async def stored_owner(request: web.Request, index: str | None) -> str:
    """Whose the upload is; empty: nobody's. Raises NotFound where it, or the file of that index, is not there for who
    asks.
    """
    upload_id = _upload_id(request)
    async with _opened(request, upload_id) as (manifest, shares):
        if index is not None:
            indexes = [await share.indexes() for share in shares] if _INDEX.fullmatch(index) else []
            if not any(int(index) in one for one in indexes):
                raise NotFound(f"upload {upload_id} has no file {index}")
        return await owner_of(manifest)


async def delete_upload(request: web.Request) -> web.Response:
    """All of it or, where one of the stores cannot, nothing. Who reads it may read on."""
    upload_id, stores = _upload_id(request), request.app[STORES]
    async with AsyncExitStack() as stack:
        async with _looked_up(request, upload_id) as (manifest, _):
            if manifest is None and READER in request:  # damaged, and whose it was nobody knows
                raise NotFound(f"there is no upload {upload_id}")
        shares = [await stack.enter_async_context(store.removal(upload_id)) for store in stores]
        if not any(shares):
            raise NotFound(f"there is no upload {upload_id}")
        for share in shares:
            if share is not None:
                await share.remove()
    return web.Response(status=204)


async def get_file(request: web.Request) -> web.StreamResponse:
    """`{id}` and `{index}` decide; the last segment is for people."""
    upload_id, index = _upload_id(request), request.match_info["index"]
    if _INDEX.fullmatch(index):
        async with _opened(request, upload_id) as (manifest, shares):
            part = await part_of(manifest, int(index))
            for share in shares:
                stored = None if part is None else await share.open(int(index))
                if part is not None and stored is not None:
                    return await _answer_file(request, upload_id, part, share.sink, stored)
    raise NotFound(f"upload {upload_id} has no file {index}")


async def _answer_file(
    request: web.Request, upload_id: str, part: StoredPart, sink: str, stored: StoredFile
) -> web.StreamResponse:
    described = _as_stored(part, sink)
    digest, modified = described["sha256"], int(stored.modified)
    etag = f'"{digest}"' if digest else f'"{upload_id}-{part["index"]}"'
    validators: dict[str, str] = {hdrs.ETAG: etag, hdrs.LAST_MODIFIED: formatdate(modified, usegmt=True), **_CACHING}
    status, start, stop = chosen(request.headers, etag=etag, modified=modified, size=stored.size)
    match status:
        case 304:
            return web.Response(status=304, headers=validators)
        case 412:
            raise PreconditionFailed(f"file {part['index']} of upload {upload_id} is another one")
        case 416:
            error = RangeNotSatisfiable(f"the file has {stored.size} bytes", size=stored.size)
            refusal = problem(error, prefix=request.get(PREFIX, ""))
            refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{stored.size}"
            refusal[OUTCOME] = RangeNotSatisfiable.slug()
            return refusal
    content_type = described["content_type"] or ""
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: content_type if _FIELD_VALUE.fullmatch(content_type) else _OCTETS,
        hdrs.CONTENT_LENGTH: str(stop - start),
        hdrs.CONTENT_DISPOSITION: attachment(safe_name(described["filename"])),
        hdrs.ACCEPT_RANGES: "bytes",
        **validators,
        **_NO_PAGE,
    }
    codings = [coding.strip() for coding in part.get("content_encoding", "").split(",") if coding.strip()]
    if codings and all(map(_TOKEN.fullmatch, codings)):  # its bytes are as they came, or no flow was let to them
        headers[hdrs.CONTENT_ENCODING] = ", ".join(codings)
    elif (url := await stored.elsewhere("HEAD" if request.method == hdrs.METH_HEAD else "GET")) is not None:
        # Not for long, nor for anybody else (rule 4); ranges are asked for there, and it does not know of encodings.
        return web.Response(status=307, headers={hdrs.LOCATION: url, hdrs.CACHE_CONTROL: "private, no-store"})
    if status == 206:
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{stored.size}"
    response = web.StreamResponse(status=status, headers=headers)
    return await _sent(request, response, lambda: _send_file(request, response, stored, start, stop))


async def get_archive(request: web.Request) -> web.StreamResponse:
    """All files of an upload as one zip, not compressed, so that its length is known before it is made."""
    upload_id = _upload_id(request)
    async with _opened(request, upload_id) as (manifest, shares):
        places: dict[int, StoredUpload] = {}
        for share in reversed(shares):  # of two that have a file the first one gives it, as in get_file
            for index in await share.indexes():
                places[index] = share
        named: list[tuple[Path | StoredPieces, str]] = []
        names = {store.name for store in request.app[STORES]}
        async for part in parts_of(manifest):
            place = places.get(part["index"])
            if place is None and any(one["sink"] in names and "dropped" not in one for one in part["receipts"]):
                raise NotFound(f"upload {upload_id} is being removed: file {part['index']} is gone")
            if place is not None:
                pieces = await place.pieces(part["index"])
                if pieces is None:
                    raise NotFound(f"upload {upload_id} lies elsewhere, and has no archive")
                named.append((pieces, safe_name(_as_stored(part, place.sink)["filename"])))
        reader = next((share for share in shares if share in places.values()), None)
        run = asyncio.to_thread if reader is None else reader.run
        archive = await run(_archive, named)
        if reader is not None:
            reader.close_later(archive)
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: "application/zip",
            hdrs.CONTENT_LENGTH: str(archive.left),
            hdrs.CONTENT_DISPOSITION: f'attachment; filename="{upload_id}.zip"',
            hdrs.ACCEPT_RANGES: "none",
            **_CACHING,
            **_NO_PAGE,
        }
        response = web.StreamResponse(headers=headers)
        return await _sent(request, response, lambda: _send_archive(request, response, archive, run))


def _archive(named: Sequence[tuple[Path | StoredPieces, str]]) -> Archive:
    try:
        return Archive(named)
    except FileNotFoundError:
        raise NotFound("the upload is being removed") from None


@asynccontextmanager
async def _opened(request: web.Request, upload_id: str) -> AsyncIterator[tuple[StoredFile, list[StoredUpload]]]:
    """(its manifest, what each store has of it). Raises NotFound."""
    async with _looked_up(request, upload_id) as (manifest, shares):
        if manifest is None:
            raise NotFound(f"there is no upload {upload_id}")
        yield manifest, shares


@asynccontextmanager
async def _looked_up(
    request: web.Request, upload_id: str
) -> AsyncIterator[tuple[StoredFile | None, list[StoredUpload]]]:
    """The same, where there may be none. Raises NotFound for one that is somebody else's."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(store.opened(upload_id)) for store in request.app[STORES]]
        shares = [share for share in opened if share is not None]
        manifest: StoredFile | None = None
        for share in shares:
            if (manifest := await share.manifest()) is not None:
                break
        reader = request.get(READER, ANYBODY)
        if manifest is not None and not reader.may_see(await owner_of(manifest)):
            told = {"decision": "not-theirs", "identity": reader.name or None, "upload": upload_id}
            access_log.info("access not-theirs", extra={**told, "method": request.method})
            raise NotFound(f"there is no upload {upload_id}")
        yield manifest, shares


def _upload_id(request: web.Request) -> str:
    upload_id = request.match_info["id"]
    if not ULID.fullmatch(upload_id):
        raise NotFound("there is no such upload")
    return upload_id


def _as_stored(part: Mapping[str, Any], sink: str) -> dict[str, Any]:
    """A part's description; where flows changed it on its way to this sink, the receipt's."""
    receipt: Mapping[str, Any] = next((receipt for receipt in part["receipts"] if receipt["sink"] == sink), {})
    return {key: receipt.get(key, part[key]) for key in ("filename", "content_type", "sha256")}


# -- sending


async def _sent(
    request: web.Request, response: web.StreamResponse, body: Callable[[], Awaitable[None]]
) -> web.StreamResponse:
    """The response, sent to its end or broken off (rule 6). A client that goes away is no error of ours."""
    only_head = request.method == hdrs.METH_HEAD or response.content_length == 0
    try:
        await response.prepare(request)
        if not only_head:
            await body()
        await response.write_eof()
    except (ConnectionError, TimeoutError) as error:
        log.debug("the client of %s went away: %r", request.path, error)
        response[OUTCOME] = ClientGone.slug()
        reset(request)
    except (EOFError, OSError, GatewayError) as error:  # the file is not what it was, or its disk is not
        log.error("the answer to %s broke off: %s", request.path, error)
        response[OUTCOME] = InternalError.slug()
        reset(request)
    except Exception:
        log.exception("the answer to %s broke off", request.path)
        response[OUTCOME] = InternalError.slug()
        reset(request)
    return response


async def _send_file(
    request: web.Request, response: web.StreamResponse, stored: StoredFile, start: int, stop: int
) -> None:
    if stored.file is not None:
        start += await _send_by_system(request, stored.file, start, stop)
    await _send_pieces(request, response, stored.pieces(start, stop))


async def _send_by_system(request: web.Request, file: BinaryIO, start: int, stop: int) -> int:
    """How many bytes of the file it took: all, or none where there is no such way. Raises EOFError."""
    position = start
    while position < stop:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection is lost")
        count = min(stop - position, _SLICE_BYTES)
        try:
            sent = await asyncio.get_running_loop().sendfile(transport, file, position, count, fallback=False)
        except (NotImplementedError, RuntimeError):  # uvloop; TLS, or a file system without it
            break
        if not sent:
            raise EOFError("a stored file is shorter than it was")
        position += sent
        _count(request, sent)
    return position - start


async def _prefixed(manifest: StoredFile, prefix: str) -> AsyncIterator[bytes]:
    """Piece by piece, each read in a thread. Raises EOFError for one that is cut off."""
    position, rest = 0, b""
    while position < manifest.size:
        data = await manifest.read(min(PIECE_BYTES, manifest.size - position), position)
        if not data:
            raise EOFError("a stored manifest is shorter than it was")
        position += len(data)
        whole, comma, rest = (rest + data).rpartition(b",")
        yield prefixed(whole + comma, prefix)
    yield prefixed(rest, prefix)


async def _send_pieces(request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes]) -> None:
    async for piece in pieces:
        await response.write(piece)
        _count(request, len(piece))


async def _send_archive(
    request: web.Request, response: web.StreamResponse, archive: Archive, run: Callable[..., Awaitable[bytes]]
) -> None:
    while archive.left:
        piece = await run(archive.read)
        await response.write(piece)
        _count(request, len(piece))


def _count(request: web.Request, size: int) -> None:
    request[SENT_BYTES] = request.get(SENT_BYTES, 0) + size
