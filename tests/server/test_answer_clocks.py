"""Clients that do not take their answers: cut off within the clock, whatever the answer is; slow ones are not."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import SECONDS, Client, ask, eventually, file, form, head, random_bytes

IDLE_SECONDS = 1.0
LIMITS = {"idle_seconds": IDLE_SECONDS, "stall_seconds": 5, "min_answer_rate_bytes": 0}
MIB = 1 << 20
SIZE = 24 * MIB
"""More than the system's buffers of both sides take."""


class UnreadingConnection:
    """Asks, and reads nothing unless it is told to."""

    def __init__(self, port: int, request: bytes, receive_bytes: int = 4096) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(request)
        self.socket.setblocking(False)

    async def read(self, size: int) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, size), SECONDS)

    async def read_all(self, size: int, pause_seconds: float = 0) -> int:
        """Until the end, so many bytes at a time; how many there were."""
        count = 0
        while piece := await self.read(size):
            count += len(piece)
            await asyncio.sleep(pause_seconds)
        return count

    async def __aenter__(self) -> UnreadingConnection:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.socket.close()


async def _stored(gateway: RunningGateway, data: bytes) -> str:
    answer = await ask(gateway.port, "/upload", "POST", form(file(data)))
    assert answer.status == 201
    return answer.headers["location"]


async def _is_cut_off(gateway: RunningGateway, began: float) -> None:
    await eventually(lambda: not gateway.services.requests)
    assert time.monotonic() - began >= IDLE_SECONDS * 0.9


@pytest.mark.parametrize("target", ["/files/{id}/0/x", "{location}/archive.zip", "{location}", "/download/{remote}"])
async def test_a_client_that_takes_nothing_is_cut_off_whatever_it_asked_for(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.answers")
    limits = {**LIMITS, "max_value_bytes": 0, "max_field_bytes": 0, "max_fields_bytes": 0}
    limits["max_manifest_bytes"] = 0
    far = await start_gateway(limits={"idle_seconds": 0})
    download = {"allow": [f"{far.url}/*"], "allow_private": ["127.0.0.0/8"]}
    gateway = await start_gateway(limits=limits, download=download)
    large_field = b'--b0undary\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"x" * SIZE
    answer = await ask(gateway.port, "/upload", "POST", form(file(bytes(SIZE)), large_field))
    location = answer.headers["location"]
    remote = f"{far.url}/files{(await _stored(far, bytes(SIZE))).removeprefix('/uploads')}/0/x"
    path = target.format(id=location.rpartition("/")[2], location=location, remote=remote)
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    async with UnreadingConnection(gateway.port, request) as client:
        began = time.monotonic()
        await eventually(lambda: bool(gateway.services.requests))
        await _is_cut_off(gateway, began)
        with pytest.raises(ConnectionError):
            await client.read_all(MIB)
    assert "the client took nothing of its answer for 1 s" in caplog.messages


async def test_the_answer_of_an_upload_that_nobody_takes_gives_the_slot_back(start_gateway: StartGateway) -> None:
    limits = {**LIMITS, "max_value_bytes": 0, "max_field_bytes": 0, "max_fields_bytes": 0, "max_manifest_bytes": 0}
    gateway = await start_gateway(limits=limits)
    field = b'--b0undary\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"x" * SIZE
    body = form(field)
    async with Client(gateway.port) as client:
        await client.send(head("/upload", content_length=len(body)) + body)
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        await eventually(lambda: not gateway.services.requests)


async def test_a_client_that_reads_slowly_but_steadily_gets_all_of_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={**LIMITS, "idle_seconds": 0.5, "min_answer_rate_bytes": 1024})
    location = await _stored(gateway, data := random_bytes(8 * MIB))
    request = f"GET /files{location.removeprefix('/uploads')}/0/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    received = bytearray()
    async with UnreadingConnection(gateway.port, request.encode(), 128 << 10) as client:
        began = time.monotonic()
        while piece := await client.read(128 << 10):
            received += piece
            slowly = time.monotonic() - began < 2
            await asyncio.sleep(0.05 if slowly else 0)
    assert received.endswith(data)
    assert time.monotonic() - began > 2


async def test_a_client_that_takes_less_than_the_least_rate_is_cut_off(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.answers")
    gateway = await start_gateway(limits={**LIMITS, "min_answer_rate_bytes": 16 * MIB})
    location = await _stored(gateway, bytes(SIZE))
    request = f"GET /files{location.removeprefix('/uploads')}/0/x HTTP/1.1\r\nHost: a\r\n\r\n"
    async with UnreadingConnection(gateway.port, request.encode()) as client:
        with pytest.raises(ConnectionError):
            await client.read_all(64 << 10, 0.05)
    await eventually(lambda: not gateway.services.requests)
    assert f"the client took less than {16 * MIB} bytes/s of its answer" in caplog.messages


async def test_an_answer_that_is_slow_by_itself_and_a_connection_that_is_kept_cost_the_client_nothing(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(limits={**LIMITS, "idle_seconds": 0.2, "min_answer_rate_bytes": 1 << 30})
    async with Client(gateway.port) as client:
        for _ in range(3):
            await client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer()).status == 200
            await asyncio.sleep(0.5)


async def test_without_limits_nobody_is_cut_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={**LIMITS, "idle_seconds": 0})
    location = await _stored(gateway, bytes(SIZE))
    request = f"GET /files{location.removeprefix('/uploads')}/0/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with UnreadingConnection(gateway.port, request.encode()) as client:
        await asyncio.sleep(2 * IDLE_SECONDS)
        assert await client.read_all(MIB) > SIZE


# -- slots


@pytest.mark.parametrize("target", ["/files/{id}/0/x", "{location}/archive.zip", "{location}", "/download/{remote}"])
async def test_reads_have_slots_and_one_too_many_is_told_when_to_come_again(
    start_gateway: StartGateway, target: str
) -> None:
    far = await start_gateway()
    download = {"allow": [f"{far.url}/*"], "allow_private": ["127.0.0.0/8"]}
    gateway = await start_gateway(server={"max_reads": 2, "max_uploads": 1}, download=download)
    location = await _stored(gateway, bytes(SIZE))
    upload_id = location.rpartition("/")[2]
    request = f"GET /files/{upload_id}/0/x HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    remote = f"{far.url}/files{(await _stored(far, b'abc')).removeprefix('/uploads')}/0/x"
    path = target.format(id=upload_id, location=location, remote=remote)
    async with UnreadingConnection(gateway.port, request), UnreadingConnection(gateway.port, request):
        await eventually(lambda: gateway.services.gate.reads.in_flight == 2)
        for method in ("GET", "HEAD"):
            refused = await ask(gateway.port, path, method)
            assert (refused.status, refused.headers["retry-after"] != "") == (503, True)
        assert (await ask(gateway.port, "/upload", "POST", form(file(b"abc")))).status == 201
        assert (await ask(gateway.port, "/healthz")).status == 200
        assert (await ask(gateway.port, "/metrics")).status == 200
    await eventually(lambda: gateway.services.gate.reads.in_flight == 0)
    assert (await ask(gateway.port, path)).status == 200
