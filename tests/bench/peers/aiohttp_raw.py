"""The ceilings: aiohttp reading a body without looking at it, and passing it on as it came.

They are started with malloc keeping what is freed, or every buffer would be fresh pages from the kernel: no
ceiling, but a matter of luck.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import hdrs, web

from tests.bench.peers.common import options

OPTIONS = options()
SESSION = web.AppKey("session", aiohttp.ClientSession)
_READ_BUFFER_BYTES = 256 << 10
"""As the gateway has it."""


async def discard(request: web.Request) -> web.Response:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
    return web.json_response({"bytes": size})


async def relay(request: web.Request) -> web.Response:
    headers = {hdrs.CONTENT_TYPE: request.headers[hdrs.CONTENT_TYPE]}
    async with request.app[SESSION].post(OPTIONS.destination, data=request.content, headers=headers) as answer:
        return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")


async def session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as app[SESSION]:
        yield


def main() -> None:
    app = web.Application(handler_args={"read_bufsize": _READ_BUFFER_BYTES})
    app.router.add_post("/discard", discard)
    app.router.add_post("/relay", relay)
    app.cleanup_ctx.append(session)
    web.run_app(app, host="127.0.0.1", port=OPTIONS.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
