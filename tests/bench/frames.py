"""How many frames of ours one chunk of 256 KiB enters on its way, and which: `python -m tests.bench.frames`.

A real gateway on a real socket, in this process; chunks come one at a time, each after the one before has arrived, so
that what is counted is the way of one, function by function, in all threads. The first ones are not counted: they make
what the others only use. The least of the counts is told, for a timer of ours may run beside any of them.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from aiohttp import web

import gateway
from gateway.config.settings import Settings
from gateway.server.app import build_app

__all__ = ["MOST", "Way", "main", "ways"]

MOST = {"disk": 42, "relay": 56}
"""More than these, and the command fails."""
_CHUNK_BYTES = 256 << 10
_WARM, _COUNTED = 6, 8
_QUIET_SECONDS = 0.02
_OURS = str(Path(gateway.__file__).parent)
_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
_TAIL = b"\r\n--b--\r\n"

Way = list[str]
"""`room.function`, in the order in which they were entered."""


def main() -> int:
    """Print the ways, each with its count. 1 if one of them is longer than it may be."""
    found = asyncio.run(ways())
    for name, way in found.items():
        print(f"{name}: {len(way)} frames per chunk of {_CHUNK_BYTES >> 10} KiB, {MOST[name]} at most")
        for function in way:
            print(f"  {function}")
    return int(any(len(way) > MOST[name] for name, way in found.items()))


async def ways() -> dict[str, Way]:
    """The way of a chunk to each kind of sink."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        async with _destination() as url:
            sinks = {"disk": {"type": "disk", "root": directory, "fsync": False}, "api": {"type": "relay", "url": url}}
            routes = [{"path": f"/{name}", "parts": [{"sinks": [name]}]} for name in sinks]
            with _Recorder() as recorder:
                async with _serving(build_app(Settings.model_validate({"sinks": sinks, "routes": routes}))) as port:
                    for name, path in (("disk", "/disk"), ("relay", "/api")):
                        found[name] = await _way(recorder, port, path)
    return found


class _Recorder:
    """Writes down the functions of ours that are entered, in this thread and in those that are started within it."""

    def __init__(self) -> None:
        self.entered: Way = []

    def __enter__(self) -> _Recorder:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_OURS):
            room = frame.f_code.co_filename[len(_OURS) + 1 : -len(".py")].replace("/", ".")
            self.entered.append(f"{room}.{frame.f_code.co_qualname}")

    async def settled(self) -> Way:
        """What was entered since the last time, when nothing is any more."""
        while True:
            before = len(self.entered)
            await asyncio.sleep(_QUIET_SECONDS)
            if before and len(self.entered) == before:
                entered, self.entered = self.entered, []
                return entered


async def _way(recorder: _Recorder, port: int, path: str) -> Way:
    size = len(_HEAD) + (_WARM + _COUNTED) * _CHUNK_BYTES + len(_TAIL)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _CHUNK_BYTES)
        await asyncio.get_running_loop().run_in_executor(None, client.connect, ("127.0.0.1", port))
        client.settimeout(10)
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" % (path.encode(), size) + _HEAD
        )
        await recorder.settled()
        counted = []
        for number in range(_WARM + _COUNTED):
            client.sendall(bytes(_CHUNK_BYTES))
            way = await recorder.settled()
            if number >= _WARM:
                counted.append(way)
        client.sendall(_TAIL)
        await recorder.settled()
        if not client.recv(1000).startswith(b"HTTP/1.1 201"):
            raise RuntimeError("the upload whose chunks were counted failed")
    return min(counted, key=len)


@asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _CHUNK_BYTES)
        await web.SockSite(runner, listener).start()
        yield listener.getsockname()[1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _destination() -> AsyncIterator[str]:
    """The url of a server that reads a chunked request to its end, and answers it."""
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


class _Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._write = transport.write
        self._end = b""

    def data_received(self, data: bytes) -> None:
        self._end = (self._end + data)[-5:]
        if self._end == b"0\r\n\r\n":
            self._write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    sys.exit(main())
