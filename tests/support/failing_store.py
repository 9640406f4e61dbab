"""What stands before a server that speaks S3, and fails in its stead: as the store, or the way to it, might."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

__all__ = ["Call", "FailingStore", "failing_store"]

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "date", "server"}


@dataclass(frozen=True)
class Call:
    """A request to the store, by what it does."""

    kind: str
    """`opens`, `part`, `completes`, `aborts`, `manifest`, `puts`, `deletes`, `lists` or `reads`."""
    number: int
    """Of its kind, from 0."""
    path: str


@dataclass
class FailingStore:
    """`fails` says what becomes of a call: None lets it through, a number is the answer's status, `cut` breaks the
    connection, `hang` never answers, `cut after` lets it through and breaks the connection in place of an answer.
    `late` lets it through when `late` is set, whoever waits for its answer or does not any more.
    """

    endpoint: str = ""
    overlooks: str = ""
    """A header of requests that it does not know, as older stores do not know `If-None-Match`."""
    fails: Callable[[Call], int | str | None] = lambda call: None
    calls: list[Call] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while something hangs."""
    late: asyncio.Event = field(default_factory=asyncio.Event)
    came_late: list[int] = field(default_factory=list)
    """The statuses of what was let through late."""


def _kind(request: web.Request) -> str:
    query = request.query
    match request.method:
        case "POST" if "delete" in query:
            return "deletes"
        case "POST":
            return "opens" if "uploads" in query else "completes"
        case "PUT" if "partNumber" in query:
            return "part"
        case "PUT":
            return "manifest" if request.path.endswith("manifest.json") else "puts"
        case "DELETE":
            return "aborts" if "uploadId" in query else "deletes"
    return "lists" if "list-type" in query else "reads"


@asynccontextmanager
async def failing_store(endpoint: str) -> AsyncIterator[FailingStore]:
    """One before that endpoint."""
    store = FailingStore()
    left = asyncio.Event()

    async def let_through_late(request: web.Request, body: bytes) -> None:
        await store.late.wait()
        url, headers = URL(endpoint + request.raw_path, encoded=True), dict(request.headers)
        async with session.request(request.method, url, data=io.BytesIO(body), headers=headers) as answer:
            store.came_late.append(answer.status)

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        known = {name: value for name, value in request.headers.items() if name.lower() != store.overlooks.lower()}
        kind = _kind(request)
        call = Call(kind, sum(one.kind == kind for one in store.calls), request.path)
        store.calls.append(call)
        fails = store.fails(call)
        if fails == "hang":
            store.hanging.set()
            await left.wait()
        if fails == "late":
            store.hanging.set()
            await asyncio.shield(group.create_task(let_through_late(request, body)))
        if isinstance(fails, int):
            codes = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
            document = f"<?xml version='1.0'?><Error><Code>{codes[fails]}</Code><Message>no</Message></Error>"
            return web.Response(status=fails, text=document, content_type="application/xml")
        if fails != "cut":
            url = URL(endpoint + request.raw_path, encoded=True)
            async with session.request(
                request.method, url, data=io.BytesIO(body), headers=known, allow_redirects=False
            ) as answer:
                data = await answer.read()
            if fails != "cut after":
                headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
                if request.method == "HEAD":
                    headers["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, headers=headers, body=data)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()  # to nobody

    app = web.Application(client_max_size=1 << 30, handler_args={"handler_cancellation": True})
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    async with (
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["User-Agent"]) as session,
        asyncio.TaskGroup() as group,
    ):
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            store.endpoint = f"http://{host}:{port}"
            yield store
        finally:
            left.set()
            await runner.cleanup()
