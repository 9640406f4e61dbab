"""What is for operators, at a listener of its own: what is there, what is off, and that it outlasts the drain."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path

import pytest

from gateway.cli import main
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Client, ask, eventually, file, form, head
from tests.support.processes import Process, gateway_process

pytestmark = pytest.mark.sockets

BODY = form(file(b"abc" * 1000))
HALF = len(BODY) // 2
OWN = {"port": 0}


def at(gateway: RunningGateway) -> int:
    """The port of the management listener."""
    assert gateway.runner.management is not None
    port: int = gateway.runner.management.addresses[0][1]
    return port


async def status(port: int, path: str) -> int:
    selftest = path.startswith("/selftest")
    return (await ask(port, path, "POST" if selftest else "GET", b"ab" if selftest else b"")).status


PATHS = ("/metrics", "/selftest/buffering", "/healthz", "/readyz")


async def test_operators_paths_move_there_and_health_is_answered_on_both(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(management=OWN)
    assert [await status(gateway.port, path) for path in PATHS] == [404, 404, 200, 200]
    assert [await status(at(gateway), path) for path in PATHS] == [200, 200, 200, 200]
    stored = (await ask(gateway.port, "/upload", "POST", BODY)).headers["location"]
    for path in (stored, f"{stored}/archive.zip", "/download/http://127.0.0.1/"):
        assert (await ask(at(gateway), path)).status == 404
    assert (await ask(at(gateway), "/upload", "POST", BODY)).status == 404
    assert b'gateway_uploads_total{outcome="ok",route="/upload"} 1.0' in (await ask(at(gateway), "/metrics")).body
    assert (await ask(gateway.port, "/metrics/")).json()["detail"] == "there is nothing at this path"


@pytest.mark.parametrize("where", [{}, OWN])
@pytest.mark.parametrize(
    ("key", "paths"),
    [("metrics", {"/metrics"}), ("selftest", {"/selftest/buffering"}), ("readyz", {"/readyz"})],
)
async def test_each_of_them_can_be_switched_off(
    start_gateway: StartGateway, where: dict[str, int], key: str, paths: set[str]
) -> None:
    gateway = await start_gateway(management={**where, key: False})
    for port in {gateway.port, at(gateway) if where else gateway.port}:
        missing = {path for path in PATHS if await status(port, path) == 404}
        assert missing == paths | ({"/metrics", "/selftest/buffering"} if where and port == gateway.port else set())


async def test_what_is_full_of_uploads_and_clients_still_tells_its_operators(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(management=OWN, server={"max_uploads": 1, "max_connections": 1})
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(gateway.port))
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        idle = [await stack.enter_async_context(Client(gateway.port)) for _ in range(40)]
        assert len(idle) == 40
        assert [await status(at(gateway), path) for path in PATHS] == [200, 200, 200, 200]
        await client.send(BODY[HALF:])
        assert (await client.answer()).status == 201


def management_port(process: Process) -> int:
    found = re.search(r"management on http://127\.0\.0\.1:(\d+)", process.log.read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_says_that_the_gateway_drains_until_the_last_upload_has_ended(tmp_path: Path, workers: int) -> None:
    config = f"server.workers = {workers}\nsinks.disk.fsync = false\nmanagement.port = 0\n"
    with gateway_process(tmp_path, config) as process:
        management = management_port(process)
        async with Client(process.port) as client, Client(management) as idle:
            await client.send(head(content_length=len(BODY)) + BODY[:HALF])
            await eventually(lambda: any((tmp_path / "uploads").iterdir()))
            await idle.send(head("/readyz", "GET", content_type=""))
            assert (await idle.answer()).status == 200
            process.terminate()
            await eventually(lambda: "draining" in process.log.read_text())
            await asyncio.sleep(0.3)
            for _ in range(10):  # whichever of the workers answers, those that are done among them
                answer = await ask(management, "/readyz")
                assert (answer.status, answer.body) == (503, b"draining\n")
            assert (await status(management, "/healthz"), await status(management, "/selftest/buffering")) == (200, 503)
            assert b"gateway_uploads_in_flight 1.0" in (await ask(management, "/metrics")).body
            with pytest.raises(ConnectionRefusedError):
                await ask(process.port, "/readyz")
            await client.send(BODY[HALF:])
            assert (await client.answer()).status == 201
            assert await asyncio.to_thread(process.wait, 20) == 0
        with pytest.raises(ConnectionRefusedError):
            await ask(management, "/readyz")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_cannot_be_had_ends_the_start_in_a_line_that_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    config = tmp_path / "my.toml"
    common = f'server.port = 0\nserver.workers = {workers}\nsinks.disk.root = "{tmp_path}/uploads"\n'
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more, said in (
            (f"management.port = {port}\n", f"('127.0.0.1', {port}): address already in use"),
            ('management.port = 0\nmanagement.host = "no.such.invalid"\n', "gateway: management.host: "),
        ):
            config.write_text(common + more)
            assert main(["serve", "--config", str(config)]) == 1
            assert said in capsys.readouterr().err.splitlines()[-1]
