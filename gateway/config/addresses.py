"""Where it can listen: `127.0.0.1:8080`, `unix:/run/gateway.sock`, or `fd://`, what whoever starts it has opened."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple

from gateway.http.urls import authority

__all__ = ["Address", "Inherited", "TcpAddress", "UnixAddress", "checked_host", "parsed_address"]

_MOST_PATH_BYTES = 107
"""unix(7): sun_path, less the zero at its end."""
_FORMS = "should be such as 127.0.0.1:8080, [::1]:8080, unix:/run/gateway.sock, or fd://"


class TcpAddress(NamedTuple):
    """A host, by name or address, and a port; 0 is any free one."""

    host: str
    port: int

    def told(self, scheme: str) -> str:
        """As a url."""
        return f"{scheme}://{authority(self.host, self.port)}"


class UnixAddress(NamedTuple):
    """The path of a socket, which is made, and removed at the end."""

    path: str

    def told(self, scheme: str) -> str:
        """As it is configured."""
        return f"unix:{self.path}"


class Inherited(NamedTuple):
    """All sockets that systemd has opened for us (sd_listen_fds(3)), and keeps open from one process to the next."""

    def told(self, scheme: str) -> str:
        """As it is configured."""
        return "fd://"


Address = TcpAddress | UnixAddress | Inherited


def parsed_address(text: str) -> Address:
    """What a text of `server.listen` says. Raises ValueError."""
    if text == "fd://":
        return Inherited()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"{text}: a path is needed: unix:/run/gateway.sock")
        if path.startswith("@"):
            raise ValueError(f"{text}: a path is needed: an abstract name has no mode, and lets anybody in")
        if len(os.fsencode(path)) > _MOST_PATH_BYTES:
            raise ValueError(f"{text}: the path of a socket has {_MOST_PATH_BYTES} bytes at most")
        return UnixAddress(path)
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text}: {_FORMS}")
    if match[1] is not None and ":" not in match[1]:
        raise ValueError(f"{text}: brackets are for addresses of IPv6")
    try:
        return TcpAddress(checked_host(match[2] if match[1] is None else match[1]), int(match[3]))
    except ValueError as error:
        raise ValueError(f"{text}: {_FORMS}") from error


def checked_host(host: str) -> str:
    """Itself. Raises ValueError for what is neither an address nor a name."""
    with suppress(ValueError):
        ip_address(host)
        return host
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", host) or host.rsplit(".", 1)[-1].isdigit():
        raise ValueError('neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own')
    return host
