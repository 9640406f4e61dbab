"""Line ends made uniform."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.conftest import StartGateway
from tests.support.flow_support import fetch, post, route


async def test_lines_makes_line_ends_uniform_wherever_chunks_are_cut(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("lines"))

    async def dribble() -> Any:
        for byte in b"a\r\nb\rc\nd\r\n\r\n\r":
            yield bytes([byte])
            await asyncio.sleep(0.001)

    status, manifest = await post(gateway, dribble())
    assert status == 201
    part = manifest["parts"][0]
    assert await fetch(gateway, part["receipts"][0]["location"]) == b"a\nb\nc\nd\n\n\n"
    assert part["findings"] == {"lines": {"line_ends": 6}}
