"""One body, several attempts: what may be sent again, what may not, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.sinks.relay.sending.destinations import Destination, Destinations
from gateway.sinks.relay.sending.exchange import Clocks, Exchange
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.sinks.relay.sending.replayable import Replayable
from gateway.sinks.relay.sending.request import RequestHead, StreamingRequest
from tests.conftest import RunningGateway, StartGateway
from tests.contract import eventually, nothing_left_running
from tests.support.clients import Answer, Client, chunked, file, form, head, random_bytes
from tests.support.doubles import (
    DeafUpstream,
    DyingUpstream,
    EarlyOkUpstream,
    HonestUpstream,
    LengthDemandingUpstream,
    MoodyUpstream,
    RefusingUpstream,
    Upstream,
    closed_port,
)

STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
BOTH_KINDS = pytest.mark.parametrize("path", ["/proxy", "/store"])
MIB = 1 << 20


async def relay(start_gateway: StartGateway, *urls: str, stall_seconds: float = 30, **sink: Any) -> RunningGateway:
    sinks = {"api": {"urls": list(urls), **sink}}
    return await start_gateway(sinks=sinks, routes=STORE, limits={"stall_seconds": stall_seconds})


async def send(gateway: RunningGateway, path: str, body: bytes, **headers: Any) -> Answer:
    async with Client(gateway.port) as client:
        await client.send(head(path, content_length=len(body), **headers) + body)
        return await client.answer()


def kind(answer: Answer) -> str:
    return str(answer.json()["type"].rpartition("/")[2])


class DyingAtItsEndUpstream(Upstream):
    """Reads the whole request, and resets the connection in place of an answer."""

    def received(self, exchange: Any) -> None:
        if exchange.complete and not exchange.transport.is_closing():
            exchange.reset()


# -- the show of the issue


@pytest.mark.parametrize("length", ["chunked", "passthrough"])
@pytest.mark.parametrize("replay_bytes", [MIB, 16 * MIB], ids=["1 MiB", "all"])
async def test_of_three_destinations_one_refuses_and_one_dies_midway_and_no_upload_is_lost_without_a_word(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, replay_bytes: int, length: str
) -> None:
    """Every upload succeeds, or fails with 502 since more than the kept prefix was on its way; none arrives twice."""
    caplog.set_level(logging.INFO)
    bodies = [form(file(random_bytes(8 * MIB), f"{number}.bin")) for number in range(20)]
    async with DyingUpstream(after=512 << 10) as dying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(
            start_gateway,
            closed_port(),
            dying.url,
            upstream.url,
            replay_bytes=replay_bytes,
            failures_to_open=0,  # or the circuits would spare most uploads the trouble
            length=length,
        )
        async with nothing_left_running():
            answers = [
                answer
                for start in range(0, len(bodies), 4)
                for answer in await asyncio.gather(
                    *(send(gateway, "/proxy", body) for body in bodies[start : start + 4])
                )
            ]
        statuses = [answer.status for answer in answers]
        assert len(dying.exchanges) >= 5
        assert not dying.saw_a_whole_body
        # one copy for each that succeeded, and no two of one upload
        names = [number for number in range(20) for body in upstream.whole_bodies if b'"%d.bin"' % number in body[:300]]
        assert names == [number for number, status in enumerate(statuses) if status == 200]
    lines = [record for record in caplog.records if record.name == "gateway.uploads"]
    failures = [vars(line) for line in lines if vars(line)["outcome"] != "ok"]
    assert len(failures) == sum(status != 200 for status in statuses)
    if replay_bytes > 8 * MIB + 1000:
        assert statuses == [200] * 20
    else:
        assert set(statuses) == {200, 502}
        for failure, problem in zip(failures, [a.json() for a in answers if a.status == 502], strict=True):
            assert failure["sent_bytes"] > failure["replay_bytes"] == MIB
            assert problem["sent_bytes"] > problem["replay_bytes"] == MIB


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_mood_destinations_are_in_no_upload_arrives_twice_and_none_hangs(
    start_gateway: StartGateway, seed: int
) -> None:
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(MoodyUpstream(chance)) for _ in range(3)]
        gateway = await relay(
            start_gateway,
            *(upstream.url for upstream in upstreams),
            closed_port(),
            length=["chunked", "passthrough", "spool", ["passthrough", "spool"]][seed],
            replay_bytes=chance.choice([100_000, MIB, 8 * MIB]),
            failures_to_open=chance.choice([0, 1, 3]),
            open_seconds=0.2,
            expect_continue=chance.random() < 0.5,
            expect_seconds=0.05,
        )

        async def one(number: int) -> int:
            size = chance.choice([0, 10, 100_000, 600_000, 3_000_000])
            body = form(file(random_bytes(size), f"n{number}.bin"), file(b"x"))
            async with Client(gateway.port) as client:
                with suppress(ConnectionError):  # it may be answered, and cut off, before it has sent everything
                    await client.send(head("/proxy", transfer_encoding="chunked") + chunked(body, 100_000))
                try:
                    return (await client.answer()).status
                except ConnectionError:
                    return 0

        async with nothing_left_running():
            statuses: list[int] = []
            for start in range(0, 40, 5):
                statuses += await asyncio.gather(*(one(number) for number in range(start, start + 5)))
        for number, status in enumerate(statuses):
            copies = [
                exchange
                for upstream in upstreams
                for exchange in upstream.exchanges
                if b'"n%d.bin"' % number in exchange.body[:300] and exchange.complete
                if not upstream.refused_unread(exchange)
            ]
            assert len(copies) <= 1
            assert status in (0, 200, 411, 413, 502, 503)
            assert status != 200 or copies
        destinations = gateway.services.sinks["api"].sender.destinations  # type: ignore[attr-defined]
        assert [(one.busy, one.probe) for one in destinations.all] == [(0, None)] * 4


# -- what another destination gets


@BOTH_KINDS
@pytest.mark.parametrize("replay_bytes", [0, MIB])
async def test_a_destination_that_refuses_connections_costs_no_upload(
    start_gateway: StartGateway, path: str, replay_bytes: int
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, closed_port(), closed_port(), upstream.url, replay_bytes=replay_bytes)
        async with nothing_left_running():
            for size in (10, 3 * MIB, 0):
                assert (await send(gateway, path, form(file(random_bytes(size))))).status in (200, 201)
        assert len(upstream.whole_bodies) == 3


@BOTH_KINDS
async def test_when_nobody_can_be_reached_the_sink_is_unavailable(start_gateway: StartGateway, path: str) -> None:
    gateway = await relay(start_gateway, closed_port(), closed_port(), closed_port())
    async with nothing_left_running():
        for _ in range(5):  # more than open a circuit
            answer = await send(gateway, path, form(file(b"x")))
            assert (answer.status, kind(answer), answer.json()["sink"]) == (503, "sink-unavailable", "api")


@BOTH_KINDS
@pytest.mark.parametrize("after", [0, 300_000])
async def test_a_prefix_that_is_kept_whole_is_sent_again(start_gateway: StartGateway, path: str, after: int) -> None:
    body = form(file(b"a" * 10), file(random_bytes(900_000)), file(b"b"))
    async with DyingUpstream(after=after) as dying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, dying.url, upstream.url, length="passthrough")
        async with nothing_left_running():
            assert (await send(gateway, path, body)).status in (200, 201)
        assert upstream.whole_bodies == [body]
        assert len(dying.exchanges) == 1


async def test_a_client_that_pauses_meanwhile_finds_its_prefix_at_the_other_destination(
    start_gateway: StartGateway,
) -> None:
    body = form(file(random_bytes(600_000)))
    async with Upstream() as first, HonestUpstream(200, b"{}") as second:
        gateway = await relay(start_gateway, first.url, second.url, length="passthrough")
        async with nothing_left_running(), Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=len(body)) + body[:300_000])
            await eventually(lambda: bool(first.exchanges) and len(first.exchanges[0].body) > 100_000)
            first.exchanges[0].reset()
            await eventually(lambda: bool(second.exchanges))
            await client.send(body[300_000:])
            assert (await client.answer()).status == 200
        assert second.whole_bodies == [body]


async def test_a_destination_that_does_not_read_is_left_for_another(start_gateway: StartGateway) -> None:
    body = form(file(random_bytes(12 * MIB)))
    async with DeafUpstream() as deaf, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, deaf.url, upstream.url, write_seconds=0.5, replay_bytes=16 * MIB)
        async with nothing_left_running():
            assert (await send(gateway, "/proxy", body)).status == 200
        assert len(upstream.whole_bodies) == 1
        await eventually(lambda: gateway.services.gate.in_flight == 0)


# -- what another destination does not get


@BOTH_KINDS
async def test_without_a_kept_prefix_the_first_byte_binds(start_gateway: StartGateway, path: str) -> None:
    async with DyingUpstream() as dying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, dying.url, upstream.url, replay_bytes=0)
        answer = await send(gateway, path, form(file(random_bytes(3 * MIB))))
        assert (answer.status, kind(answer)) == (502, "sink-refused")
        assert answer.json()["sent_bytes"] > answer.json()["replay_bytes"] == 0
        assert upstream.exchanges == []


@BOTH_KINDS
@pytest.mark.parametrize("length", ["chunked", "passthrough", "spool"])
async def test_after_the_closing_delimiter_there_is_no_other_attempt(
    start_gateway: StartGateway, path: str, length: str
) -> None:
    async with DyingAtItsEndUpstream() as dying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, dying.url, upstream.url, length=length)
        async with nothing_left_running():
            answer = await send(gateway, path, form(file(b"small")))
        assert (answer.status, kind(answer)) == (502, "sink-refused")
        assert len(dying.whole_bodies) == 1
        assert upstream.exchanges == []


async def test_a_destination_that_does_not_answer_the_whole_body_is_not_left_for_another(
    start_gateway: StartGateway,
) -> None:
    async with Upstream() as mute, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, mute.url, upstream.url, first_byte_seconds=0.3)
        answer = await send(gateway, "/proxy", form(file(b"small")))
        assert (answer.status, answer.json()["clock"], answer.json()["may_have_acted"]) == (504, "first_byte", True)
        assert upstream.exchanges == []


@pytest.mark.parametrize("status", [401, 413, 500, 503])
async def test_an_answer_is_an_answer_and_no_reason_to_ask_another(start_gateway: StartGateway, status: int) -> None:
    async with RefusingUpstream(status, b"{}") as refusing, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, refusing.url, upstream.url)
        assert (await send(gateway, "/proxy", form(file(random_bytes(MIB))))).status == status
        assert upstream.exchanges == []


async def test_an_early_yes_that_is_a_lie_is_no_reason_either(start_gateway: StartGateway) -> None:
    async with EarlyOkUpstream(200, complete=True) as lying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, lying.url, upstream.url)
        body = form(file(random_bytes(4 * MIB)))
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=len(body)) + body[:500_000])
            answer = await client.answer()
        assert (answer.status, answer.json()["sink_status"]) == (502, 200)
        assert upstream.exchanges == []


async def test_whoever_wants_a_length_is_not_sent_chunks_after_another_failed(start_gateway: StartGateway) -> None:
    async with DyingUpstream() as dying, LengthDemandingUpstream() as demanding:
        gateway = await relay(start_gateway, dying.url, demanding.url, failures_to_open=0)
        async with nothing_left_running():
            for _ in range(4):
                assert (await send(gateway, "/proxy", form(file(random_bytes(500_000))))).status == 200
        assert [exchange.length is None for exchange in demanding.exchanges] == [True, False, False, False, False]
        assert len(demanding.whole_bodies) == 4


@pytest.mark.sockets
async def test_a_pooled_connection_that_had_gone_stale_is_no_failure_of_its_destination() -> None:
    class Closing(asyncio.Protocol):
        def __init__(self, exchange: Any) -> None:
            self._exchange = exchange

        def data_received(self, data: bytes) -> None:
            self._exchange.reset()

    class Forgetting(HonestUpstream):
        """Resets a connection at its second request."""

        def received(self, exchange: Any) -> None:
            super().received(exchange)
            if exchange.answered:
                exchange.transport.set_protocol(Closing(exchange))

    async with Forgetting(200, b"{}") as upstream, ClientSession(request_class=StreamingRequest) as session:
        destinations = Destinations([upstream.url])

        def exchange(one: Destination, length: int | None, _: bool) -> Exchange:
            return Exchange("api", session, RequestHead(url=one.url, content_type="text/x", length=length), Clocks())

        for number in range(2):
            outbound = Outbound(
                "api",
                destinations,
                exchange,
                length=100,
                replayable=Replayable(MIB, lambda: pytest.fail("nothing is to be spooled"), is_spooled=False),
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(outbound.run())
                await outbound.put(b"x" * 100)
                await outbound.pass_on()
                await eventually(lambda: len(upstream.exchanges) > number)  # noqa: B023 - awaited at once
                response = await outbound.finish(b"")
            assert await response.read() == b"{}"
            await outbound.end()
            assert len(upstream.exchanges) == 1 + number
        assert destinations.all[0].failures == 0
    assert [len(body) for body in upstream.whole_bodies] == [100, 100]


# -- health


async def test_a_destination_that_fails_again_and_again_is_passed_over_until_its_time_has_come(
    start_gateway: StartGateway,
) -> None:
    async with DyingUpstream() as dying, HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, dying.url, upstream.url, failures_to_open=2, open_seconds=1)

        async def several(count: int) -> int:
            before = len(dying.exchanges)
            for _ in range(count):
                assert (await send(gateway, "/proxy", form(file(b"x" * 1000)))).status == 200
            return len(dying.exchanges) - before

        async with nothing_left_running():
            await several(4)
            opened = len(dying.exchanges)
            assert opened == 2
            await several(6)
            assert len(dying.exchanges) <= opened + 1  # one, if this took a second
            await asyncio.sleep(1.1)
            assert await several(6) == 1


async def test_uploads_go_to_whoever_has_the_fewest(start_gateway: StartGateway) -> None:
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(HonestUpstream(200, b"{}")) for _ in range(3)]
        gateway = await relay(start_gateway, *(upstream.url for upstream in upstreams))
        body = form(file(b"x" * 200_000))
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(7)]
        for client in clients:
            await client.send(head("/proxy", content_length=len(body)) + body[:-10])
        await eventually(lambda: sum(len(upstream.exchanges) for upstream in upstreams) == 7)
        assert sorted(len(upstream.exchanges) for upstream in upstreams) == [2, 2, 3]
        for client in clients:
            await client.send(body[-10:])
            assert (await client.answer()).status == 200
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        destinations = gateway.services.sinks["api"].sender.destinations  # type: ignore[attr-defined]
        assert [one.busy for one in destinations.all] == [0, 0, 0]
