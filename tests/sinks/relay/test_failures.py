"""Destinations that answer too early, die, go silent or lie; and clients that vanish.

After each of them: no task is left, and the destination never saw a whole body.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from tests.conftest import RunningGateway, StartGateway
from tests.contract import END, FORM, answer_of, eventually, form, form_part, nothing_left_running
from tests.support.clients import Client, ask, head
from tests.support.clients import file as sent_file
from tests.support.clients import form as sent_form
from tests.support.doubles import (
    DeafUpstream,
    DyingUpstream,
    EarlyOkUpstream,
    HalfAnswerUpstream,
    HonestUpstream,
    LyingUpstream,
    MuteUpstream,
    RefusingUpstream,
    SteadyUpstream,
    Upstream,
)

_PATIENCE_SECONDS = 15  # for what should take a second at most
STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
BOTH_KINDS = pytest.mark.parametrize("path", ["/proxy", "/store"])

LARGE = b"x" * 4_000_000


@asynccontextmanager
async def relaying(
    start_gateway: StartGateway, upstream: Upstream, stall_seconds: float = 30
) -> AsyncIterator[RunningGateway]:
    """A gateway before this upstream. Whatever happens within: no task is left, and the disk is empty."""
    gateway = await start_gateway(api=upstream.url, routes=STORE, limits={"stall_seconds": stall_seconds})
    async with nothing_left_running():
        yield gateway
        await eventually(lambda: gateway.services.gate.in_flight == 0)
    assert gateway.stored() == []


async def post(gateway: RunningGateway, path: str, body: AsyncIterator[bytes] | None = None) -> tuple[int, Any]:
    """(status, JSON) within a time that a hang would exceed."""
    async with asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session:
        return await answer_of(session, gateway.url + path, body or form((b"file", b"a.bin", LARGE)))


async def body_held_back(upstream: Upstream, *, answered: bool = True) -> AsyncIterator[bytes]:
    """A body whose end is not sent before the upstream has answered, and the gateway had time to read it."""
    wire = form_part(b"file", b"a.bin", b"x" * 500_000)
    yield wire[:-2]
    if answered:
        await eventually(lambda: bool(upstream.exchanges) and upstream.exchanges[0].answered)
    await asyncio.sleep(0.2)
    yield wire[-2:] + END


# -- early answers


@pytest.mark.parametrize("status", [400, 401, 413, 429, 500, 503])
@pytest.mark.parametrize("open_seconds", [0, 0.3], ids=["complete", "open"])
@pytest.mark.parametrize("after", [0, 100_000])
async def test_an_early_refusal_is_the_clients_to_read_on_a_route_of_kind_relay(
    start_gateway: StartGateway, status: int, open_seconds: float, after: int
) -> None:
    words = b'{"error": "' + b"no" * 5000 + b'"}'
    async with RefusingUpstream(status, words, after=after, open_seconds=open_seconds) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            answered, body = await post(gateway, "/proxy", body_held_back(upstream))
            assert answered == status
            assert body == {"error": "no" * 5000}
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("open_seconds", [0, 0.3], ids=["complete", "open"])
async def test_an_early_refusal_in_the_midst_of_a_fast_upload_reaches_the_client(
    start_gateway: StartGateway, open_seconds: float
) -> None:
    async with RefusingUpstream(413, b'"too much"', after=500_000, open_seconds=open_seconds) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            body = form((b"file", b"a.bin", LARGE * 5))
            assert await post(gateway, "/proxy", body) == (413, "too much")
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("open_seconds", [0, 0.3], ids=["complete", "open"])
async def test_an_early_refusal_is_a_refused_sink_on_a_route_of_our_own(
    start_gateway: StartGateway, open_seconds: float
) -> None:
    async with RefusingUpstream(413, b"too much", after=100_000, open_seconds=open_seconds) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, "/store", body_held_back(upstream))
            assert (status, problem["type"]) == (502, "/problems/sink-refused")
            assert (problem["sink"], problem["sink_status"]) == ("api", 413)
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
@pytest.mark.parametrize("early", [200, 201, 204, 299])
async def test_a_complete_yes_to_a_body_that_was_not_seen_is_refused(
    start_gateway: StartGateway, path: str, early: int
) -> None:
    async with EarlyOkUpstream(early, after=100_000, complete=True) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, path, body_held_back(upstream))
            assert (status, problem["type"]) == (502, "/problems/sink-refused")
            assert (problem["sink"], problem["sink_status"]) == ("api", early)
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("early", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_an_early_redirect_is_passed_on_as_a_refusal_is(start_gateway: StartGateway, early: int) -> None:
    """It says nothing of the body having been taken."""
    location, words = "http://127.0.0.1:9/x", b"" if early == 304 else b"there"

    class Redirecting(Upstream):
        def received(self, exchange: Any) -> None:
            if not exchange.answered and len(exchange.body) >= 100_000:
                exchange.answer(early, words, ("Location", location))

    routes = [*STORE, {"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]}]
    async with Redirecting() as upstream:
        gateway = await start_gateway(api=upstream.url, routes=routes)
        for path in ("/proxy", "/raw"):
            async with nothing_left_running(), ClientSession() as session:
                body = body_held_back(upstream)
                async with session.post(gateway.url + path, data=body, headers=FORM, allow_redirects=False) as response:
                    assert (response.status, response.headers["Location"]) == (early, location)
                    assert await response.read() == words
            upstream.exchanges.clear()
        status, problem = await post(gateway, "/store", body_held_back(upstream))
        assert (status, problem["type"], problem["sink_status"]) == (502, "/problems/sink-refused", early)
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("early", [302, 307, 308])
async def test_a_redirect_in_place_of_100_continue_is_passed_on(start_gateway: StartGateway, early: int) -> None:
    class Redirecting(Upstream):
        def received(self, exchange: Any) -> None:
            if not exchange.answered and any(name == "expect" for name, _ in exchange.headers):
                exchange.answer(early, b"", ("Location", "/there"))

    async with Redirecting() as upstream:
        gateway = await start_gateway(sinks={"api": {"url": upstream.url, "expect_continue": True}})
        async with ClientSession() as session:
            body = form((b"f", b"a", b"x" * 1_000_000))
            url = gateway.url + "/proxy"
            async with session.post(url, data=body, headers=FORM, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (early, "/there")
        (exchange,) = upstream.exchanges
        assert exchange.body == b""


async def test_an_early_yes_that_stays_open_is_held_until_the_end(start_gateway: StartGateway) -> None:
    async with EarlyOkUpstream(after=100_000, complete=False) as upstream:
        async with relaying(start_gateway, upstream) as gateway, ClientSession() as session:
            sent: list[float] = []

            async def body() -> AsyncIterator[bytes]:
                async for chunk in body_held_back(upstream):
                    sent.append(time.monotonic())
                    yield chunk

            async with session.post(gateway.url + "/proxy", data=body(), headers=FORM) as response:
                assert len(sent) == 2  # the head of the answer came after the last of the body
                assert response.status == 200
                assert await response.read() == b"first,last"
            status, manifest = await post(gateway, "/store", body_held_back(upstream))
            assert status == 201
            assert manifest["parts"][0]["receipts"] == [{"sink": "api", "status": 200, "location": None}]
        assert all(exchange.complete and exchange.closing_delimiter_seen for exchange in upstream.exchanges)


@BOTH_KINDS
async def test_an_early_yes_that_breaks_off_before_the_end_of_the_body_is_no_yes(
    start_gateway: StartGateway, path: str
) -> None:
    """All bytes of the part have been sent on, and only the closing delimiter is missing when the connection breaks."""

    async def body() -> AsyncIterator[bytes]:
        wire = form_part(b"file", b"a.bin", b"x" * 200_000) + END
        yield wire[: -len(END)] + END[:3]
        await eventually(lambda: bool(upstream.exchanges) and upstream.exchanges[0].answered)
        await asyncio.sleep(0.2)
        upstream.exchanges[0].reset()
        await asyncio.sleep(0.2)
        yield END[3:]

    async with EarlyOkUpstream(after=1000, complete=False) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, path, body())
            assert (status, problem["type"]) == (502, "/problems/sink-refused")
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
async def test_a_client_that_vanishes_after_an_early_yes_makes_no_whole_body(
    start_gateway: StartGateway, path: str
) -> None:
    async with EarlyOkUpstream(after=1000, complete=False) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            await vanish(gateway, path, upstream, rst=False)
            await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.saw_a_whole_body


# -- no answer, or half of one


@BOTH_KINDS
async def test_a_destination_that_nobody_listens_at_is_unavailable(start_gateway: StartGateway, path: str) -> None:
    async with MuteUpstream() as upstream:
        pass
    async with relaying(start_gateway, upstream) as gateway:
        status, problem = await post(gateway, path)
        assert (status, problem["type"], problem["sink"]) == (503, "/problems/sink-unavailable", "api")


@BOTH_KINDS
@pytest.mark.parametrize("after", [0, 1_000_000])
async def test_a_destination_that_dies_midway_is_a_refused_sink(
    start_gateway: StartGateway, path: str, after: int
) -> None:
    async with DyingUpstream(after=after) as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, path)
            assert (status, problem["type"], problem["sink"]) == (502, "/problems/sink-refused", "api")
            assert "sink_status" not in problem
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
async def test_a_destination_that_dies_while_the_client_pauses_is_a_refused_sink(
    start_gateway: StartGateway, path: str
) -> None:
    async def body() -> AsyncIterator[bytes]:
        wire = form_part(b"file", b"a.bin", b"x" * 500_000) + END
        yield wire[:400_000]
        await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 100_000)
        upstream.exchanges[0].reset()
        await asyncio.Event().wait()

    async with MuteUpstream() as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, path, body())
            assert (status, problem["type"], problem["sink"]) == (502, "/problems/sink-refused", "api")
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
@pytest.mark.parametrize("size", [10, 4_000_000])
async def test_a_destination_that_never_answers_is_a_timeout(start_gateway: StartGateway, path: str, size: int) -> None:
    async with MuteUpstream() as upstream:
        async with relaying(start_gateway, upstream, stall_seconds=0.5) as gateway:
            began = time.monotonic()
            status, problem = await post(gateway, path, form((b"file", b"a.bin", b"x" * size)))
            assert (status, problem["type"], problem["sink"]) == (504, "/problems/sink-timeout", "api")
            assert 0.4 < time.monotonic() - began < 8
        await eventually(lambda: upstream.exchanges[0].lost)


@BOTH_KINDS
async def test_a_destination_that_never_reads_is_a_timeout(start_gateway: StartGateway, path: str) -> None:
    async with DeafUpstream() as upstream:
        async with relaying(start_gateway, upstream, stall_seconds=0.5) as gateway:
            status, problem = await post(gateway, path, form((b"file", b"a.bin", LARGE * 8)))
            assert (status, problem["type"], problem["sink"]) == (504, "/problems/sink-timeout", "api")
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
async def test_a_client_that_pauses_longer_than_a_sink_may_is_not_the_sinks_fault(
    start_gateway: StartGateway, path: str
) -> None:
    async def body() -> AsyncIterator[bytes]:
        async for chunk in form((b"file", b"a.bin", b"x" * 1000), (b"note", None, b"y"), chunk_bytes=600):
            yield chunk
            await asyncio.sleep(0.8)

    async with (
        HonestUpstream(200, b"{}") as upstream,
        relaying(start_gateway, upstream, stall_seconds=0.5) as gateway,
    ):
        assert (await post(gateway, path, body()))[0] in (200, 201)


@BOTH_KINDS
async def test_a_destination_that_reads_slowly_but_steadily_is_not_stuck(
    start_gateway: StartGateway, path: str
) -> None:
    """What lies in the sockets' buffers takes longer to be read than a sink may stand still."""
    async with SteadyUpstream(2_000_000) as upstream:
        async with relaying(start_gateway, upstream, stall_seconds=1) as gateway:
            status, answer = await post(gateway, path, form((b"file", b"a.bin", b"x" * 12_000_000)))
            assert (status, answer.get("type")) in [(200, None), (201, None)]
        assert upstream.exchanges[0].complete


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ],
    ids=["half a head", "nothing", "not HTTP", "two lengths"],
)
@BOTH_KINDS
async def test_an_answer_that_is_none_is_a_refused_sink(start_gateway: StartGateway, path: str, answer: bytes) -> None:
    async with HalfAnswerUpstream(answer) as upstream, relaying(start_gateway, upstream) as gateway:
        status, problem = await post(gateway, path)
        assert (status, problem["type"], problem["sink"]) == (502, "/problems/sink-refused", "api")


