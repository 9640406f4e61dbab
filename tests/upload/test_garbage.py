"""What an upload held in memory goes with it, at once: not with the next run of the cycle collector, some day."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

import pytest
from aiohttp import web

from gateway.concurrency.pipe import Pipe
from gateway.sinks.disk.delivery import DiskDelivery
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.upload.flow_run import Passage
from gateway.upload.lanes import Lane
from gateway.upload.pump import Pump
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import VanishingClient, ask, eventually, file, form, head, random_bytes
from tests.support.doubles import RefusingUpstream

HOLDERS = (Pump, Lane, Pipe, Passage, Outbound, DiskDelivery)
BODY = form(file(random_bytes(300_000)), file(b"small"), file(random_bytes(700_000)))
ROUTES = [
    {"path": "/upload", "parts": [{"sinks": ["disk", "api"]}]},
    {"path": "/flows", "parts": [{"flows": ["sniff", "gzip"], "sinks": ["disk"]}]},
    {"path": "/each", "keep": "each", "parts": [{"sinks": ["disk"]}]},
]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held_bytes() -> int:
    """What is reachable from what is left: all of it, but for what lies in modules, classes and running code."""
    seen: set[int] = set()
    pending: list[object] = [one for one in gc.get_objects() if isinstance(one, HOLDERS)]
    total = 0
    while pending:
        one = pending.pop()
        if id(one) in seen or isinstance(one, (ModuleType, type, FunctionType, CodeType, asyncio.AbstractEventLoop)):
            continue
        seen.add(id(one))
        if isinstance(one, bytes):
            total += len(one)
        elif not isinstance(one, web.Application):
            pending += gc.get_referents(one)
    return total


def left() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, HOLDERS))


async def at_rest(gateway: RunningGateway) -> None:
    await eventually(lambda: not gateway.services.requests)
    await asyncio.sleep(0.1)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("target", ["/upload", "/proxy", "/flows", "/each"])
async def test_an_upload_that_succeeds_leaves_no_garbage(
    start_gateway: StartGateway, start_destination: StartDestination, target: str
) -> None:
    gateway = await start_gateway(api=(await start_destination()).url, routes=ROUTES)
    for _ in range(3):
        assert (await ask(gateway.port, target, "POST", BODY)).status in (200, 201)
    await at_rest(gateway)
    assert left() == {}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("target", ["/upload", "/proxy", "/flows", "/each"])
async def test_an_upload_that_is_cut_off_holds_no_bytes(
    start_gateway: StartGateway, start_destination: StartDestination, target: str
) -> None:
    gateway = await start_gateway(api=(await start_destination()).url, routes=ROUTES)
    for cut in (100_000, 500_000, len(BODY) - 10):
        async with VanishingClient(gateway.port) as client:
            await client.send(head(target, content_length=len(BODY)))
            await client.vanish_after(BODY[:cut], "fin")
        await at_rest(gateway)
    assert held_bytes() < 64_000  # tasks that were cancelled leave a circle or two, but no bytes in it


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("target", ["/upload", "/proxy"])
async def test_an_upload_that_a_destination_refuses_leaves_no_garbage(start_gateway: StartGateway, target: str) -> None:
    async with RefusingUpstream(413, b"no", after=10) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=ROUTES)
        for _ in range(3):
            assert (await ask(gateway.port, target, "POST", BODY)).status in (413, 502)
        await at_rest(gateway)
        assert left() == {}
