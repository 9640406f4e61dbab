"""The sockets that are listened on: bound, or taken over from whoever has started the process."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gateway.config.addresses import Address, Inherited, TcpAddress, UnixAddress
from gateway.config.settings import Settings
from gateway.http.urls import authority

__all__ = ["ActivatedListener", "bound_listeners", "bound_sockets", "first_port", "told_addresses"]

_FIRST_INHERITED = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class ActivatedListener(socket.socket):
    """One that whoever has started the process keeps open for the next one."""


class UnixListener(socket.socket):
    """One that removes its path when it is closed, unless something else is there by then."""

    path: Path | None = None
    inode: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """As a socket's."""
        path, self.path = self.path, None
        if path is not None:
            with suppress(OSError):
                if _inode(path) == self.inode:
                    path.unlink()
        super().close()


async def bound_listeners(settings: Settings) -> tuple[list[socket.socket], list[socket.socket]]:
    """(those for uploads, those for management); at a port they do not listen yet. Raises OSError where an address
    cannot be had.
    """
    server, management = settings.server, settings.management
    listeners: list[socket.socket] = []
    try:
        key = "server.host" if server.listen is None else "server.listen"
        for address in server.addresses:
            listeners += await _bound(key, address, mode=int(server.socket_mode, 8))
        if management.port is None:
            return listeners, []
        return listeners, await _bound("management.host", TcpAddress(management.host, management.port))
    except OSError:
        for listener in listeners:
            listener.close()
        raise


async def _bound(key: str, address: Address, *, mode: int = 0) -> list[socket.socket]:
    match address:
        case TcpAddress(host, port):
            try:
                return await bound_sockets(host, port)
            except socket.gaierror as error:
                raise OSError(f"{key}: {error.strerror}") from error
        case UnixAddress(path):
            return [_unix_listener(Path(path), mode)]
        case Inherited():
            return _inherited()


async def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """One for each address of the host, not listening yet. Raises OSError where there is none, or one is taken."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    try:
        return [socket.socket(fileno=os.dup(bound.fileno())) for bound in server.sockets]
    finally:
        server.close()


def _unix_listener(path: Path, mode: int) -> socket.socket:
    """It listens as soon as the mode is right, and not before: nobody else gets in, nor takes it for a stale one."""
    _remove_stale(path)
    made = UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        made.path, made.inode = path, _inode(path)
        path.chmod(mode)
        made.listen()
    except OSError as error:
        made.close()
        raise OSError(f"server.listen: unix:{path}: {error.strerror}") from error
    return made


def _remove_stale(path: Path) -> None:
    """What one left that was killed: nobody listens there. Raises OSError where somebody does, or it is no socket."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return  # binding says what is wrong
    if not is_socket:
        raise OSError(f"server.listen: unix:{path}: there is something else of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            pass  # its queue is full, or it is not ours to ask: somebody has it
        else:
            raise OSError(f"server.listen: unix:{path}: somebody listens there already")


def _inherited() -> list[socket.socket]:
    """The sockets of sd_listen_fds(3). They are for this process and its workers, not for what these start."""
    told, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if told != str(os.getpid()) or not count.isdecimal() or not int(count):
        raise OSError("server.listen: fd:// needs a socket unit of systemd, or what else opens sockets as that does")
    return [_activated(number) for number in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count))]


def _activated(number: int) -> ActivatedListener:
    try:
        taken = ActivatedListener(fileno=number)
        listens = taken.type == socket.SOCK_STREAM and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:  # of a file, a pipe, or nothing at all
        raise OSError(f"server.listen: fd:// was given something else than sockets: {error.strerror}") from error
    if not listens:
        taken.close()
        raise OSError("server.listen: fd:// was given something that does not listen for connections")
    taken.set_inheritable(False)
    return taken


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def first_port(listeners: Iterable[socket.socket]) -> tuple[str, int] | None:
    """(host, port) of the first one that has some."""
    names = [one.getsockname() for one in listeners if one.family != socket.AF_UNIX]
    return (names[0][0], names[0][1]) if names else None


def told_addresses(
    listeners: Iterable[socket.socket], of_management: Iterable[socket.socket], *, scheme: str = "http"
) -> str:
    """Where they listen, in words."""

    def told(bound: Iterable[socket.socket], scheme: str = "http") -> str:
        return ", ".join(_told(one, scheme) for one in bound)

    management = told(of_management)
    return told(listeners, scheme) + (f", management on {management}" if management else "")


def _told(bound: socket.socket, scheme: str) -> str:
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return f"{scheme}://{authority(*name[:2])}"
