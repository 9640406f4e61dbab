"""gzip and zstd, there and back; what is no gzip, cut off, or a bomb."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from tests.conftest import StartGateway
from tests.support.flow_support import fetch, form, post, route


@pytest.mark.parametrize("size", [0, 1, 5000, 3_000_000])
@pytest.mark.parametrize(("there", "back", "suffix"), [("gzip", "gunzip", ".gz"), ("zstd", "unzstd", ".zst")])
async def test_what_was_compressed_decompresses_to_the_same(
    start_gateway: StartGateway, there: str, back: str, suffix: str, size: int
) -> None:
    gateway = await start_gateway(
        routes=[*route(there), {"path": "/back", "parts": [{"flows": [back], "sinks": ["disk"]}]}]
    )
    body = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    status, manifest = await post(gateway, form(("a.bin", body)))
    assert status == 201
    receipt = manifest["parts"][0]["receipts"][0]
    assert receipt["filename"] == "a.bin" + suffix
    packed = await fetch(gateway, receipt["location"])
    status, manifest = await post(gateway, form(("a.bin" + suffix, packed)), "/back")
    assert status == 201
    receipt = manifest["parts"][0]["receipts"][0]
    assert receipt["filename"] == "a.bin"
    assert await fetch(gateway, receipt["location"]) == body


async def test_a_gzip_bomb_stops_at_its_cap(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        flows={"gunzip": {"max_output_bytes": 50_000_000, "max_ratio": 0}}, routes=route("gunzip", digests=[])
    )
    deflater = zlib.compressobj(9, wbits=31)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(100)) + deflater.flush()
    status, problem = await post(gateway, form(("bomb.gz", bomb)))
    assert (status, problem["limit"], problem["flow"]) == (413, 50_000_000, "gunzip")
    assert gateway.stored() == []


async def test_a_ratio_beyond_the_cap_is_too_large(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("gunzip"))
    status, problem = await post(gateway, form(("zeros.gz", gzip.compress(bytes(20_000_000)))))
    assert (status, problem["type"]) == (413, "/problems/too-large")


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip at all", gzip.compress(b"x" * 100_000)[:-9], gzip.compress(b"abc") + b"garbage"],
    ids=["empty", "no gzip", "cut off", "with garbage behind it"],
)
@pytest.mark.parametrize("flow", ["gunzip", "unzstd"])
async def test_what_is_not_compressed_or_cut_off_is_rejected(
    start_gateway: StartGateway, flow: str, body: bytes
) -> None:
    gateway = await start_gateway(routes=route(flow))
    status, problem = await post(gateway, form(("a.gz", body)))
    assert (status, problem["type"]) == (422, "/problems/rejected")
    assert gateway.stored() == []


async def test_several_gzip_members_are_one_file(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("gunzip"))
    body = gzip.compress(b"one,") + gzip.compress(bytes(100_000)) + gzip.compress(b"three")
    status, manifest = await post(gateway, form(("a.gz", body)))
    assert status == 201
    assert await fetch(gateway, manifest["parts"][0]["receipts"][0]["location"]) == b"one," + bytes(100_000) + b"three"


async def test_very_many_tiny_members_cost_no_hop_each(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"stall_seconds": 5}, routes=route("gunzip"))
    body = gzip.compress(b"") * 20_000 + gzip.compress(b"x" * 50) * 20_000
    status, manifest = await post(gateway, form(("a.gz", body)))
    assert status == 201
    assert await fetch(gateway, manifest["parts"][0]["receipts"][0]["location"]) == b"x" * 1_000_000


async def test_zeros_after_the_last_member_are_padding(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("gunzip"))
    for body in (gzip.compress(b"a") + bytes(100_000), gzip.compress(b"a") + bytes(3) + gzip.compress(b"")):
        status, manifest = await post(gateway, form(("a.gz", body)))
        assert status == 201
        assert await fetch(gateway, manifest["parts"][0]["receipts"][0]["location"]) == b"a"
