"""aiohttp as its documentation has it: the stock reader, its chunks of 8 KiB, and aiofiles for each of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import aiofiles
import aiohttp
from aiohttp import BodyPartReader, hdrs, web

from tests.bench.peers.common import options, sync_directory

OPTIONS = options()
SESSION = web.AppKey("session", aiohttp.ClientSession)
Manifest = list[dict[str, str | int | None]]
_BOUNDARY = b"stock-4d7f0c2e9b1a4c63"


def _entry(part: BodyPartReader, size: int) -> dict[str, str | int | None]:
    return {"name": part.name, "filename": part.filename, "size": size}


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        yield part


async def discard(request: web.Request) -> web.Response:
    manifest: Manifest = []
    async for part in _parts(request):
        size = 0
        while chunk := await part.read_chunk():
            size += len(chunk)
        manifest.append(_entry(part, size))
    return web.json_response({"parts": manifest})


async def disk(request: web.Request) -> web.Response:
    manifest: Manifest = []
    directory = OPTIONS.fresh_directory()
    async for part in _parts(request):
        size = 0
        async with aiofiles.open(directory / str(len(manifest)), "xb") as file:
            while chunk := await part.read_chunk():
                await file.write(chunk)
                size += len(chunk)
            if OPTIONS.fsync:
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        manifest.append(_entry(part, size))
    if OPTIONS.fsync:
        await asyncio.to_thread(sync_directory, directory)
    return web.json_response({"parts": manifest})


async def _packed(request: web.Request, manifest: Manifest, *, keep: bool) -> AsyncIterator[bytes]:
    """The form again, in a boundary of our own; on the way to disk, too, if it is to be kept."""
    directory = OPTIONS.fresh_directory() if keep else None
    async for part in _parts(request):
        size = 0
        yield (
            b"--%s\r\nContent-Disposition: %s\r\nContent-Type: %s\r\n\r\n"
            % (
                _BOUNDARY,
                part.headers[hdrs.CONTENT_DISPOSITION].encode(),
                part.headers.get(hdrs.CONTENT_TYPE, "application/octet-stream").encode(),
            )
        )
        if directory is None:
            while chunk := await part.read_chunk():
                size += len(chunk)
                yield chunk
        else:
            async with aiofiles.open(directory / str(len(manifest)), "xb") as file:
                while chunk := await part.read_chunk():
                    size += len(chunk)
                    await file.write(chunk)
                    yield chunk
        yield b"\r\n"
        manifest.append(_entry(part, size))
    yield b"--%s--\r\n" % _BOUNDARY


async def _post(request: web.Request, manifest: Manifest, *, keep: bool) -> tuple[int, bytes]:
    headers = {hdrs.CONTENT_TYPE: "multipart/form-data; boundary=" + _BOUNDARY.decode()}
    data = _packed(request, manifest, keep=keep)
    async with request.app[SESSION].post(OPTIONS.destination, data=data, headers=headers) as answer:
        return answer.status, await answer.read()


async def relay(request: web.Request) -> web.Response:
    status, body = await _post(request, [], keep=False)
    return web.Response(status=status, body=body, content_type="application/json")


async def both(request: web.Request) -> web.Response:
    manifest: Manifest = []
    status, _ = await _post(request, manifest, keep=True)
    return web.json_response({"parts": manifest}, status=status)


async def session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as app[SESSION]:
        yield


def main() -> None:
    app = web.Application()
    for handler in (discard, disk, relay, both):
        app.router.add_post(f"/{handler.__name__}", handler)
    app.cleanup_ctx.append(session)
    web.run_app(app, host="127.0.0.1", port=OPTIONS.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