@pytest.mark.parametrize(
    "upstream",
    [
        HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"),
        HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", reset=False),
        LyingUpstream(),
    ],
    ids=["reset", "chunked, reset", "chunked, closed", "closed"],
)
async def test_half_an_answer_breaks_the_clients_connection(start_gateway: StartGateway, upstream: Upstream) -> None:
    async with upstream, relaying(start_gateway, upstream) as gateway, ClientSession() as session:
        response = await session.post(gateway.url + "/proxy", data=form((b"file", b"a", b"x")), headers=FORM)
        assert response.status == 200
        with pytest.raises((ClientError, ConnectionError)):
            await response.read()


async def test_an_answer_that_stalls_breaks_the_clients_connection(start_gateway: StartGateway) -> None:
    class Stalling(HonestUpstream):
        def received(self, exchange: Any) -> None:
            if exchange.complete and not exchange.answered:
                exchange.answer(200, b"half", length=8)

    async with Stalling() as upstream, relaying(start_gateway, upstream, stall_seconds=0.5) as gateway:
        async with asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session:
            response = await session.post(gateway.url + "/proxy", data=form((b"file", b"a", b"x")), headers=FORM)
            with pytest.raises((ClientError, ConnectionError)):
                await response.read()
        await eventually(lambda: upstream.exchanges[0].lost)


