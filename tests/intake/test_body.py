"""The body's clocks and limits over real sockets: they run while the client is waited for, and only then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from gateway.intake import body as body_module
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import (
    Answer,
    Client,
    DribblingClient,
    SilentClient,
    VanishingClient,
    ask,
    chunked,
    eventually,
    file,
    form,
    head,
    random_bytes,
)

BODY = form(file(b"abc" * 100))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a client does wrong is no error of ours, and no traceback."""
    caplog.set_level(logging.INFO)
    yield
    loud = [(r.name, r.getMessage()) for r in caplog.get_records("call") if r.levelno > logging.INFO or r.exc_info]
    assert loud == []


def _is_stalled(answer: Answer, limit: float) -> None:
    document = answer.json()
    assert (answer.status, document["type"], document["limit"]) == (408, "/problems/stalled", limit)
    assert answer.headers["connection"] == "close"


async def _kept_nothing(gateway: RunningGateway) -> None:
    await eventually(lambda: not gateway.services.requests)
    assert gateway.stored() == []
    assert gateway.services.gate.in_flight == 0
    answer = await ask(gateway.port, "/upload", "POST", BODY)
    assert answer.status == 201


class TestIdle:
    @pytest.mark.parametrize("cut", [0, 1, 60, len(BODY) - 1])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_client_that_falls_silent_is_told_so_and_nothing_is_kept(
        self, start_gateway: StartGateway, cut: int, framing: str
    ) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 0.3})
        if framing == "length":
            prefix = head(content_length=len(BODY)) + BODY[:cut]
        else:
            prefix = head(transfer_encoding="chunked") + chunked(BODY[:cut] + b"xx")[: -5 - 3]
        began = time.monotonic()
        async with SilentClient(gateway.port) as client:
            _is_stalled(await client.fall_silent_after(prefix), 0.3)
            assert time.monotonic() - began >= 0.3
        await _kept_nothing(gateway)

    async def test_a_raw_body_has_the_same_clock(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 0.3})
        async with SilentClient(gateway.port) as client:
            request = head("/upload/a", "PUT", content_type="text/plain", content_length=100)
            _is_stalled(await client.fall_silent_after(request + b"abc"), 0.3)
        await _kept_nothing(gateway)

    async def test_a_byte_now_and_then_winds_the_clock_up_again(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 2})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(BODY)))
            for place in range(6):
                await client.send(BODY[place : place + 1])
                await asyncio.sleep(0.5)
            await client.send(BODY[6:])
            assert (await client.answer()).status == 201

    async def test_a_body_that_comes_byte_by_byte_is_taken(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        async with DribblingClient(gateway.port) as client:
            await client.send(head(content_length=len(BODY)) + BODY)
            assert (await client.answer()).status == 201
            await client.send(head(transfer_encoding="chunked") + chunked(BODY, 7))
            assert (await client.answer()).status == 201

    async def test_what_came_behind_the_closing_delimiter_does_not_stop_the_clock(
        self, start_gateway: StartGateway
    ) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 0.3})
        async with SilentClient(gateway.port) as client:
            _is_stalled(await client.fall_silent_after(head(content_length=len(BODY) + 100) + BODY), 0.3)
        await _kept_nothing(gateway)

    async def test_without_a_limit_there_is_no_clock(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 0})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(BODY)) + BODY[:50])
            await asyncio.sleep(1)
            await client.send(BODY[50:])
            assert (await client.answer()).status == 201


