"""Whether a proxy in front of us holds bodies back, as its client learns it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Client, ask, chunked, head
from tests.support.destinations import nginx_before


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway()


async def slowly(port: int, *, seconds: float, framing: str) -> Any:
    pieces = [b"first", b"last"]
    headers: dict[str, str | int] = {"content_type": "text/plain"}
    if framing == "chunked":
        pieces = [chunked(b"first")[:-5], chunked(b"last")]
        headers["transfer_encoding"] = "chunked"
    else:
        headers["content_length"] = 9
    async with Client(port) as client:
        await client.send(head(f"/selftest/buffering?seconds={seconds}", "PUT", **headers) + pieces[0])
        await asyncio.sleep(seconds)
        await client.send(pieces[1])
        answer = await client.answer()
    assert answer.status == 200
    return answer.json()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_nothing_in_between_holds_nothing_back(gateway: RunningGateway, framing: str) -> None:
    told = await slowly(gateway.port, seconds=1, framing=framing)
    assert (told["bytes"], told["buffered"]) == (9, False)
    assert told["seconds"] > 0.5


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_a_proxy_that_holds_bodies_back_is_found_out(
    gateway: RunningGateway, tmp_path: Path, buffering: str
) -> None:
    with nginx_before(gateway.url, tmp_path, buffering=buffering) as url:
        told = await slowly(int(url.rpartition(":")[2]), seconds=1, framing="length")
    assert told["buffered"] is (buffering == "on")


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("/selftest/buffering?seconds=0", b"xx", 400),
        ("/selftest/buffering?seconds=nan", b"xx", 400),
        ("/selftest/buffering?seconds=1e9", b"xx", 400),
        ("/selftest/buffering?seconds=soon", b"xx", 400),
        ("/selftest/buffering", b"x", 400),
        ("/selftest/buffering", b"x" * (1 << 20) + b"x", 413),
    ],
)
async def test_what_is_no_test_is_refused(gateway: RunningGateway, target: str, body: bytes, status: int) -> None:
    answer = await ask(gateway.port, target, "POST", body, content_type="text/plain")
    assert answer.status == status
    assert gateway.services.gate.in_flight == 0
