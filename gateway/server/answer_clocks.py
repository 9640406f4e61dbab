"""Clocks on answers: a client that does not take what was written to it is cut off, whatever the answer is.

They run while bytes that were written wait for the client, here or in the system: a slow source of the answer, or a
connection that is kept, costs a client nothing. Each connection is looked at some times per limit, so that neither
requests nor writes pay for it. What was taken is what its system has acknowledged, which Linux tells; elsewhere only
that nothing waits any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway.concurrency.timer import RearmingTimer
from gateway.http.sockets import acked_bytes, unsent_bytes

__all__ = ["AnswerClocks"]

log = logging.getLogger("gateway.answers")

_LOOKS = 4
"""In the time that a limit allows; a client is cut off late by one of them at most."""
_RATE_SECONDS = 30.0
"""How long a rate is averaged over before it counts; `idle_seconds` where there is that clock."""
_ABORT_SECONDS = 0.1
"""Between the end of the socket, which whoever writes is told of, and that of the transport, which drops the rest."""


@dataclass(slots=True)
class _Wait:
    """One connection's, since bytes for its client have been waiting without a break."""

    since: float
    acked: int
    """Then."""
    taken: int
    """Acknowledged when it was last looked at."""
    moved_at: float
    """When that was last seen to be more than before."""


class AnswerClocks:
    """Looks at `connections`, which are by whoever has them, from `start` to `stop`.

    `idle_seconds` without a byte taken, and less than `min_rate_bytes` per second on average, end one; 0 is unlimited.
    """

    def __init__(
        self,
        connections: Mapping[Any, asyncio.Transport],
        *,
        idle_seconds: float,
        min_rate_bytes: int,
    ) -> None:
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._min_rate_bytes = min_rate_bytes
        self._waits: dict[Any, _Wait] = {}
        self._timer = RearmingTimer(self._look)

    def start(self) -> None:
        """Begin to look, if there is a limit."""
        self._timer.look()

    def stop(self) -> None:
        """For good."""
        self._timer.stop()
        self._waits.clear()

    def _look(self) -> float | None:
        if not self._idle_seconds and not self._min_rate_bytes:
            return None
        now = asyncio.get_running_loop().time()
        before, self._waits = self._waits, {}
        for owner, transport in list(self._connections.items()):
            if not unsent_bytes(transport):
                continue
            acked = acked_bytes(transport) or 0
            wait = before.get(owner) or _Wait(now, acked, acked, now)
            if acked != wait.taken:
                wait.taken, wait.moved_at = acked, now
            if self._is_over(wait, now):
                _cut_off(transport)
            else:
                self._waits[owner] = wait
        return (self._idle_seconds or _RATE_SECONDS) / _LOOKS

    def _is_over(self, wait: _Wait, now: float) -> bool:
        if self._idle_seconds and now - wait.moved_at >= self._idle_seconds:
            log.info("the client took nothing of its answer for %g s", self._idle_seconds)
            return True
        seconds = now - wait.since
        slow = self._min_rate_bytes and wait.taken - wait.acked < seconds * self._min_rate_bytes
        if slow and seconds >= (self._idle_seconds or _RATE_SECONDS):
            log.info("the client took less than %d bytes/s of its answer", self._min_rate_bytes)
            return True
        return False


def _cut_off(transport: asyncio.WriteTransport) -> None:
    """Break the connection with a RST: a FIN would look like the end of an answer that has no length.

    The system may be sending a file on it (asyncio's sendfile), which a transport that is aborted would wait for for
    ever: a socket that is shut down ends that.
    """
    shown = transport.get_extra_info("socket")
    with suppress(OSError), socket.socket(fileno=os.dup(shown.fileno())) as connection:  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    asyncio.get_running_loop().call_later(_ABORT_SECONDS, transport.abort)
