"""Passed through, a body is the same byte for byte at the destination; and what the parser rejects never gets there.

Over the conformance cases, declared and chunked. The codec alone says what is to be accepted (test_conformance
compares that with what each case expects); a destination may have seen the beginning of a body that was rejected,
but its end only if the whole of it was good.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.contract import nothing_left_running
from tests.multipart.test_conformance import CASES, DIRECTORY, run  # skips this file, too, where the cases are absent
from tests.multipart.test_conformance_http import HTTP_POLICY_DECISIONS
from tests.support.clients import Client, chunked, eventually
from tests.support.doubles import HonestUpstream

pytestmark = pytest.mark.timeout(300)

LIMITS = {"max_parts": 20000, "max_headers": 300}


async def sent(port: int, content_type: str, body: bytes, *, in_chunks: bool) -> int:
    """The status that a body is answered with; all but its end comes first, so that this can go on."""
    framing = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}"
    lines = ["POST /proxy HTTP/1.1", "Host: g", f"Content-Type: {content_type}", framing, "Connection: close"]
    wire = chunked(body, max(1, len(body) // 2)) if in_chunks else body
    most = max(0, len(wire) - 3)
    async with Client(port) as client:
        with suppress(ConnectionError):
            await client.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + wire[:most])
            if most:
                await asyncio.sleep(0.01)  # time to read that; too little of it, and fewer requests begin
            await client.send(wire[most:])
        return (await client.answer()).status


TAKEN_BY_RELAYS = {"sfd-incorrect-content-type-1": "multipart/mixed, which is no form: a route of kind relay takes it"}


@pytest.mark.parametrize("in_chunks", [False, True], ids=["declared", "chunked"])
async def test_what_is_accepted_arrives_as_it_was_and_what_is_rejected_breaks_off(
    start_gateway: StartGateway, in_chunks: bool
) -> None:
    differences: dict[str, Any] = {}
    begun = 0
    async with HonestUpstream(200, b"{}") as upstream, nothing_left_running():
        gateway = await start_gateway(api=upstream.url, limits=LIMITS, sinks={"api": {"length": "passthrough"}})
        for name, case in CASES.items():
            if name in HTTP_POLICY_DECISIONS or name in TAKEN_BY_RELAYS:
                continue
            body = (DIRECTORY / "cases" / case["body_file"]).read_bytes()
            verdict = run(case, [body], keep_raw=True, one_reading=True)
            upstream.exchanges.clear()
            status = await sent(gateway.port, case["content_type"], body, in_chunks=in_chunks)
            await eventually(lambda: all(exchange.lost for exchange in upstream.exchanges))
            arrived = [bytes(exchange.body) for exchange in upstream.exchanges if exchange.complete]
            if verdict.kind == "accept":
                good = (status, arrived) == (200, [body])
                lengths = [exchange.length for exchange in upstream.exchanges]
                good = good and lengths == [None if in_chunks else len(body)]
            else:
                good = (status, arrived) == (verdict.status, [])
                begun += len(upstream.exchanges)
            if case["level"] == "must" and case["expect"] == "reject":
                good = good and verdict.kind == "reject"
            if not good:
                differences[name] = (status, verdict.kind, verdict.status, [len(one) for one in arrived])
    assert differences == {}
    assert begun  # some of the rejected ones had got as far as a request, and that was broken off
