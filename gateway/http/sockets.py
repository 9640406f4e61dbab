"""Sockets towards destinations: what is unsent shows, and an answer that a reset is close behind is read."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from aiohttp import AddrInfoType

__all__ = ["DestinationSocket", "acked_bytes", "destination_socket", "socket_of", "unsent_bytes"]

_UNSENT_BYTES = 128 << 10
_TCP_INFO_BYTES = 128
_ACKED_BYTES = struct.Struct("@120xQ")
"""tcpi_bytes_acked of linux/tcp.h, since Linux 4.1."""


class DestinationSocket(socket.socket):
    """Leaves it to reading to find out that the peer is gone.

    A destination that refuses a body it has not read, and closes, resets the connection; its answer lies here all the
    same. The next write would fail, and asyncio then drops the connection with the answer unread. So a write to
    somebody who is gone is as good as done, and what could be read is read; then comes the reset.
    """

    reset: OSError | None = None
    """What a write met: there may be an answer to be read, but nothing can be sent."""

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Never raises what says that the peer is gone."""
        try:
            return super().send(data, flags)
        except (ConnectionResetError, BrokenPipeError) as error:
            self.reset = error
            return memoryview(data).nbytes

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        """Never raises what says that the peer is gone."""
        buffers = list(buffers)
        try:
            return super().sendmsg(buffers, *rest)
        except (ConnectionResetError, BrokenPipeError) as error:
            self.reset = error
            return sum(memoryview(buffer).nbytes for buffer in buffers)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Raises what a write met, when all that could be read was read."""
        data = super().recv(size, flags)
        if not data and self.reset is not None:
            raise self.reset  # or it would look like an end
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Raises what a write met, when all that could be read was read."""
        count = super().recv_into(buffer, nbytes, flags)
        if not count and self.reset is not None:
            raise self.reset
        return count


_sockets: WeakValueDictionary[int, DestinationSocket] = WeakValueDictionary()
"""By descriptor: a transport shows its socket's, and not the socket."""


def destination_socket(address: AddrInfoType) -> socket.socket:
    """A socket that says it is writable only when little is unsent.

    Else megabytes lie in the kernel after our last write, and a destination that reads slowly but steadily
    looks like one that does not answer.
    """
    family, kind, protocol, _, _ = address
    made = DestinationSocket(family, kind, protocol)
    made.setblocking(False)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    _sockets[made.fileno()] = made
    return made


def socket_of(transport: asyncio.BaseTransport) -> DestinationSocket | None:
    """The socket of `destination_socket` below a transport; None where it has another one, or none any more."""
    shown = transport.get_extra_info("socket")
    return None if shown is None else _sockets.get(shown.fileno())


def acked_bytes(transport: asyncio.BaseTransport) -> int | None:
    """How much the peer's system has taken so far: it grows while one reads slowly, though no write ends, or the last
    one has ended long ago. None where the system does not tell.
    """
    shown = transport.get_extra_info("socket")
    if shown is None or sys.platform != "linux":
        return None
    try:
        info = shown.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, ValueError):  # it is closed; uvloop says so by a ValueError
        return None
    return int(_ACKED_BYTES.unpack(info)[0]) if len(info) == _ACKED_BYTES.size else None


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """What was written, and is not known to have been taken by the peer's system: here, and in ours."""
    waiting = transport.get_write_buffer_size()
    shown = transport.get_extra_info("socket")
    if shown is None or shown.fileno() < 0:
        return waiting
    with suppress(OSError):
        (queued,) = struct.unpack("i", fcntl.ioctl(shown.fileno(), termios.TIOCOUTQ, bytes(4)))
        waiting += int(queued)
    return waiting
