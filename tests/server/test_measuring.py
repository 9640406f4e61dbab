"""What is looked at now and then: the loop, the process, connections and reads; and that it is looked at unasked."""

from __future__ import annotations

import platform
import resource
import time
from contextlib import AsyncExitStack
from importlib.metadata import version

from gateway import __version__
from tests.conftest import StartGateway
from tests.support.clients import Client, ask, eventually
from tests.support.scrapes import by, comes_to, of, scraped


async def test_a_loop_that_is_held_up_is_seen_to_be_late(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await comes_to(gateway.port, "gateway_event_loop_lag_seconds_count", lambda count: count >= 2)
    before = await scraped(gateway.port)
    time.sleep(1)  # noqa: ASYNC251 - as a flow of the user's may
    after = await comes_to(
        gateway.port,
        "gateway_event_loop_lag_seconds_sum",
        lambda lag: lag > of(before, "gateway_event_loop_lag_seconds_sum") + 0.7,
    )
    assert after < of(before, "gateway_event_loop_lag_seconds_sum") + 5


async def test_what_runs_is_told(start_gateway: StartGateway) -> None:
    samples = await scraped((await start_gateway()).port)
    runs = (__version__, platform.python_version(), version("aiohttp"))
    assert by(samples, "gateway_build_info", "version", "python", "aiohttp") == {runs: 1}


async def test_connections_are_those_that_are_open(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(7)]
        await comes_to(gateway.port, "gateway_connections", len(clients) + 1)  # and the one that asks
    await comes_to(gateway.port, "gateway_connections", 1)


async def test_those_for_operators_are_not_among_them(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(management={"port": 0})
    assert gateway.runner.management is not None
    port = gateway.runner.management.addresses[0][1]
    assert of(await scraped(port), "gateway_connections") == 0


async def test_a_process_tells_what_it_takes(start_gateway: StartGateway) -> None:
    began = time.time()
    gateway = await start_gateway()
    async with AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(Client(gateway.port))
        await comes_to(gateway.port, "gateway_process_open_fds", lambda count: count >= 100, worker="0")  # both ends
        samples = await scraped(gateway.port)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert of(samples, "gateway_process_max_fds", worker="0") == soft
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 10 << 20 < of(samples, "gateway_process_resident_memory_bytes", worker="0") <= 1.1 * most
    assert began <= of(samples, "gateway_process_start_time_seconds", worker="0") <= time.time()
    before = of(samples, "gateway_process_cpu_seconds_total", worker="0")
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    after = of(await scraped(gateway.port), "gateway_process_cpu_seconds_total", worker="0")
    assert 0.4 < after - before < 5


async def test_it_is_looked_at_each_second_whether_somebody_asks_or_not(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    looks: list[float] = []
    gateway.services.metrics.look_also(lambda: looks.append(time.monotonic()))
    await eventually(lambda: len(looks) == 3)
    assert 1.9 < looks[2] - looks[0] < 10
    assert (await ask(gateway.port, "/metrics")).status == 200
    assert len(looks) >= 4
