"""Ports for tests that run beside others, in this process and in more of them."""

from __future__ import annotations

import random
import socket

__all__ = ["closed_port", "free_port"]

_BELOW_WHAT_SYSTEMS_GIVE_OUT = range(12_000, 32_000)


def free_port() -> int:
    """A port that is free, and that nobody is given who asks for any port, until somebody listens on it."""
    while True:
        port = random.choice(_BELOW_WHAT_SYSTEMS_GIVE_OUT)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


def closed_port() -> int:
    """A port that refuses connections, and that nobody else gets while this process lives: bound, not listened on."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]
    bound.detach()  # so that nothing closes it
    return port
