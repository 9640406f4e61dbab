"""Progress that only the systems see: who reads slowly but steadily is waited for, who has stopped is not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import StartGateway
from tests.contract import nothing_left_running
from tests.support.clients import ask, file, form, random_bytes

BYTES_PER_SECOND = 4096


class TricklingDestination(threading.Thread):
    """Reads so many bytes a second, with small buffers, from a thread; stops for good after `stops_after` bytes."""

    def __init__(self, stops_after: int | None = None) -> None:
        super().__init__(daemon=True)
        self._stops_after = stops_after
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.read_bytes = 0

    def run(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
            received = b""
            while not received.endswith((b"--\r\n", b"--\r\n\r\n0\r\n\r\n")):
                piece = connection.recv(BYTES_PER_SECOND // 8)
                received = received[-20:] + piece
                self.read_bytes += len(piece)
                if not piece or (self._stops_after is not None and self.read_bytes > self._stops_after):
                    self._over.wait(60)
                    return
                time.sleep(1 / 8)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            self._over.wait(60)

    def stop(self) -> None:
        self._over.set()
        self.join(10)
        self._listener.close()


@contextmanager
def trickling(stops_after: int | None = None) -> Iterator[TricklingDestination]:
    destination = TricklingDestination(stops_after)
    destination.start()
    try:
        yield destination
    finally:
        destination.stop()


@pytest.mark.parametrize("length", ["chunked", "spool"])
async def test_who_reads_four_kilobytes_a_second_gets_all_of_it(start_gateway: StartGateway, length: str) -> None:
    """For ten seconds or more, where two without progress are too many."""
    with trickling() as destination:
        gateway = await start_gateway(
            sinks={"api": {"url": destination.url, "length": length}}, limits={"stall_seconds": 2.5}
        )
        body = form(file(random_bytes(60_000)))
        started = time.monotonic()
        answer = await ask(gateway.port, "/proxy", "POST", body)
        assert answer.status == 200, answer.body
        assert time.monotonic() - started > 5


@pytest.mark.parametrize("size", [20_000, 3_000_000])
async def test_who_has_stopped_is_found_by_a_quarter_of_the_limit_later(start_gateway: StartGateway, size: int) -> None:
    with trickling(stops_after=8000) as destination:
        gateway = await start_gateway(api=destination.url, limits={"stall_seconds": 2})
        async with nothing_left_running():
            started = time.monotonic()
            answer = await ask(gateway.port, "/proxy", "POST", form(file(random_bytes(size))))
            assert answer.status == 504
            took = time.monotonic() - started
        await asyncio.sleep(0)
        assert 3.5 < took < 2 + 2 * 1.25 + 2
