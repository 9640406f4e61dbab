"""What the client reads of destinations' answers, those that break in the middle included."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.conftest import StartDestination, StartGateway
from tests.support.clients import SECONDS, Client, chunked, eventually, file, form, head

BODY = form(file(b"abc"))


# -- a destination on a raw socket


class ScriptedDestination:
    """Reads a request to its end (`early`: its headers only), says its line, and ends as it was told to."""

    def __init__(self, script: bytes, then: Literal["close", "reset", "stall"], early: bool) -> None:
        self._script, self._then, self._early = script, then, early
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if not self._early:
                await reader.readuntil(b"--\r\n\r\n0\r\n\r\n")
            writer.write(self._script)
            await writer.drain()
            if self._then == "reset":
                # only once it was read: a RST throws away what is still on its way
                await asyncio.sleep(0.2)
                _reset(writer)
            elif self._then == "close":
                writer.close()
            else:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


Script = Callable[..., Awaitable[ScriptedDestination]]


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    started: list[ScriptedDestination] = []

    async def start(
        script: bytes, then: Literal["close", "reset", "stall"] = "close", *, early: bool = False
    ) -> ScriptedDestination:
        destination = ScriptedDestination(script, then, early)
        await destination.start()
        started.append(destination)
        return destination

    yield start
    for destination in started:
        await destination.stop()


# -- a client that looks at every byte


@dataclass
class Raw:
    """All bytes of a connection, and how it ended."""

    data: bytes
    reset: bool

    @property
    def status_line(self) -> str:
        return self.data.partition(b"\r\n")[0].decode()

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


async def _send(port: int, request: bytes) -> Raw:
    """Send a request, and read until the connection ends, one way or the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data, was_reset = b"", False
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(request)
            await writer.drain()
            while more := await reader.read(1 << 16):
                data += more
    except ConnectionError:
        was_reset = True
    finally:
        writer.transport.abort()
    return Raw(data, was_reset)


async def _post(port: int, target: str, body: bytes = BODY, *, version: str = "1.1", **headers: str) -> Raw:
    request = head(target, content_length=len(body), connection="close", **headers) + body
    return await _send(port, request.replace(b" HTTP/1.1", b" HTTP/" + version.encode(), 1))


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    """(the body, whether its last chunk was there). Raises ValueError for anything behind it."""
    body = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", data):
        size, start = int(match[1], 16), match.end()
        if size == 0:
            if data[start:] != b"\r\n":
                raise ValueError(data)
            return body, True
        body, data = body + data[start : start + size], data[start + size + 2 :]
    return body, False


# -- a destination's answer


async def test_an_answer_passes_through_without_its_hop_by_hop_headers(
    start_gateway: StartGateway, script: Script
) -> None:
    destination = await script(
        b"HTTP/1.1 207 As you like\r\nServer: theirs\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
        b"Set-Cookie: a=1; Path=/\r\nX-Twice: 1\r\nSet-Cookie: b=2\r\nX-Twice: 2\r\n"
        b"Connection: close, X-Private , x-other\r\nX-Private: 1\r\nX-OTHER: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\nTE: trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n"
        b"Content-Type: text/odd;  x=y\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"
    )
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy")
    assert answer.status_line == "HTTP/1.1 207 As you like"
    assert sorted(answer.headers) == [
        ("connection", "close"),
        ("content-encoding", "gzip"),
        ("content-length", "5"),
        ("content-type", "text/odd;  x=y"),
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("server", "theirs"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2"),
        ("via", "1.1 gateway"),
        ("x-accel-buffering", "no"),
        ("x-request-id", dict(answer.headers)["x-request-id"]),
        ("x-twice", "1"),
        ("x-twice", "2"),
    ]
    assert answer.body == b"hello"


@pytest.mark.parametrize("status", ["201 Created", "302 Found", "404 Not Found", "500 Oops", "599 What"])
async def test_an_answer_passes_through_whatever_its_status(
    start_gateway: StartGateway, script: Script, status: str
) -> None:
    destination = await script(f"HTTP/1.1 {status}\r\nLocation: /there\r\nContent-Length: 2\r\n\r\nok".encode())
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy")
    assert answer.status_line == f"HTTP/1.1 {status}"
    assert answer.all("location") == ["/there"]
    assert answer.body == b"ok"


async def test_a_chunked_answer_is_framed_anew(start_gateway: StartGateway, script: Script) -> None:
    payload = bytes(range(256)) * 1000
    header = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = chunked(payload, 777).removesuffix(b"\r\n") + b"X-Trailer: 1\r\n\r\n"
    gateway = await start_gateway(api=(await script(header + framed)).url)
    answer = await _post(gateway.port, "/proxy")
    assert answer.all("transfer-encoding") == ["chunked"]
    assert answer.all("content-length") == []
    assert _unchunked(answer.body) == (payload, True)


async def test_an_answer_that_ends_with_its_connection_is_framed(start_gateway: StartGateway, script: Script) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy")
    assert _unchunked(answer.body) == (b"until the end", True)


@pytest.mark.parametrize("status", [b"204 None", b"304 Same", b"304 Same\r\nContent-Length: 10"])
async def test_an_answer_without_a_body_stays_one(start_gateway: StartGateway, script: Script, status: bytes) -> None:
    destination = await script(b'HTTP/1.1 %s\r\nETag: "x"\r\n\r\n' % status)
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy")
    assert answer.status_line == f"HTTP/1.1 {status[:8].decode()}"
    assert answer.all("etag") == ['"x"']
    assert answer.all("transfer-encoding") == []
    assert (answer.body, answer.reset) == (b"", False)


async def test_an_http_1_0_client_gets_no_chunks_but_the_end_of_the_connection(
    start_gateway: StartGateway, script: Script
) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"a" * 100, 7))
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy", version="1.0")
    assert answer.status_line == "HTTP/1.0 200 OK"
    assert answer.all("transfer-encoding") == []
    assert (answer.body, answer.reset) == (b"a" * 100, False)