# -- the client


async def vanish(gateway: RunningGateway, path: str, upstream: Upstream, *, rst: bool, chunked: bool = False) -> None:
    """A client that sends some of a body, sees that it got to the upstream, and goes away."""
    wire = form_part(b"file", b"a.bin", b"x" * 3_000_000)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(wire) + len(END)}"
    head = [f"POST {path} HTTP/1.1", "Host: g", "Content-Type: multipart/form-data; boundary=b", framing, "", ""]
    _, writer = await asyncio.open_connection(gateway.host, gateway.port)
    sent = wire[:500_000]
    writer.write("\r\n".join(head).encode())
    writer.write(b"%x\r\n%b\r\n" % (len(sent), sent) if chunked else sent)
    await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 300_000)
    if rst:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@BOTH_KINDS
@pytest.mark.parametrize("rst", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "declared length"])
async def test_when_a_client_vanishes_its_destination_sees_the_request_break_off(
    start_gateway: StartGateway, path: str, rst: bool, chunked: bool
) -> None:
    async with MuteUpstream() as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            await vanish(gateway, path, upstream, rst=rst, chunked=chunked)
            await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.exchanges[0].complete
        assert not upstream.exchanges[0].closing_delimiter_seen


@BOTH_KINDS
async def test_a_body_that_ends_before_its_closing_delimiter_is_never_passed_on_as_whole(
    start_gateway: StartGateway, path: str
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield form_part(b"file", b"a.bin", b"x" * 500_000) + END[:3]

    async with HonestUpstream() as upstream:
        async with relaying(start_gateway, upstream) as gateway:
            status, problem = await post(gateway, path, body())
            assert (status, problem["type"]) == (400, "/problems/truncated")
        await eventually(lambda: all(exchange.lost for exchange in upstream.exchanges))
        assert not upstream.saw_a_whole_body


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process cannot open another one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("path", ["/proxy", "/store", "/upload"])
async def test_where_no_descriptor_is_left_that_is_said_and_no_destination_is_blamed(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    body = sent_form(sent_file(b"abc"))
    async with HonestUpstream() as upstream:
        sinks = {"api": {"urls": [f"{upstream.url}/1", f"{upstream.url}/2"], "failures_to_open": 1}}
        gateway = await start_gateway(sinks=sinks, routes=STORE)
        async with Client(gateway.port) as client:
            await client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer()).status == 200
            with no_more_descriptors():
                await client.send(head(path, content_length=len(body)) + body)
                answer = await client.answer()
        assert (answer.status, answer.json()["type"]) == (503, "/problems/no-descriptors")
        assert "descriptor" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "2"
        if path == "/proxy":
            assert "error=proxy_internal_error" in answer.headers["proxy-status"]
        assert "in a row" not in caplog.text
        assert upstream.exchanges == []
        assert (await ask(gateway.port, path, "POST", body)).status in (200, 201)
