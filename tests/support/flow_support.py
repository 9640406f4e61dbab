"""Files through the gateway's flows, over real sockets: what the tests of flows share."""

from __future__ import annotations

import io
from typing import Any

import aiohttp

from tests.conftest import RunningGateway

__all__ = ["OURS", "fetch", "form", "post", "route"]

OURS = "tests.support.flows_of_ours"


def form(*files: tuple[str, bytes], content_type: str | None = None) -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for filename, body in files:
        kind = content_type or "application/octet-stream"
        data.add_field("file", io.BytesIO(body), filename=filename, content_type=kind)
    return data


def route(*flows: str, sinks: tuple[str, ...] = ("disk",), **extra: Any) -> list[dict[str, Any]]:
    return [{"path": "/in", "parts": [{"flows": list(flows), "sinks": list(sinks)}], **extra}]


async def post(gateway: RunningGateway, data: Any, path: str = "/in", **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + path, data=data, headers=headers) as response,
    ):
        return response.status, await response.json(content_type=None)


async def fetch(gateway: RunningGateway, location: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(gateway.url + location) as response:
        assert response.status == 200
        return await response.read()
