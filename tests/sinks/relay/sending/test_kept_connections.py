"""Kept connections that end, or say something, just as the next upload begins: nothing is lost, or arrives twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Client, ask, file, form, head

UPLOADS = 300
LENGTHS = ("chunked", "passthrough", "known", "spool")
ROUTES = (*LENGTHS, "raw")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
STRAY = b"HTTP/1.1 403 Stray\r\nContent-Length: 5\r\n\r\nstray"
YES = b"HTTP/1.1 201 Stray\r\nContent-Length: 5\r\n\r\nstray"


class ClosingDestination:
    """Answers in threads of its own, one per connection, and goes away `stays_seconds` after each answer (None: stays),
    whatever has come meanwhile. A race that is fair: it runs beside the gateway, not in turn with it.
    """

    def __init__(
        self,
        stays_seconds: float | None = None,
        *,
        resets: bool = False,
        continues: bool = True,
        last_words: bytes = b"",
        closes: bool = True,
        at_the_question: bytes | None = None,
    ) -> None:
        self._stays_seconds = stays_seconds
        self._resets = resets
        self._question = b"HTTP/1.1 100 Continue\r\n\r\n" if continues else b""
        self._refusal = at_the_question
        self._last_words = last_words
        self._closes = closes
        self._open: set[socket.socket] = set()
        self.connections = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    @property
    def asked(self) -> int:
        return sum(b"expect: 100-continue" in one.lower() for one in self.heads)

    def __enter__(self) -> ClosingDestination:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one in (self._listener, *list(self._open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection, contextlib.suppress(OSError, EOFError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._answer(connection):
                pass
        self._open.discard(connection)

    def _answer(self, connection: socket.socket) -> bool:
        """One request. Whether there may be another one. Raises EOFError, OSError."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        self.heads.append(head)
        if b"expect: 100-continue" in head.lower():
            connection.sendall(self._question if self._refusal is None else self._refusal)
            if self._refusal is not None:
                return True
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while len(body) < int(length[1]) if length else not body.endswith(b"0\r\n\r\n"):
            body += self._more(connection)
        self.bodies.append(body)
        connection.sendall(OK)
        if self._stays_seconds is None:
            return True
        time.sleep(self._stays_seconds)
        if self._last_words:
            connection.sendall(self._last_words)
        if self._resets:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not self._closes

    def _more(self, connection: socket.socket) -> bytes:
        if data := connection.recv(1 << 16):
            return data
        raise EOFError


async def started(start_gateway: StartGateway, destination: ClosingDestination, **api: Any) -> RunningGateway:
    """A route for each length, and one that passes on whatever it is, each with connections of its own."""
    sinks = {
        length: {"type": "relay", "url": destination.url, "keepalive_seconds": 30, "length": length, **api}
        for length in LENGTHS
    }
    sinks["raw"] = {"type": "relay", "url": destination.url, "keepalive_seconds": 30, **api}
    routes = [
        {"path": f"/{name}", "kind": "opaque" if name == "raw" else "relay", "parts": [{"sinks": [name]}]}
        for name in sinks
    ]
    return await start_gateway(sinks=sinks, routes=routes)


def upload(number: int, name: str = "chunked") -> tuple[str, bytes, str]:
    """(path, body, Content-Type)"""
    marked = b"<%d>" % number
    if name in ("known", "raw"):
        return f"/{name}", marked, "application/octet-stream"
    return f"/{name}", form(file(marked)), ""


