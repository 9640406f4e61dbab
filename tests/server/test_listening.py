from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
from collections.abc import AsyncIterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gateway.server.binding import ActivatedListener, bound_sockets
from gateway.server.listening import Listener
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import SECONDS, Client, ask, eventually, file, form, head, random_bytes
from tests.support.processes import Process, gateway_process, gateway_short_of_descriptors

pytestmark = pytest.mark.sockets

needs_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
RESERVE = 32
HEALTH = head("/healthz", "GET", content_type="")
BODY = form(file(random_bytes(300_000)))


def lines_of(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]


@contextlib.asynccontextmanager
async def idle(port: int, number: int) -> AsyncIterator[list[Client]]:
    """Connections on which nothing is said."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(port)) for _ in range(number)]


async def connected(gateway: RunningGateway, number: int) -> None:
    assert gateway.runner.server is not None
    server = gateway.runner.server
    await eventually(lambda: len(server.connections) == number)


class TestMaxConnections:
    async def test_beyond_the_limit_health_is_answered_and_all_else_with_503_and_then_it_is_closed(
        self, start_gateway: StartGateway
    ) -> None:
        gateway = await start_gateway(server={"max_connections": 4})
        async with idle(gateway.port, 4):
            await connected(gateway, 4)
            for target in ("/healthz", "/readyz", "/healthz?probe=1"):
                async with Client(gateway.port) as client:
                    await client.send(head(target, "GET", content_type=""))
                    answer = await client.answer()
                    assert (answer.status, answer.headers["connection"]) == (200, "close")
                    assert await client.ended() == b""
            for method, target in (("GET", "/metrics"), ("POST", "/upload"), ("GET", "/uploads/x"), ("GET", "/%68/x")):
                async with Client(gateway.port) as client:
                    await client.send(head(target, method, content_length=10) + b"x" * 10)
                    answer = await client.answer()
                    assert (answer.status, answer.headers["connection"]) == (503, "close")
                    assert answer.json()["type"] == "/problems/busy"
                    assert int(answer.headers["retry-after"]) > 0
            assert gateway.stored() == []

    async def test_one_that_came_then_is_served_when_others_have_ended(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_connections": 4})
        async with contextlib.AsyncExitStack() as stack:
            async with idle(gateway.port, 4):
                await connected(gateway, 4)
                late = await stack.enter_async_context(Client(gateway.port))
                await connected(gateway, 5)
            await connected(gateway, 1)
            for _ in range(2):  # it is one like any other
                await late.send(head("/upload", content_length=len(BODY)) + BODY)
                assert (await late.answer()).status == 201

    async def test_those_that_are_served_are_not_refused_when_more_come(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_connections": 4})
        async with idle(gateway.port, 4) as clients, idle(gateway.port, RESERVE):
            await connected(gateway, 4 + RESERVE)
            for client in clients:
                await client.send(head("/upload", content_length=len(BODY)) + BODY)
                assert (await client.answer()).status == 201

    async def test_beyond_the_reserve_nothing_is_accepted_until_one_ends(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_connections": 4})
        async with idle(gateway.port, 4 + RESERVE) as clients, Client(gateway.port) as waiting:
            await connected(gateway, 4 + RESERVE)
            await waiting.send(HEALTH)
            await asyncio.sleep(0.3)
            assert gateway.runner.server is not None
            assert len(gateway.runner.server.connections) == 4 + RESERVE
            clients[0].reset()
            assert (await asyncio.wait_for(waiting.answer(), 0.9)).status == 200  # sooner than it looks by itself

    async def test_no_limit_is_none(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_connections": 0})
        async with idle(gateway.port, 200):
            await connected(gateway, 200)
            assert (await ask(gateway.port, "/upload", "POST", BODY)).status == 201

    @pytest.mark.parametrize("event_loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
    async def test_several_workers_have_one_limit(self, tmp_path: Path, event_loop: str) -> None:
        config = f'[server]\nworkers = 2\nmax_connections = 6\nevent_loop = "{event_loop}"\n'
        with gateway_process(tmp_path, config) as process:
            async with idle(process.port, 6) as clients:
                for client in clients:
                    await client.send(HEALTH)
                    assert (await client.answer()).status == 200
                assert (await ask(process.port, "/healthz")).status == 200
                assert (await ask(process.port, "/metrics")).status == 503
            async with asyncio.timeout(SECONDS):
                while (await ask(process.port, "/metrics")).status != 200:  # noqa: ASYNC110 - no signal of that
                    await asyncio.sleep(0.01)


async def test_1100_idle_connections_where_there_are_1024_descriptors(tmp_path: Path) -> None:
    """Uploads under way complete, new clients are served once the idle ones are timed out, and the log stays short."""
    config = "server.head_seconds = 2\n"
    with gateway_short_of_descriptors(tmp_path, config, descriptors=1024) as process:
        async with contextlib.AsyncExitStack() as stack:
            uploading = [await stack.enter_async_context(Client(process.port)) for _ in range(5)]
            for client in uploading:
                await client.send(head("/upload", content_length=len(BODY)) + BODY[:1000])
            await stack.enter_async_context(idle(process.port, 1100))
            await asyncio.sleep(0.5)
            for client in uploading:
                await client.send(BODY[1000:])
                assert (await client.answer()).status == 201
            late = await asyncio.gather(*(_patient(process.port) for _ in range(5)))
            assert late == [201] * 5
        lines = lines_of(process)
        assert len(lines) < 30
        assert len([line for line in lines if "max_connections is" in line["message"]]) == 1
        assert (await ask(process.port, "/upload", "POST", BODY)).status == 201


async def _patient(port: int) -> int:
    """The status of an upload by a client that comes back when it is told to."""
    async with asyncio.timeout(20):
        for _ in count():
            if (status := (await ask(port, "/upload", "POST", BODY)).status) != 503:
                break
            await asyncio.sleep(1)
    return status


class TestDescriptors:
    async def test_that_there_are_none_left_is_a_line_a_second_and_passes(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path) as process:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            in_use = len(os.listdir(f"/proc/{process.pid}/fd"))
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (in_use + 20, hard))
            async with idle(process.port, 60):
                await asyncio.sleep(2.5)
                lines = [line for line in lines_of(process) if "has to wait" in line["message"]]
                assert 1 <= len(lines) <= 4
            # by a connection that waited for the others to end
            assert (await ask(process.port, "/healthz")).status == 200
        assert not [line for line in lines_of(process) if "traceback" in line]


class _StuckSocket(socket.socket):
    """accept fails."""

    failure = errno.EMFILE
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        raise OSError(self.failure, os.strerror(self.failure))


class TestListener:
    async def test_what_cannot_be_accepted_is_tried_once_a_second_or_when_a_connection_ends(self) -> None:
        (bound,) = await bound_sockets("127.0.0.1", 0)
        stuck = _StuckSocket(fileno=bound.detach())
        listener = Listener(stuck, lambda: True, asyncio.Protocol)
        try:
            async with Client(listener.address[1]):
                await eventually(lambda: stuck.calls == 1)
                await asyncio.sleep(0.2)
                assert stuck.calls == 1
                listener.resume()
                await eventually(lambda: stuck.calls == 2)
                await asyncio.sleep(1.1)
                assert stuck.calls == 3
        finally:
            listener.close()
            listener.resume()
        assert stuck.fileno() == -1

    async def test_a_client_that_is_gone_when_it_is_accepted_hurts_nobody(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert (await ask(gateway.port, "/healthz")).status == 200
        await connected(gateway, 0)


async def test_whoever_has_connected_is_let_in_before_the_end() -> None:
    """As many as wait with the system, which would reset them."""
    (bound,) = await bound_sockets("127.0.0.1", 0)
    accepted = 0

    def made() -> asyncio.Protocol:
        nonlocal accepted
        accepted += 1
        return asyncio.Protocol()

    may_accept: bool | None = None
    listener = Listener(bound, lambda: may_accept, made)
    clients = [socket.create_connection(listener.address) for _ in range(60)]
    await asyncio.sleep(0.1)
    assert accepted == 0
    may_accept = True
    listener.close()
    assert accepted == 60
    await asyncio.sleep(0.1)
    for client in clients:
        client.close()


async def test_what_waits_for_one_that_is_kept_is_left_to_the_next() -> None:
    kept = socket.create_server(("127.0.0.1", 0))
    accepted: list[asyncio.Protocol] = []

    def made() -> asyncio.Protocol:
        accepted.append(asyncio.Protocol())
        return accepted[-1]

    may_accept: bool | None = None
    listener = Listener(ActivatedListener(fileno=os.dup(kept.fileno())), lambda: may_accept, made)
    with kept, socket.create_connection(listener.address):
        may_accept = True
        listener.close()
        assert accepted == []
        next_one, _ = await asyncio.get_running_loop().sock_accept(kept)
        next_one.close()


async def test_a_network_that_goes_keeps_no_listener_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    (bound,) = await bound_sockets("127.0.0.1", 0)

    class GoneNetwork(socket.socket):
        """Says so to whoever accepts."""

        def accept(self) -> Any:
            raise OSError(errno.ENETDOWN, "Network is down")

    listener = Listener(GoneNetwork(fileno=bound.detach()), lambda: True, asyncio.Protocol)
    listener.close()
    assert listener._socket.fileno() < 0
