"""What /metrics counts: every upload once, by route and outcome, in the operator's words only."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

import pytest
from aiohttp import web

from gateway.server.demo_destination import receiver_app
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Client, VanishingClient, ask, eventually, file, form, head
from tests.support.doubles import closed_port
from tests.support.ports import free_port
from tests.support.scrapes import Samples, comes_to, scraped

SLOTS = ("gateway_uploads_in_flight", ())
WHOLE = form(file(b"abc"))


def _uploads(samples: Samples, route: str = "/upload") -> dict[str, float]:
    """Outcome -> count."""
    return {
        dict(labels)["outcome"]: value
        for (name, labels), value in samples.items()
        if name == "gateway_uploads_total" and dict(labels)["route"] == route
    }


async def _ended(gateway: RunningGateway) -> Samples:
    await eventually(lambda: not gateway.services.requests)
    return await scraped(gateway.port)


async def test_an_upload_is_counted_with_its_bytes_and_its_duration(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    assert (await scraped(gateway.port))[SLOTS] == 0
    for _ in range(2):
        assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 201
    samples = await scraped(gateway.port)
    route = (("route", "/upload"),)
    assert _uploads(samples) == {"ok": 2}
    assert samples["gateway_received_bytes_total", route] == 2 * len(WHOLE)
    assert samples["gateway_sink_bytes_total", (("sink", "disk"),)] == 2 * len(b"abc")
    assert samples["gateway_upload_seconds_count", route] == 2
    assert 0 < samples["gateway_upload_seconds_sum", route] < 60


async def test_an_upload_in_progress_is_in_flight_and_no_longer_when_it_ended(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(WHOLE)) + WHOLE[:-1])
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        assert (await scraped(gateway.port))[SLOTS] == 1
        await client.send(WHOLE[-1:])
        assert (await client.answer()).status == 201
    assert (await _ended(gateway))[SLOTS] == 0


async def test_refusals_and_faults_are_counted_by_their_slug(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"max_body_bytes": 4096, "max_parts": 2, "idle_seconds": 0.3})
    for body, outcome, status in (
        (form(file(bytes(5000))), "too-large", 413),
        (form(file(b""), file(b""), file(b"")), "too-many-parts", 413),
        (b"--b0undary\r\nNo header\r\n\r\n\r\n", "malformed", 400),
        (WHOLE[:-9], "truncated", 400),
    ):
        assert (await ask(gateway.port, "/upload", "POST", body)).status == status
        samples = await _ended(gateway)
        assert (_uploads(samples)[outcome], samples[SLOTS]) == (1, 0)
    answer = await ask(gateway.port, "/upload", "POST", WHOLE, content_type="multipart/mixed; boundary=b0undary")
    assert (answer.status, _uploads(await _ended(gateway))["not-multipart"]) == (415, 1)
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(WHOLE)) + WHOLE[:50])
        assert (await client.answer()).status == 408
    samples = await _ended(gateway)
    assert (_uploads(samples)["stalled"], samples[SLOTS]) == (1, 0)
    assert sum(_uploads(samples).values()) == 6


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_went_away_is_counted_as_gone(
    start_gateway: StartGateway, how: Literal["fin", "rst"]
) -> None:
    gateway = await start_gateway()
    async with VanishingClient(gateway.port) as client:
        await client.send(head(content_length=len(WHOLE)))
        await eventually(lambda: gateway.services.gate.in_flight)
        await client.vanish_after(WHOLE[:50], how)
    samples = await _ended(gateway)
    assert (_uploads(samples), samples[SLOTS]) == ({"client-gone": 1}, 0)


async def test_a_client_that_went_away_before_its_answer_is_counted_once(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with VanishingClient(gateway.port) as client:
        await client.send(head(content_length=len(WHOLE)) + WHOLE[:-1])
        await eventually(lambda: gateway.services.gate.in_flight)
        await client.vanish_after(WHOLE[-1:], "rst")  # it may be too late for the last byte, too
    samples = await _ended(gateway)
    assert (sum(_uploads(samples).values()), samples[SLOTS]) == (1, 0)
    assert set(_uploads(samples)) <= {"ok", "client-gone"}


async def test_destinations_have_their_outcomes_and_their_bytes(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=f"{destination.url}/upload", limits={"stall_seconds": 0.3})
    for query, status in (("", 200), ("?status=503", 503), ("?never_answer=1", 504), ("?die_after_bytes=1", 502)):
        assert (await ask(gateway.port, f"/proxy{query}", "POST", WHOLE)).status == status
    samples = await _ended(gateway)
    assert _uploads(samples, "/proxy") == {"ok": 1, "answered": 1, "sink-timeout": 1, "sink-refused": 1}
    assert samples["gateway_sink_bytes_total", (("sink", "api"),)] >= len(b"abc")
    assert samples[SLOTS] == 0


async def test_no_word_of_a_client_becomes_a_label(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    evil = form(file(b"abc", filename="evil", name="evil"))
    await ask(gateway.port, "/upload", "POST", evil)
    await ask(gateway.port, "/upload/evil", "PUT", b"evil", content_type="evil/evil")
    await ask(gateway.port, "/upload?evil=evil", "POST", evil, evil="evil", user_agent="evil")
    await ask(gateway.port, "/evil", "POST", evil)
    await ask(gateway.port, "/upload", "EVIL")
    await ask(gateway.port, "/upload/evil%00", "PUT", b"evil", content_type="evil/evil")
    answer = await ask(gateway.port, "/metrics")
    assert b"evil" not in answer.body.lower()
    samples = await scraped(gateway.port)
    routes = {route.path for route in gateway.services.routes}
    for _, labels in samples:
        assert dict(labels).get("route", "/upload") in routes
        assert dict(labels).get("sink", "disk") in gateway.services.sinks


def _of(samples: Samples, name: str) -> dict[tuple[str, str], float]:
    """(sink, destination) -> value."""
    found = ((dict(labels), value) for (one, labels), value in samples.items() if one == name)
    return {(labels["sink"], labels["destination"]): value for labels, value in found}


async def test_destinations_are_shown_from_the_start_by_their_numbers(start_gateway: StartGateway) -> None:
    urls = ["http://T0KEN.invalid/services?sig=hunter2", "http://127.0.0.1:1/b"]
    gateway = await start_gateway(sinks={"hooks": {"type": "relay", "urls": urls}})
    samples = await scraped(gateway.port)
    for name, value in (("up", 1), ("circuit_open", 0)):
        shown = _of(samples, f"gateway_destination_{name}")
        assert shown == {("api", "0"): value, ("hooks", "0"): value, ("hooks", "1"): value}


async def test_a_destination_is_down_while_its_circuit_is_open(start_gateway: StartGateway) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    gateway = await start_gateway(api=f"{url}/upload", sinks={"api": {"failures_to_open": 2}})

    async def known_after(status: int) -> list[float]:
        assert (await ask(gateway.port, "/proxy", "POST", WHOLE)).status == status
        samples = await scraped(gateway.port)
        return [_of(samples, f"gateway_destination_{name}")["api", "0"] for name in ("up", "circuit_open")]

    assert await known_after(503) == [1, 0]
    assert await known_after(503) == [0, 1]
    runner = web.AppRunner(receiver_app(), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        assert await known_after(200) == [1, 0]
    finally:
        await runner.cleanup()


async def test_a_destination_is_down_while_its_health_check_fails(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    status = 500

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/health", health)
    url = (await start_destination(app)).url
    gateway = await start_gateway(api=f"{url}/x", sinks={"api": {"health_path": "/health", "health_seconds": 0.05}})

    async def comes_to(expected: float) -> None:
        async with asyncio.timeout(10):
            while True:
                samples = await scraped(gateway.port)
                assert _of(samples, "gateway_destination_circuit_open")["api", "0"] == 0
                if _of(samples, "gateway_destination_up")["api", "0"] == expected:
                    return
                await asyncio.sleep(0.02)

    await comes_to(0)
    status = 204
    await comes_to(1)


async def test_each_metric_that_is_listed_moves_in_one_run(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    good = f"{(await start_destination()).url}/in"
    of_upload = {"sink": "broken", "mode": "best_effort"}
    gateway = await start_gateway(
        sinks={
            "full": {"type": "disk", "root": str(tmp_path / "full"), "min_free_bytes": 1 << 60},
            "broken": {"type": "tests.support.doubles:FailingSink", "errno": 5, "name": "broken"},
            "stuck": {"type": "tests.support.doubles:StuckSink", "name": "stuck"},
            "api": {"urls": [closed_port(), good], "failures_to_open": 1},
        },
        routes=[
            {"path": "/in", "parts": [{"sinks": ["disk", of_upload]}]},
            {"path": "/full", "parts": [{"sinks": ["full"]}]},
            {"path": "/stuck", "parts": [{"sinks": ["stuck"]}]},
        ],
        server={"max_uploads_per_address": 1},
    )
    port, large = gateway.port, form(file(bytes(24 << 20)))
    for target, status in (("/full", 507), ("/proxy", 200), ("/in", 201)):
        assert (await ask(port, target, "POST", WHOLE)).status == status
    kept = (await ask(port, "/in", "POST", large)).headers["location"]
    assert (await ask(port, "/nothing")).status == 404
    assert (await ask(port, "/download/http://127.0.0.1:1/")).status == 403
    assert (await ask(port, kept)).status == 200
    async with Client(port, receive_buffer_bytes=4096) as reading, Client(port) as sending:
        await reading.send(head(kept.replace("/uploads/", "/files/") + "/0", "GET"))
        await comes_to(port, "gateway_reads_in_flight", 1)
        assert (await ask(port, kept, "DELETE")).status == 204
        await sending.send(head("/stuck/a", "PUT", content_length=10**6, content_type="text/plain") + bytes(600_000))
        await comes_to(port, "gateway_sink_waiting_bytes", 600_000, sink="stuck")
        assert (await ask(port, "/in", "POST", WHOLE)).status == 429
        await comes_to(port, "gateway_event_loop_lag_seconds_count", lambda count: count > 0)
        samples = await scraped(port)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    moved = {re.sub("_(sum|count)$", "", name) for (name, _), value in samples.items() if value > 0}
    assert moved == listed