async def send_all(gateway: RunningGateway, count: int, *, at_once: int = 3, pause: float = 0) -> list[int]:
    """The statuses of so many uploads, to one route after the other, with pauses of up to so many seconds."""
    numbers = iter(range(count))
    statuses: list[int] = []

    async def work() -> None:
        async with Client(gateway.port) as client:
            for number in numbers:
                path, body, content_type = upload(number, ROUTES[number * len(ROUTES) // count])
                kind = {"content_type": content_type} if content_type else {}
                await client.send(head(path, content_length=len(body), **kind) + body)
                statuses.append((await client.answer()).status)
                await asyncio.sleep(random.uniform(0, pause))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return statuses


def arrived(destination: ClosingDestination) -> Counter[int]:
    return Counter(int(mark) for body in destination.bodies for mark in re.findall(rb"<(\d+)>", body))


@pytest.mark.parametrize("continues", [True, False], ids=["says 100", "says nothing"])
@pytest.mark.parametrize("resets", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("milliseconds", [0, 1, 2, 5])
async def test_of_300_uploads_to_one_who_closes_after_each_answer_none_is_lost_and_none_arrives_twice(
    start_gateway: StartGateway, milliseconds: int, resets: bool, continues: bool
) -> None:
    with ClosingDestination(milliseconds / 1000, resets=resets, continues=continues) as destination:
        gateway = await started(start_gateway, destination, expect_seconds=1 if continues else 0.1)
        statuses = await send_all(gateway, UPLOADS, at_once=2, pause=milliseconds / 1000 * 1.5)
        assert Counter(statuses) == {200: UPLOADS}
        assert arrived(destination) == Counter(range(UPLOADS))
        for name in ROUTES:
            (one,) = gateway.services.sinks[name].sender.destinations.all  # type: ignore[attr-defined]
            assert one.failures == 0


@pytest.mark.parametrize("last_words", [TIMEOUT, STRAY, YES, b"junk"], ids=["408", "403", "201", "junk"])
@pytest.mark.parametrize("milliseconds", [0, 1, 2, 5])
async def test_what_is_said_to_nobody_before_the_close_reaches_nobody(
    start_gateway: StartGateway, milliseconds: int, last_words: bytes
) -> None:
    with ClosingDestination(milliseconds / 1000, last_words=last_words) as destination:
        gateway = await started(start_gateway, destination)
        statuses = await send_all(gateway, UPLOADS, at_once=2, pause=milliseconds / 1000 * 1.5)
        assert Counter(statuses) == {200: UPLOADS}
        assert arrived(destination) == Counter(range(UPLOADS))


@pytest.mark.parametrize(
    "stray",
    [TIMEOUT, STRAY, OK, b"junk", b"\r\n", b"H"],
    ids=["408", "403", "200", "junk", "an empty line", "half a head"],
)
async def test_a_connection_that_something_came_on_while_it_was_idle_is_not_used_again(
    start_gateway: StartGateway, stray: bytes
) -> None:
    with ClosingDestination(0.02, last_words=stray, closes=False) as destination:
        gateway = await started(start_gateway, destination, expect_continue=False)
        for number in range(10):
            path, body, _ = upload(number)
            assert (await ask(gateway.port, path, "POST", body)).status == 200
            await asyncio.sleep(0.05)
        assert destination.connections == 10


async def test_only_on_kept_connections_is_asked_first(start_gateway: StartGateway) -> None:
    with ClosingDestination() as destination:
        gateway = await started(start_gateway, destination)
        for number in range(10):
            path, body, _ = upload(number)
            assert (await ask(gateway.port, path, "POST", body)).status == 200
        assert (destination.connections, destination.asked) == (1, 9)


@pytest.mark.parametrize(("when", "asked"), [(True, 10), (False, 0), ("reused", 9)])
async def test_what_is_configured_is_done(start_gateway: StartGateway, when: bool | str, asked: int) -> None:
    with ClosingDestination() as destination:
        gateway = await started(start_gateway, destination, expect_continue=when)
        for number in range(10):
            path, body, _ = upload(number)
            assert (await ask(gateway.port, path, "POST", body)).status == 200
        assert (destination.connections, destination.asked) == (1, asked)


async def test_who_lets_the_question_go_unanswered_once_has_no_connection_kept_any_more(
    start_gateway: StartGateway,
) -> None:
    with ClosingDestination(continues=False) as destination:
        gateway = await started(start_gateway, destination, expect_seconds=0.2)
        for number in range(10):
            path, body, _ = upload(number)
            assert (await ask(gateway.port, path, "POST", body)).status == 200
        assert destination.asked == 1
        assert destination.connections == 9
        assert sum(b"connection: close" in one.lower() for one in destination.heads) == 8


async def test_who_refuses_the_question_has_no_connection_kept_any_more(start_gateway: StartGateway) -> None:
    with ClosingDestination(at_the_question=b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n") as destination:
        gateway = await started(start_gateway, destination)
        for number in range(10):
            path, body, _ = upload(number)
            assert (await ask(gateway.port, path, "POST", body)).status == 200
        assert destination.asked == 1
        assert arrived(destination) == Counter(range(10))
        assert destination.connections == 10


async def test_a_body_of_no_bytes_is_not_asked_for_and_gets_a_new_connection(start_gateway: StartGateway) -> None:
    with ClosingDestination() as destination:
        gateway = await started(start_gateway, destination)
        for _ in range(3):
            async with Client(gateway.port) as client:
                await client.send(b"PUT /raw HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
                assert (await client.answer()).status == 200
        assert destination.asked == 0
        assert destination.connections == 3


async def test_a_refusal_of_the_question_on_a_kept_connection_is_the_clients_to_read(
    start_gateway: StartGateway,
) -> None:
    with ClosingDestination(at_the_question=b"HTTP/1.1 413 Full\r\nContent-Length: 4\r\n\r\nfull") as destination:
        gateway = await started(start_gateway, destination)
        path, body, _ = upload(0)
        assert (await ask(gateway.port, path, "POST", body)).status == 200
        answer = await ask(gateway.port, path, "POST", body)
        assert (answer.status, answer.body) == (413, b"full")
        assert len(destination.bodies) == 1
        assert (
            destination.asked == 2
        )  # once more on a new connection: that it was not another's answer is certain there
