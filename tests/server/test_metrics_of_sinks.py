"""Each metric of sinks, and of bytes on their way to them, in a run that makes it move."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, ask, eventually, file, form, head, random_bytes
from tests.support.doubles import GatedSink, HonestUpstream, LengthDemandingUpstream, closed_port
from tests.support.scrapes import by, comes_to, of, scraped

WHOLE = form(file(b"abc"))
FIRST, ALL = 600_000, 1_000_000


def _put(target: str, size: int) -> bytes:
    return head(target, "PUT", content_length=size, content_type="text/plain")


async def test_bytes_of_an_upload_in_progress_are_counted_while_they_come(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with Client(gateway.port) as client:
        await client.send(_put("/upload/a", ALL) + random_bytes(FIRST))
        await comes_to(gateway.port, "gateway_in_flight_bytes", FIRST)
        await comes_to(gateway.port, "gateway_sink_bytes_total", FIRST, sink="disk")
        samples = await scraped(gateway.port)
        assert of(samples, "gateway_received_bytes_total", route="/upload") == FIRST
        assert of(samples, "gateway_uploads_in_flight") == 1
        await client.send(random_bytes(ALL - FIRST))
        assert (await client.answer()).status == 201
    await eventually(lambda: not gateway.services.requests)
    samples = await scraped(gateway.port)
    assert of(samples, "gateway_in_flight_bytes") == of(samples, "gateway_uploads_in_flight") == 0
    assert of(samples, "gateway_received_bytes_total", route="/upload") == ALL
    assert of(samples, "gateway_sink_bytes_total", sink="disk") == ALL


async def test_bytes_of_an_upload_that_failed_have_come_and_gone_all_the_same(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"max_body_bytes": FIRST})
    async with Client(gateway.port) as client:
        await client.send(head("/upload/a", "PUT", transfer_encoding="chunked", content_type="text/plain"))
        await client.send(b"%x\r\n%b\r\n" % (FIRST, random_bytes(FIRST)))
        await comes_to(gateway.port, "gateway_sink_bytes_total", FIRST, sink="disk")
        await client.send(b"1\r\na\r\n")
        assert (await client.answer()).status == 413
    await eventually(lambda: not gateway.services.requests)
    samples = await scraped(gateway.port)
    assert of(samples, "gateway_received_bytes_total", route="/upload") == FIRST + 1
    assert of(samples, "gateway_sink_bytes_total", sink="disk") == FIRST


@pytest.mark.parametrize("mode", ["required", "best_effort"])
async def test_bytes_wait_while_a_sink_takes_none_and_no_longer(start_gateway: StartGateway, mode: str) -> None:
    last: Any = {"sink": "gated", "mode": mode, "lag_bytes": 8 << 20} if mode == "best_effort" else "gated"
    gateway = await start_gateway(
        sinks={"gated": {"type": "tests.support.doubles:GatedSink"}},
        routes=[{"path": "/in", "parts": [{"sinks": ["disk", last]}]}],
    )
    gated = gateway.services.sinks["gated"]
    assert isinstance(gated, GatedSink)
    assert of(await scraped(gateway.port), "gateway_sink_waiting_bytes", sink="gated") == 0
    async with Client(gateway.port) as client:
        await client.send(_put("/in/a", ALL) + random_bytes(FIRST))
        beside = 1024 if mode == "best_effort" else 0  # what a part costs there, which counts towards `lag_bytes`
        await comes_to(gateway.port, "gateway_sink_waiting_bytes", FIRST + beside, sink="gated")
        await comes_to(gateway.port, "gateway_sink_waiting_bytes", 0, sink="disk")
        gated.gate.set()
        await comes_to(gateway.port, "gateway_sink_waiting_bytes", beside, sink="gated")
        await client.send(random_bytes(ALL - FIRST))
        assert (await client.answer()).status == 201
    await comes_to(gateway.port, "gateway_sink_waiting_bytes", 0, sink="gated")


async def test_requests_are_made_again_for_a_reason(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as good, LengthDemandingUpstream() as wants_length:
        failing = {"urls": [closed_port(), good.url], "failures_to_open": 0}
        sinks: dict[str, dict[str, Any]] = {
            "failing": failing,
            "demanding": {"urls": [wants_length.url]},
            "steady": {"urls": [good.url]},
        }
        sinks = {name: {"type": "relay", **sink} for name, sink in sinks.items()}
        routes = [{"path": f"/{name}", "parts": [{"sinks": [name]}]} for name in sinks]
        gateway = await start_gateway(sinks=sinks, routes=routes)
        for name in sinks:
            for _ in range(4):
                assert (await ask(gateway.port, f"/{name}", "POST", WHOLE)).status == 201
        retries = by(await scraped(gateway.port), "gateway_sink_retries_total", "sink", "reason")
    # every other upload begins at the dead one; who has said once that it wants a length is asked no other way
    assert retries == {("failing", "sink-unavailable"): 2, ("demanding", "length-wanted"): 1}


async def test_a_request_that_no_other_destination_is_left_for_is_none_that_is_made_again(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(api=closed_port())
    assert (await ask(gateway.port, "/proxy", "POST", WHOLE)).status == 503
    assert by(await scraped(gateway.port), "gateway_sink_retries_total", "sink", "reason") == {}


async def test_a_destinations_first_byte_is_timed_from_our_last(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=f"{destination.url}/upload")
    assert (await ask(gateway.port, "/proxy?delay_seconds=0.5", "POST", WHOLE)).status == 200
    assert (await ask(gateway.port, "/proxy?status=503", "POST", WHOLE)).status == 503
    samples = await scraped(gateway.port)
    assert of(samples, "gateway_destination_first_byte_seconds_count", sink="api") == 2
    assert 0.5 <= of(samples, "gateway_destination_first_byte_seconds_sum", sink="api") < 10


async def test_a_clients_first_byte_is_timed_from_letting_it_in(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(WHOLE)))
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        await asyncio.sleep(0.5)
        await client.send(WHOLE)
        assert (await client.answer()).status == 201
    samples = await scraped(gateway.port)
    assert of(samples, "gateway_upload_first_byte_seconds_count", route="/upload") == 1
    assert 0.4 < of(samples, "gateway_upload_first_byte_seconds_sum", route="/upload") < 10


class TestStoreErrors:
    async def test_a_full_disk(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(sinks={"disk": {"min_free_bytes": 1 << 60}})
        for _ in range(2):
            assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 507
        errors = by(await scraped(gateway.port), "gateway_store_errors_total", "sink", "reason")
        assert errors == {("disk", "sink-full"): 2}

    async def test_a_disk_that_is_gone_and_comes_back(self, start_gateway: StartGateway, tmp_path: Path) -> None:
        gateway = await start_gateway()
        gateway.root.rmdir()
        gateway.root.write_bytes(b"")
        assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 503
        gateway.root.unlink()
        assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 201
        errors = by(await scraped(gateway.port), "gateway_store_errors_total", "sink", "reason")
        assert errors == {("disk", "sink-unavailable"): 1}

    async def test_a_bucket_that_refuses_uploads_and_reads(
        self, start_gateway: StartGateway, start_destination: StartDestination, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refuse(request: web.Request) -> web.Response:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")

        app = web.Application()
        app.router.add_route("*", "/{key:.*}", refuse)
        monkeypatch.setenv("AWS_ENDPOINT_URL", (await start_destination(app)).url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "nobody")
        gateway = await start_gateway(
            sinks={"bucket": {"type": "objects", "url": "s3://bucket"}},
            routes=[{"path": "/in", "parts": [{"sinks": ["bucket"]}]}],
        )
        assert (await ask(gateway.port, "/in", "POST", WHOLE)).status == 502
        uploaded = by(await scraped(gateway.port), "gateway_store_errors_total", "sink", "reason")
        assert uploaded["bucket", "sink-refused"] >= 1  # it is asked to remove what it may have, too
        assert (await ask(gateway.port, f"/uploads/0{'0' * 25}")).status == 502
        read = by(await scraped(gateway.port), "gateway_store_errors_total", "sink", "reason")
        assert read == {("bucket", "sink-refused"): uploaded["bucket", "sink-refused"] + 1}


async def test_a_sink_that_is_dropped_is_counted_with_the_reason(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"broken": {"type": "tests.support.doubles:FailingSink", "errno": 5, "name": "broken"}},
        routes=[{"path": "/in", "parts": [{"sinks": ["disk", {"sink": "broken", "mode": "best_effort"}]}]}],
    )
    for _ in range(3):
        assert (await ask(gateway.port, "/in", "POST", WHOLE)).status == 201
    dropped = by(await scraped(gateway.port), "gateway_sink_dropped_total", "sink", "reason")
    assert dropped == {("broken", "failed"): 3}
