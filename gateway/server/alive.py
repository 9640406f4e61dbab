"""Whether a gateway of some configuration answers on this machine: what a container's health check asks."""

from __future__ import annotations

import http.client
import socket
import ssl

from gateway.config.addresses import TcpAddress, UnixAddress
from gateway.config.settings import Settings
from gateway.http.urls import authority

__all__ = ["ask_alive"]

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Who listens everywhere is asked on the loopback address."""


def ask_alive(settings: Settings, *, timeout_seconds: float = 4) -> str:
    """Where it was asked. Raises OSError where nobody answers, and where the answer is no 200.

    The management listener is asked where there is one: it answers until a drain has ended, and never over TLS. Else
    the first address that it can know of.
    """
    address, with_tls = _asked(settings)
    if isinstance(address, UnixAddress):
        connection: http.client.HTTPConnection = _ByPath(address.path, timeout_seconds)
        at = address.told("http")
    else:
        host = _ANY.get(address.host, address.host)
        connection = _connection(host, address.port, with_tls, timeout_seconds)
        at = f"{'https' if with_tls else 'http'}://{authority(host, address.port)}/healthz"
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{at}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if status != 200:
        raise OSError(f"{at}: the answer is a {status}")
    return at


def _asked(settings: Settings) -> tuple[TcpAddress | UnixAddress, bool]:
    """(an address, whether it speaks TLS). Raises OSError where there is none but what another process has opened."""
    management, with_tls = settings.management, settings.tls is not None
    if management.port is not None:
        return TcpAddress(management.host, management.port), False
    for address in settings.server.addresses:
        if isinstance(address, TcpAddress) or (isinstance(address, UnixAddress) and not with_tls):
            return address, with_tls
    raise OSError("server.listen has nothing that could be asked here; with management.port there is something")


class _ByPath(http.client.HTTPConnection):
    """To a socket of this machine."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        """As its own."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(host: str, port: int, with_tls: bool, timeout_seconds: float) -> http.client.HTTPConnection:
    if not with_tls:
        return http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    context = ssl.create_default_context()
    context.check_hostname = False  # its certificate is for another name than this machine's own
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout_seconds, context=context)
