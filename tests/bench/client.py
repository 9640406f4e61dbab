"""A client that costs next to nothing: the body goes by sendfile() from memory, the answer is taken in as it comes.

Raw sockets that do not block, all of a call's in one loop; nothing is parsed that need not be, and every byte of an
answer is looked at once, for a manifest of 32768 parts has 8 MB.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bodies import CONTENT_TYPE, Body

__all__ = ["Answer", "Failure", "Response", "hammer", "upload"]

_RECEIVE_BYTES = 1 << 20
_PATIENCE_SECONDS = 120
"""Without any progress."""


class Failure(Exception):
    """A server did not answer, or not what it should have."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    seconds: float


class Response:
    """An HTTP/1.1 response, in pieces: with a length, chunked, or until the connection closes."""

    def __init__(self) -> None:
        self.status = 0
        self.done = False
        self.closes = False
        self._pending = b""
        self._pieces: list[bytes] = []
        self._left: int | None = None  # of the body, or of the chunk and its line end
        self._chunked = False

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def receive(self, data: bytes) -> None:
        if not self.status:
            # a chunked answer before this one leaves its last line end behind
            head, found, data = (self._pending + data).lstrip(b"\r\n").partition(b"\r\n\r\n")
            if not found:
                self._pending = head
                return
            self._pending = b""
            self._head(head.decode("latin-1"))
        if self._chunked:
            self._chunks(data)
            return
        self._pieces.append(data)
        if self._left is not None:
            self._left -= len(data)
            self.done = self._left <= 0

    def end(self) -> None:
        """The connection was closed."""
        if not self.done and (not self.status or self._chunked or self._left is not None):
            raise Failure("the connection was closed before the answer was whole")
        self.done = self.closes = True

    def _head(self, head: str) -> None:
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.closes = headers.get("connection", "").lower() == "close"
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in headers:
            self._left = int(headers["content-length"])

    def _chunks(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self.done:
            if self._left:
                piece = data[position : position + self._left]
                position += len(piece)
                # the last two bytes of what is left are the chunk's line end
                self._pieces.append(piece[: max(0, self._left - 2)])
                self._left -= len(piece)
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._pending += data[position:]
                return
            line = (self._pending + data[position:end]).strip()
            self._pending = b""
            position = end + 1
            size = int(line.split(b";")[0], 16)
            self._left = size + 2
            self.done = size == 0


class _Exchange:
    """One connection: a request at a time, the same body again and again."""

    def __init__(self, port: int, path: str, file: int, size: int) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {size}\r\n\r\n"
        ).encode()
        self._port = port
        self._file = file
        self._size = size
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def begin(self) -> None:
        self.response = Response()
        self.began = time.perf_counter()
        self._sent = 0
        self.socket.send(self._head, socket.MSG_MORE if self._size else 0)

    @property
    def sending(self) -> bool:
        return self._sent < self._size

    def send(self) -> None:
        try:
            while self.sending:
                self._sent += os.sendfile(self.socket.fileno(), self._file, self._sent, self._size - self._sent)
        except BlockingIOError:
            pass
        except OSError:
            self._sent = self._size  # the server had enough; its answer, if there is one, says why

    def receive(self) -> None:
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise Failure(f"the connection broke: {error}") from error
        if data:
            self.response.receive(data)
        else:
            self.response.end()

    def answer(self) -> Answer:
        return Answer(self.response.status, self.response.body, time.perf_counter() - self.began)

    def renew(self, selector: selectors.BaseSelector) -> None:
        """A new connection in place of this one."""
        selector.unregister(self.socket)
        self.socket.close()
        self._connect()
        selector.register(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)


def upload(port: int, path: str, body: Body, *, clients: int = 1) -> list[Answer]:
    """One upload by each of so many clients at a time. Raises Failure."""
    return _run(port, path, body.path, body.size, clients, seconds=0)


def hammer(port: int, path: str, body: Body, *, clients: int, seconds: float) -> list[Answer]:
    """Uploads one after the other on each of so many connections; those that began within `seconds`. Raises Failure."""
    return _run(port, path, body.path, body.size, clients, seconds=seconds)


def _run(port: int, path: str, source: Path, size: int, clients: int, *, seconds: float) -> list[Answer]:
    answers: list[Answer] = []
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with source.open("rb") as file, selectors.DefaultSelector() as selector:
        exchanges = [_Exchange(port, path, file.fileno(), size) for _ in range(clients)]
        try:
            deadline = time.perf_counter() + seconds
            for exchange in exchanges:
                exchange.begin()
                selector.register(exchange.socket, both if size else selectors.EVENT_READ, exchange)
            while selector.get_map():
                ready = selector.select(_PATIENCE_SECONDS)
                if not ready:
                    raise Failure(f"nothing happened for {_PATIENCE_SECONDS} s")
                for key, events in ready:
                    exchange = key.data
                    if events & selectors.EVENT_WRITE and exchange.sending:
                        exchange.send()
                        if not exchange.sending:
                            selector.modify(exchange.socket, selectors.EVENT_READ, exchange)
                    if not events & selectors.EVENT_READ:
                        continue
                    exchange.receive()
                    if not exchange.response.done:
                        continue
                    answers.append(exchange.answer())
                    if time.perf_counter() >= deadline:
                        selector.unregister(exchange.socket)
                        continue
                    if exchange.response.closes:
                        exchange.renew(selector)
                    exchange.begin()
                    exchange.send()
                    if exchange.sending:
                        selector.modify(exchange.socket, both, exchange)
        finally:
            for exchange in exchanges:
                exchange.socket.close()
    return answers