class TestPace:
    async def test_a_body_that_takes_too_long_in_all_is_broken_off(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"deadline_seconds": 1})
        began = time.monotonic()
        async with Client(gateway.port) as client, asyncio.TaskGroup() as group:

            async def trickle() -> None:
                await client.send(head(content_length=1 << 20) + BODY[:60])
                while True:
                    await client.send(b"x")
                    await asyncio.sleep(0.05)

            trickling = group.create_task(trickle())
            _is_stalled(await client.answer(), 1)
            trickling.cancel()
        assert 1 <= time.monotonic() - began < 20
        await _kept_nothing(gateway)

    async def test_a_body_that_comes_too_slowly_is_broken_off(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(body_module, "_RATE_SECONDS", 1.0)
        gateway = await start_gateway(limits={"min_rate_bytes": 10_000, "idle_seconds": 1})
        async with Client(gateway.port) as client, asyncio.TaskGroup() as group:

            async def trickle() -> None:
                await client.send(head(content_length=1 << 20) + BODY[:60])
                while True:
                    await client.send(b"x")
                    await asyncio.sleep(0.05)

            trickling = group.create_task(trickle())
            _is_stalled(await client.answer(), 10_000)
            trickling.cancel()
        await _kept_nothing(gateway)

    async def test_a_burst_makes_up_for_no_later_minute(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(body_module, "_RATE_SECONDS", 1.0)
        gateway = await start_gateway(limits={"min_rate_bytes": 1000})
        async with Client(gateway.port) as client, asyncio.TaskGroup() as group:

            async def trickle() -> None:
                await client.send(head(content_length=10 << 20) + file(bytes(5 << 20)))
                while True:
                    await client.send(b"x")
                    await asyncio.sleep(0.05)

            trickling = group.create_task(trickle())
            _is_stalled(await client.answer(), 1000)
            trickling.cancel()
        await _kept_nothing(gateway)

    async def test_a_body_that_comes_fast_enough_is_not(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(body_module, "_RATE_SECONDS", 1.0)
        gateway = await start_gateway(limits={"min_rate_bytes": 1000, "idle_seconds": 1})
        body = form(file(random_bytes(40_000)))
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(body)))
            for start in range(0, len(body), 2000):
                await client.send(body[start : start + 2000])
                await asyncio.sleep(0.1)
            assert (await client.answer()).status == 201

    @pytest.mark.parametrize("limits", [{"idle_seconds": 0.3}, {"deadline_seconds": 1}, {"min_rate_bytes": 20 << 20}])
    async def test_the_clocks_stand_still_while_a_destination_is_slow(
        self,
        start_gateway: StartGateway,
        start_destination: StartDestination,
        limits: dict[str, float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(body_module, "_RATE_SECONDS", 1.0)
        destination = await start_destination()
        gateway = await start_gateway(api=f"{destination.url}/upload", limits={"idle_seconds": 1, **limits})
        body = form(file(random_bytes(24 << 20)))
        began = time.monotonic()
        async with Client(gateway.port) as client:
            await client.send(head(f"/proxy?rate_bytes={8 << 20}", content_length=len(body)) + body)
            answer = await client.answer()
        assert (answer.status, answer.json()["parts"][0]["size"]) == (200, 24 << 20)
        assert time.monotonic() - began > 2

    async def test_the_clocks_stand_still_while_a_destination_thinks(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        destination = await start_destination()
        limits = {"idle_seconds": 0.3, "deadline_seconds": 0.5}
        gateway = await start_gateway(api=f"{destination.url}/upload", limits=limits)
        assert (await ask(gateway.port, "/proxy?delay_seconds=1.5", "POST", BODY)).status == 200


class TestFraming:
    @pytest.mark.parametrize("broken", [b"zz\r\nabc\r\n", b"-3\r\nabc\r\n", b"3\r\nabcdef\r\n", b"3;\x00\r\nabc\r\n"])
    @pytest.mark.parametrize("before", [b"", BODY[:60]], ids=["at once", "later"])
    async def test_broken_chunks_end_soon_without_a_fault_of_ours(
        self, start_gateway: StartGateway, broken: bytes, before: bytes
    ) -> None:
        gateway = await start_gateway(limits={"idle_seconds": 0.5})
        sound = b"%x\r\n%s\r\n" % (len(before), before) if before else b""
        async with Client(gateway.port) as client:
            await client.send(head(transfer_encoding="chunked") + sound)
            if before:
                await eventually(lambda: gateway.services.requests)
            await client.send(broken)
            answered = await client.ended(20)
        assert answered.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))  # the latter are aiohttp's own
        await _kept_nothing(gateway)

    async def test_a_chunked_body_over_the_limit_ends_in_mid_stream(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": 1 << 20})
        piece = b"%x\r\n%s\r\n" % (1 << 16, random_bytes(1 << 16))
        async with Client(gateway.port) as client:
            begin = file(b"")
            await client.send(head(transfer_encoding="chunked") + b"%x\r\n%s\r\n" % (len(begin), begin))
            for _ in range(16):
                await client.send(piece)
            answer = await client.answer()
            document = answer.json()
            assert (answer.status, document["type"], document["limit"]) == (413, "/problems/too-large", 1 << 20)
        await _kept_nothing(gateway)

    async def test_a_chunked_body_of_just_the_limit_is_taken(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": len(BODY)})
        for extra, status in ((b"", 201), (b"x", 413)):
            async with Client(gateway.port) as client:
                await client.send(head(transfer_encoding="chunked") + chunked(BODY + extra, 10))
                assert (await client.answer()).status == status

    async def test_a_declared_length_over_the_limit_is_refused_unread(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": 1000})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1001))
            assert (await client.answer()).status == 413


class TestClientGone:
    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("cut", [0, 60, len(BODY) - 1])
    async def test_a_client_that_hangs_up_is_one_line_and_no_trace(
        self, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, how: Literal["fin", "rst"], cut: int
    ) -> None:
        gateway = await start_gateway()
        async with VanishingClient(gateway.port) as client:
            await client.send(head(content_length=len(BODY)))
            await eventually(lambda: gateway.services.gate.in_flight)
            await client.vanish_after(BODY[:cut], how)
        await eventually(lambda: not gateway.services.requests)
        (line,) = [record for record in caplog.records if record.name.startswith("gateway.uploads")]
        assert (line.levelno, line.getMessage(), line.exc_info) == (logging.INFO, "upload client-gone", None)
        await _kept_nothing(gateway)
