"""A network of one's own, in which the services have the names and the ports that their files say, and nobody else any.

What compose does with a bridge is done here with a network namespace, which has a loopback interface and nothing else:
so no port of the machine is taken or opened, the unchanged `listen 8000` of nginx included. A mount namespace has an
/etc/hosts in it with the names. Both are had of unshare(1), as root, or as anybody where user namespaces are allowed:
then one makes it possible, and a second one within it has what runs there be who it was.

`python -m tests.stack.network` is the program between the two.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NoReturn

__all__ = ["PortTaken", "Published", "enter", "inside", "main", "missing", "publish"]

_INSIDE = "GATEWAY_STACK_PUBLISHED"
"""Set in there: the sockets that were opened outside, as `descriptor:port` each."""
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40  # linux/sockios.h, linux/if.h
_CHUNK_BYTES = 1 << 16


class PortTaken(Exception):
    """One line."""


def _into() -> list[str]:
    return ["unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--mount", "--net"]


def _as(user: int, group: int) -> list[str]:
    return [] if user == 0 else ["unshare", "--user", f"--map-user={user}", f"--map-group={group}"]


def missing() -> str | None:
    """Why there can be no such network here."""
    if shutil.which("unshare") is None:
        return "unshare is not installed: it is in util-linux"
    command = [*_into(), *_as(os.geteuid(), os.getegid()), "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"namespaces are not allowed here: {tried.stderr.strip()}"


def inside() -> bool:
    return _INSIDE in os.environ


def enter(arguments: Sequence[str], hosts: dict[str, str], publish: Iterable[tuple[str, int]]) -> NoReturn:
    """Run `tests.stack` in there, in place of this program. `hosts` are names with addresses of the loopback network,
    `publish` addresses outside that are handed in. Raises PortTaken.
    """
    published = []
    for host, port in publish:
        try:
            listener = socket.create_server((host, port))
        except OSError as error:
            raise PortTaken(f"{host}:{port} is taken by another program: {os.strerror(error.errno or 0)}") from error
        listener.set_inheritable(True)
        published.append(f"{listener.detach()}:{port}")
    os.environ[_INSIDE] = " ".join(published)
    between = [sys.executable, "-m", "tests.stack.network", json.dumps(hosts), str(os.geteuid()), str(os.getegid())]
    os.execvp("unshare", [*_into(), *between, *arguments])


def main(hosts: str, user: str, group: str, *arguments: str) -> NoReturn:
    """Between: loopback and names, and then the program, as who it was."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING))
    with NamedTemporaryFile("w", suffix=".hosts") as file:  # which stays while it is mounted
        for name, address in {"localhost": "127.0.0.1", **json.loads(hosts)}.items():
            file.write(f"{address} {name}\n")
        file.flush()
        Path(file.name).chmod(0o644)
        subprocess.run(["mount", "--bind", file.name, "/etc/hosts"], check=True)
    command = [*_as(int(user), int(group)), sys.executable, "-m", "tests.stack", *arguments]
    os.execvp(command[0], command)


# -- what is reached from outside


Published = dict[int, socket.socket]
"""Port -> the socket outside that listens on it."""


def publish() -> Published:
    """What was handed in."""
    pairs = (pair.split(":") for pair in os.environ[_INSIDE].split())
    return {int(port): socket.socket(fileno=int(descriptor)) for descriptor, port in pairs}


async def forward(listener: socket.socket, host: str, port: int) -> None:
    """Connections from outside go to a service, until this is cancelled: what an engine does for `ports`."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection(host, port)
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, inner_writer))
                both.create_task(_copy(inner_reader, writer))
        writer.close()

    async with await asyncio.start_server(one, sock=listener) as server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To the end of one direction, which is told to the other side."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


if __name__ == "__main__":
    main(*sys.argv[1:])