async def test_a_connection_serves_on_after_an_answer_passed_through(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    gateway = await start_gateway(api=(await start_destination()).url)
    request = head("/proxy", content_length=len(BODY)) + BODY
    answer = await _send(gateway.port, request * 2 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer.data) == [b"200"] * 3


async def test_an_early_answer_ends_the_connection_for_the_body_was_not_read(
    start_gateway: StartGateway, script: Script
) -> None:
    destination = await script(b"HTTP/1.1 413 No\r\nContent-Length: 4\r\n\r\nsize", then="stall", early=True)
    gateway = await start_gateway(api=destination.url)
    async with Client(gateway.port) as client:
        await client.send(head("/proxy", content_length=1 << 20) + file(bytes(1 << 17)))
        answer = await client.answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"size", "close")


# -- answers that break


@pytest.mark.parametrize("then", ["close", "reset", "stall"])
async def test_an_answer_that_breaks_within_its_length_stays_short_of_it(
    start_gateway: StartGateway, script: Script, then: str
) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", then)
    gateway = await start_gateway(api=destination.url, limits={"stall_seconds": 0.3})
    answer = await _post(gateway.port, "/proxy")
    assert answer.all("content-length") == ["100"]
    assert b"hello".startswith(answer.body)


@pytest.mark.parametrize(
    ("framing", "then"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "close"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "reset"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "stall"),
        # one without framing ends cleanly with "close"
        (b"X: y\r\n\r\nhello", "reset"),
        (b"X: y\r\n\r\nhello", "stall"),
    ],
    ids=["chunked-close", "chunked-reset", "chunked-stall", "unframed-reset", "unframed-stall"],
)
async def test_an_answer_that_breaks_gets_no_last_chunk(
    start_gateway: StartGateway, script: Script, framing: bytes, then: str
) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\n" + framing, then)
    gateway = await start_gateway(api=destination.url, limits={"stall_seconds": 0.3})
    answer = await _post(gateway.port, "/proxy")
    assert answer.status_line == "HTTP/1.1 200 OK"
    body, ended = _unchunked(answer.body)
    assert b"hello".startswith(body)
    assert not ended


@pytest.mark.parametrize("then", ["close", "reset", "stall"])
async def test_an_answer_that_breaks_resets_the_connection_of_an_http_1_0_client(
    start_gateway: StartGateway, script: Script, then: str
) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", then)
    gateway = await start_gateway(api=destination.url, limits={"stall_seconds": 0.3})
    assert (await _post(gateway.port, "/proxy", version="1.0")).reset


async def test_chunks_of_an_answer_that_are_malformed_break_it(start_gateway: StartGateway, script: Script) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", "stall")
    gateway = await start_gateway(api=destination.url)
    answer = await _post(gateway.port, "/proxy")
    assert not _unchunked(answer.body)[1]


async def test_chunks_that_are_malformed_in_a_later_segment_break_it_at_once(
    start_gateway: StartGateway, script: Script
) -> None:
    class LateDestination(ScriptedDestination):
        """Sends what is malformed when what was before it has been read."""

        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            await reader.readuntil(b"--\r\n\r\n0\r\n\r\n")
            for piece in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"zz\r\n"):
                await asyncio.sleep(0.1)
                writer.write(piece)
            with suppress(ConnectionError):
                await reader.read()

    destination = LateDestination(b"", "stall", early=False)
    await destination.start()
    try:
        gateway = await start_gateway(api=destination.url, limits={"stall_seconds": 0})
        async with asyncio.timeout(10):
            answer = await _post(gateway.port, "/proxy")
        assert answer.body.startswith(b"5\r\nhello")
        assert not _unchunked(answer.body)[1]
    finally:
        await destination.stop()


async def test_the_gateway_serves_on_after_answers_that_broke(start_gateway: StartGateway, script: Script) -> None:
    destination = await script(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
    gateway = await start_gateway(api=destination.url, server={"max_uploads": 1})
    for _ in range(3):
        assert (await _post(gateway.port, "/proxy")).all("content-length") == ["100"]
    assert gateway.services.gate.in_flight == 0


async def test_a_client_that_stops_reading_its_answer_does_not_hold_its_slot_for_ever(
    start_gateway: StartGateway, script: Script
) -> None:
    size = 32 << 20  # more than the kernel's buffers between the two
    destination = await script(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    gateway = await start_gateway(api=destination.url, limits={"idle_seconds": 1, "stall_seconds": 1})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    try:
        writer.write(head("/proxy", content_length=len(BODY)) + BODY)
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
        await eventually(lambda: gateway.services.gate.in_flight == 0)
    finally:
        writer.transport.abort()
