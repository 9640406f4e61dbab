"""Clients on raw sockets, well-behaved and not; each of the latter is named for what it does wrong."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Any, Literal, Self

__all__ = [
    "FORM_TYPE",
    "Answer",
    "Client",
    "DribblingClient",
    "SilentClient",
    "UnreadingClient",
    "VanishingClient",
    "ask",
    "chunked",
    "eventually",
    "file",
    "form",
    "head",
    "random_bytes",
]

BOUNDARY = b"b0undary"
FORM_TYPE = "multipart/form-data; boundary=" + BOUNDARY.decode()
SECONDS = 30.0
"""How long anything that ought to happen may take on a busy machine."""


# -- what to send


def head(target: str = "/upload", method: str = "POST", **headers: str | int) -> bytes:
    """A request up to its blank line; `content_length=3` is Content-Length: 3. A form unless it says otherwise."""
    fields = {"host": "gateway", "content_type": FORM_TYPE, **headers}
    lines = [f"{name.replace('_', '-').title()}: {value}\r\n" for name, value in fields.items() if value != ""]
    return f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def file(data: bytes, filename: str = "a.bin", name: str = "file") -> bytes:
    """A file part of a form with its delimiter, without the line end that begins the next one."""
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'.encode()
    return b"--%s\r\n%s\r\nContent-Type: text/x-test\r\n\r\n%s" % (BOUNDARY, disposition, data)


def form(*parts: bytes) -> bytes:
    """A body of form-data out of whole parts."""
    return b"".join(part + b"\r\n" for part in parts) + b"--%s--\r\n" % BOUNDARY


def chunked(data: bytes, size: int = 1 << 16) -> bytes:
    """The transfer coding."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# -- who sends it


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection. `async with Client(port) as client: await client.send(...); await client.answer()`."""

    def __init__(self, port: int, *, receive_buffer_bytes: int = 0) -> None:
        self._port = port
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._received = b""
        self.sent_bytes = 0

    async def __aenter__(self) -> Self:
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        except OSError:
            self._socket.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._socket.close()

    async def send(self, data: bytes | memoryview) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        self.sent_bytes += len(data)

    async def send_for(self, seconds: float, data: bytes) -> None:
        """Send it again and again, as fast as it is taken, for so long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        rest = memoryview(data)
        while (left := until - loop.time()) > 0:
            try:
                count = self._socket.send(rest)
            except BlockingIOError:
                await asyncio.sleep(min(0.01, left))
                continue
            self.sent_bytes += count
            rest = rest[count:] or memoryview(data)
            await asyncio.sleep(0)

    async def answer(self, seconds: float = SECONDS) -> Answer:
        """The next response, whole. Raises ConnectionError if the connection ends before that."""
        async with asyncio.timeout(seconds):
            first = await self._until(b"\r\n\r\n")
            status_line, *lines = first[:-4].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            status = int(status_line.split(" ")[1])
            if status in (100, 204, 304):
                body = b""
            elif "chunked" in headers.get("transfer-encoding", ""):
                body = await self._chunks()
            else:
                body = await self._exactly(int(headers["content-length"]))
            return Answer(status, headers, body)

    async def ended(self, seconds: float = SECONDS) -> bytes:
        """Whatever still comes before the peer closes, or resets, the connection. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                while await self._more():
                    pass
            except ConnectionError:
                pass
            return self._received

    def finish(self) -> None:
        """FIN: nothing more is sent, but the answer can be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _more(self) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)
        self._received += data
        return bool(data)

    async def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            if not await self._more():
                raise ConnectionError(f"the connection ended after {self._received!r}")
        return await self._exactly(self._received.index(end) + len(end))

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            if not await self._more():
                raise ConnectionError(f"the connection ended after {self._received!r}")
        data, self._received = self._received[:size], self._received[size:]
        return data

    async def _chunks(self) -> bytes:
        body = b""
        while size := int((await self._until(b"\r\n")).partition(b";")[0], 16):
            body += (await self._exactly(size + 2))[:-2]
        await self._until(b"\r\n")
        return body


class VanishingClient(Client):
    """Sends a prefix of a request, and is gone."""

    async def vanish_after(self, prefix: bytes | memoryview, how: Literal["fin", "rst"]) -> None:
        try:
            await self.send(prefix)
        except ConnectionError:
            return
        if how == "rst":
            await asyncio.sleep(0.005)  # what was sent should be read first: a RST outruns it
            self.reset()
        else:
            self.finish()
            await self.ended()


class DribblingClient(Client):
    """Sends a byte at a time."""

    async def send(self, data: bytes | memoryview) -> None:
        for place in range(len(data)):
            await super().send(data[place : place + 1])
            await asyncio.sleep(0)


class SilentClient(Client):
    """Sends a prefix of a request, and then nothing, but stays."""

    async def fall_silent_after(self, prefix: bytes) -> Answer:
        await self.send(prefix)
        return await self.answer()


class UnreadingClient(Client):
    """Never reads what it is answered."""

    def __init__(self, port: int) -> None:
        super().__init__(port, receive_buffer_bytes=4096)

    async def answer(self, seconds: float = SECONDS) -> Answer:
        raise AssertionError("it does not read")


async def ask(port: int, target: str, method: str = "GET", body: bytes = b"", **headers: str | int) -> Answer:
    """One request on a connection of its own. The answer to HEAD has no body."""
    if body or method in ("POST", "PUT"):
        headers = {"content_length": len(body), **headers}
    else:
        headers = {"content_type": "", **headers}
    async with Client(port) as client:
        await client.send(head(target, method, **headers, connection="close") + body)
        if method == "HEAD":
            first = (await client.ended()).decode("latin-1")
            lines = first.split("\r\n")
            fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:] if line}
            return Answer(int(lines[0].split(" ")[1]), fields, first.encode("latin-1").partition(b"\r\n\r\n")[2])
        return await client.answer()


async def eventually(condition: Any, seconds: float = SECONDS) -> None:
    """Wait until a callable is true. Raises AssertionError if it never is."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not condition():
        assert loop.time() < until, "it did not come true in time"
        await asyncio.sleep(0.01)


def random_bytes(size: int) -> bytes:
    """Bytes that are not compressible, and hold no boundary; quick for large sizes."""
    block = secrets.token_bytes(min(size, 1 << 20))
    return (block * (size // (len(block) or 1) + 1))[:size]
