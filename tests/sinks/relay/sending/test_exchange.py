"""One attempt: its clocks, each by name; the question before the body."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from gateway.errors import SinkFault
from gateway.http.lent_connection import LentConnection
from gateway.sinks.relay.sending.exchange import Broken, Clocks, Exchange
from gateway.sinks.relay.sending.request import Expecting, LentBody, RequestHead, StreamingRequest, Taught
from tests.conftest import RunningGateway, StartGateway
from tests.contract import FORM, eventually, nothing_left_running
from tests.contract import form as form_of
from tests.support.clients import Answer, Client, file, form, head, random_bytes
from tests.support.doubles import (
    ContinuingUpstream,
    DeafUpstream,
    DyingUpstream,
    ExpectRefusingUpstream,
    HonestUpstream,
    LengthDemandingUpstream,
    MuteUpstream,
    RefusingUpstream,
    SlowUpstream,
    Upstream,
)

STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
BOTH_KINDS = pytest.mark.parametrize("path", ["/proxy", "/store"])
_PATIENCE_SECONDS = 15


async def relay(start_gateway: StartGateway, *urls: str, stall_seconds: float = 30, **sink: Any) -> RunningGateway:
    sinks = {"api": {"urls": list(urls), **sink}}
    return await start_gateway(sinks=sinks, routes=STORE, limits={"stall_seconds": stall_seconds})


async def send(gateway: RunningGateway, path: str, body: bytes, **headers: Any) -> Answer:
    async with Client(gateway.port) as client:
        await client.send(head(path, content_length=len(body), **headers) + body)
        return await client.answer(_PATIENCE_SECONDS)


def timeout_of(answer: Answer) -> str:
    problem = answer.json()
    assert (answer.status, problem["type"], problem["sink"]) == (504, "/problems/sink-timeout", "api")
    assert f"({problem['clock']}_seconds)" in problem["detail"]
    return str(problem["clock"])


class SilentListener:
    """Its backlog is full: connections to it are neither made nor refused."""

    async def __aenter__(self) -> str:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        port = self._listener.getsockname()[1]
        self._filling = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            self._filling.append(filler)
        await asyncio.sleep(0.05)
        return f"http://127.0.0.1:{port}/"

    async def __aexit__(self, *exc_info: object) -> None:
        for one in (*self._filling, self._listener):
            one.close()


# -- clocks


@BOTH_KINDS
async def test_connect_seconds(start_gateway: StartGateway, path: str) -> None:
    async with SilentListener() as url:
        gateway = await relay(start_gateway, url, connect_seconds=0.3)
        async with nothing_left_running():
            assert timeout_of(await send(gateway, path, form(file(b"x")))) == "connect"


@BOTH_KINDS
async def test_write_seconds(start_gateway: StartGateway, path: str) -> None:
    async with DeafUpstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, write_seconds=0.3)
        async with nothing_left_running():
            assert timeout_of(await send(gateway, path, form(file(random_bytes(32 << 20))))) == "write"
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
@pytest.mark.parametrize("size", [10, 4_000_000])
@pytest.mark.parametrize("length", ["chunked", "passthrough", "spool"])
async def test_first_byte_seconds(start_gateway: StartGateway, path: str, size: int, length: str) -> None:
    async with MuteUpstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, first_byte_seconds=0.3, length=length)
        async with nothing_left_running():
            assert timeout_of(await send(gateway, path, form(file(random_bytes(size))))) == "first_byte"
        await eventually(lambda: upstream.exchanges[0].lost)


async def test_read_seconds_breaks_the_clients_connection(start_gateway: StartGateway) -> None:
    async with SlowUpstream(body_seconds=60) as upstream:
        gateway = await relay(start_gateway, upstream.url, read_seconds=0.3)
        async with nothing_left_running(), asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session:
            response = await session.post(gateway.url + "/proxy", data=form_of((b"f", b"a", b"x")), headers=FORM)
            assert response.status == 200
            with pytest.raises((ClientError, ConnectionError)):
                await response.read()


@BOTH_KINDS
async def test_total_seconds_of_a_body_that_comes_slowly(start_gateway: StartGateway, path: str) -> None:
    body = form(file(random_bytes(1_000_000)))
    async with MuteUpstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, total_seconds=0.5)
        async with nothing_left_running(), Client(gateway.port) as client:
            await client.send(head(path, content_length=len(body)) + body[:-10])
            assert timeout_of(await client.answer(_PATIENCE_SECONDS)) == "total"
        assert not upstream.saw_a_whole_body


async def test_total_seconds_of_an_answer_that_comes_slowly(start_gateway: StartGateway) -> None:
    async with SlowUpstream(body_seconds=60) as upstream:
        gateway = await relay(start_gateway, upstream.url, total_seconds=0.5)
        async with nothing_left_running(), asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session:
            response = await session.post(gateway.url + "/proxy", data=form_of((b"f", b"a", b"x")), headers=FORM)
            assert response.status == 200
            with pytest.raises((ClientError, ConnectionError)):
                await response.read()


@BOTH_KINDS
async def test_clocks_longer_than_a_sink_may_stall_are_waited_for(start_gateway: StartGateway, path: str) -> None:
    async with SlowUpstream(1.2) as upstream:
        gateway = await relay(start_gateway, upstream.url, stall_seconds=0.4, first_byte_seconds=30)
        assert (await send(gateway, path, form(file(random_bytes(1_000_000))))).status in (200, 201)


async def test_an_answer_longer_in_coming_than_a_sink_may_stall_is_waited_for(start_gateway: StartGateway) -> None:
    async with SlowUpstream(body_seconds=1.2) as upstream:
        gateway = await relay(start_gateway, upstream.url, stall_seconds=0.4, read_seconds=30)
        assert (await send(gateway, "/proxy", form(file(b"x")))).json() == {}


async def test_clocks_can_be_off(start_gateway: StartGateway) -> None:
    async with SlowUpstream(0.8, body_seconds=0.8) as upstream:
        off = {"write_seconds": 0, "first_byte_seconds": 0, "read_seconds": 0}
        gateway = await relay(start_gateway, upstream.url, stall_seconds=0.3, **off)
        assert (await send(gateway, "/proxy", form(file(b"x")))).json() == {}


# -- Expect


@BOTH_KINDS
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("length", ["chunked", "passthrough", "spool"])
async def test_the_body_waits_for_100_continue(start_gateway: StartGateway, path: str, times: int, length: str) -> None:
    async with ContinuingUpstream(after_seconds=0.2, times=times) as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=30, length=length)
        async with nothing_left_running():
            answer = await send(gateway, path, form(file(random_bytes(1_000_000))))
        assert answer.status in (200, 201)
        assert upstream.body_bytes_before == [0]
        assert len(upstream.whole_bodies) == 1


@pytest.mark.parametrize("length", ["chunked", "passthrough", "spool"])
async def test_a_destination_that_ignores_the_question_gets_the_body_anyway(
    start_gateway: StartGateway, length: str
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=0.2, length=length)
        began = time.monotonic()
        assert (await send(gateway, "/proxy", form(file(random_bytes(1_000_000))))).status == 200
        assert 0.2 <= time.monotonic() - began < 10
        assert ("expect", "100-continue") in upstream.exchanges[0].headers


async def test_a_destination_that_says_go_on_after_the_body_was_sent_is_understood(start_gateway: StartGateway) -> None:
    async with ContinuingUpstream(after_seconds=0.5) as upstream:
        upstream._status = 201
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=0.1)
        assert (await send(gateway, "/proxy", form(file(random_bytes(8_000_000))))).status == 201


@BOTH_KINDS
@pytest.mark.parametrize("status", [401, 413, 417])
@pytest.mark.parametrize("open_seconds", [0, 1.0], ids=["complete", "open"])
async def test_a_refusal_in_place_of_100_is_passed_on_and_costs_no_byte(
    start_gateway: StartGateway, path: str, status: int, open_seconds: float
) -> None:
    async with RefusingUpstream(status, b'"no"', open_seconds=open_seconds) as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=0.3)
        async with nothing_left_running():
            answer = await send(gateway, path, form(file(random_bytes(500_000))))
        if path == "/proxy":
            assert (answer.status, answer.json()) == (status, "no")
        else:
            assert (answer.status, answer.json()["sink_status"]) == (502, status)
        await eventually(lambda: upstream.exchanges[0].lost)
        assert upstream.exchanges[0].body == b""


async def test_a_destination_that_will_not_be_asked_gets_the_body_all_the_same(start_gateway: StartGateway) -> None:
    async with ExpectRefusingUpstream(201) as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=30)
        async with nothing_left_running():
            for _ in range(2):
                assert (await send(gateway, "/proxy", form(file(random_bytes(3_000_000))))).status == 201
        asked, *others = upstream.exchanges
        assert (asked.body, [other.complete for other in others]) == (b"", [True, True])  # and is remembered


@pytest.mark.parametrize("when", [True, False, "reused"])
def test_who_never_asks_does_not_ask_again_either(when: Any) -> None:
    head = RequestHead(url="http://a/", content_type="", length=1, on_new_connection=True)
    body = LentBody(LentConnection(), head, Expecting(when=when), Taught())
    assert body.is_asked_for == (when is not False)


async def test_a_destination_that_dies_at_the_question_costs_no_byte_and_another_gets_all(
    start_gateway: StartGateway,
) -> None:
    body = form(file(random_bytes(3_000_000)))
    async with DyingUpstream() as dying, ContinuingUpstream() as upstream:
        gateway = await relay(
            start_gateway,
            dying.url,
            upstream.url,
            expect_continue=True,
            expect_seconds=30,
            replay_bytes=0,
            length="passthrough",
        )
        async with nothing_left_running():
            assert (await send(gateway, "/proxy", body)).status == 200
        assert dying.exchanges[0].body == b""
        assert upstream.whole_bodies == [body]


async def test_one_that_wants_a_length_says_so_before_a_byte_was_sent(start_gateway: StartGateway) -> None:
    async with LengthDemandingUpstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=0.3, replay_bytes=0)
        assert (await send(gateway, "/proxy", form(file(random_bytes(3_000_000))))).status == 200
        assert upstream.exchanges[0].body == b""
        assert len(upstream.whole_bodies) == 1


async def test_nothing_of_ours_is_left_when_the_client_goes_while_we_ask(start_gateway: StartGateway) -> None:
    async with Upstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, expect_continue=True, expect_seconds=30)
        body = form(file(random_bytes(100_000)))
        async with nothing_left_running():
            async with Client(gateway.port) as client:
                await client.send(head("/proxy", content_length=len(body)) + body[:-10])
                await eventually(lambda: bool(upstream.exchanges))
                client.reset()
            await eventually(lambda: upstream.exchanges[0].lost)
        assert upstream.exchanges[0].body == b""


# -- what is left


@BOTH_KINDS
@pytest.mark.parametrize("why", ["write_seconds", "total_seconds", "the gateway stops"])
async def test_a_connection_to_somebody_who_does_not_read_is_closed_all_the_same(
    start_gateway: StartGateway, path: str, why: str
) -> None:
    """A mere close would wait for ever until what was written is read."""
    body = form(file(random_bytes(32 << 20)))
    async with DeafUpstream() as upstream:
        gateway = await relay(start_gateway, upstream.url, **({why: 0.5} if "_" in why else {}))
        before = len(os.listdir("/proc/self/fd"))
        async with nothing_left_running():
            async with Client(gateway.port) as client:
                await client.send(head(path, content_length=len(body)))
                with suppress(ConnectionError):
                    await client.send_for(1, body[:1_000_000])
                if "_" not in why:
                    await gateway.runner.cleanup()
            await eventually(lambda: gateway.services.gate.in_flight == 0)
        # what is left is the upstream's own
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + len(upstream.exchanges))


@pytest.mark.sockets
async def test_a_connection_that_goes_with_the_last_byte_is_told_once_and_logged_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """aiohttp then fails to write the last chunk, in a task that nobody awaits."""
    async with MuteUpstream() as upstream, ClientSession(request_class=StreamingRequest) as session:
        exchange = Exchange("api", session, RequestHead(url=upstream.url, content_type="a/b", length=None), Clocks())
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(_broken(exchange))
            await exchange.connection.write(b"data")
            await eventually(lambda: bool(upstream.exchanges))
            await exchange.end(b"")
            exchange.connection.drop()
        assert isinstance(answering.result(), SinkFault)
        exchange.abort()
        del exchange, answering
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
    assert caplog.records == []


async def _broken(exchange: Exchange) -> Exception:
    try:
        await exchange.answer()
    except Broken as broken:
        return broken.error
    raise AssertionError("it ought to have broken")
