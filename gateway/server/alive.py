"""Whether a gateway of some configuration answers on this machine: what a container's health check asks."""

from __future__ import annotations

import http.client
import ssl

from gateway.config.settings import Settings
from gateway.http.urls import authority

__all__ = ["ask_alive"]

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Who listens everywhere is asked on the loopback address."""


def ask_alive(settings: Settings, *, timeout_seconds: float = 4) -> str:
    """Where it was asked. Raises OSError where nobody answers, and where the answer is no 200.

    The management listener is asked where there is one: it answers until a drain has ended, and never over TLS.
    """
    server, management = settings.server, settings.management
    listener = server if management.port is None else management
    host, port = _ANY.get(listener.host, listener.host), listener.port or 0
    with_tls = settings.tls is not None and listener is server
    at = f"{'https' if with_tls else 'http'}://{authority(host, port)}/healthz"
    connection = _connection(host, port, with_tls, timeout_seconds)
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


def _connection(host: str, port: int, with_tls: bool, timeout_seconds: float) -> http.client.HTTPConnection:
    if not with_tls:
        return http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    context = ssl.create_default_context()
    context.check_hostname = False  # its certificate is for another name than this machine's own
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout_seconds, context=context)
