"""Where relays go: a server that reads and drops, as cheaply as can be, and says what it got.

    POST anything          200 and {"bytes": N}, once the whole body was read; N is without the transfer coding
    PUT /keep, a path      from now on bodies are written there, each over the one before
    PUT /drop              from now on they are dropped again
    GET /last              {"requests": N, "bytes": N of all, "last": N, "content_type": "..."}

Dropped bytes that are known to be the body's are dropped within the kernel (MSG_TRUNC).
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Seen"]

_BUFFER_BYTES = 1 << 20
_WORTH_TRUNCATING = 128 << 10


@dataclass(slots=True)
class Seen:
    requests: int = 0
    bytes: int = 0
    last: int = 0
    content_type: str = ""


class _State:
    def __init__(self) -> None:
        self.seen = Seen()
        self.keep: Path | None = None
        self.lock = threading.Lock()


class _Gone(Exception):
    """The peer broke off: what it sent does not count."""


class _Connection:
    """One connection, from one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def _fill(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = self._socket.recv_into(self._view[self._end :])
        if not count:
            raise _Gone
        self._end += count

    def until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark, self._start, self._end)) < 0:
            self._fill()
        found = bytes(self._view[self._start : at])
        self._start = at + len(mark)
        return found

    def take(self, count: int, keep: Callable[[memoryview], object] | None) -> None:
        while count:
            if self._start == self._end:
                if keep is None and count >= _WORTH_TRUNCATING:
                    dropped = self._socket.recv_into(self._view[: min(count, _BUFFER_BYTES)], 0, socket.MSG_TRUNC)
                    if not dropped:
                        raise _Gone
                    count -= dropped
                    continue
                self._fill()
            piece = min(count, self._end - self._start)
            if keep is not None:
                keep(self._view[self._start : self._start + piece])
            self._start += piece
            count -= piece

    def answer(self, text: str) -> None:
        self._socket.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )

    def body(self, headers: dict[str, str], keep: Callable[[memoryview], object] | None) -> int:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            size = int(headers.get("content-length", "0"))
            self.take(size, keep)
            return size
        total = 0
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            self.take(size, keep)
            self.take(2, None)
            total += size
        self.until(b"\r\n")
        return total


def _serve(connection: socket.socket, state: _State) -> None:
    with connection:
        peer = _Connection(connection)
        try:
            while True:
                line, *lines = peer.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                method, path, _ = line.split()
                peer.answer(_request(peer, method, path, headers, state))
        except (_Gone, ConnectionError):
            return


def _request(peer: _Connection, method: str, path: str, headers: dict[str, str], state: _State) -> str:
    if method == "GET":
        return json.dumps(asdict(state.seen))
    if method == "PUT":
        name = bytearray()
        peer.body(headers, name.extend)
        state.keep = Path(name.decode()) if path == "/keep" else None
        return "{}"
    if state.keep is None:
        count = peer.body(headers, None)
    else:
        with state.keep.open("wb") as file:
            count = peer.body(headers, file.write)
    with state.lock:
        state.seen.requests += 1
        state.seen.bytes += count
        state.seen.last = count
        state.seen.content_type = headers.get("content-type", "")
    return f'{{"bytes": {count}}}'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    state = _State()
    with socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=256) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_serve, args=(connection, state), daemon=True).start()


if __name__ == "__main__":
    main()
