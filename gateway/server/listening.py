"""Where connections come in, as many as there may be, and how many there are.

1. `server.max_connections` are served. A few more are let in, to be told so: health is answered there, anything else
   with 503, and each is closed behind its answer.
2. Beyond these nothing is accepted. New ones wait with the system until one ends.
3. So they do where the system has no descriptor for another one; it is tried again when one ends, and each second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web

from gateway.concurrency.tasks import OwnTasks
from gateway.errors import GatewayError
from gateway.http.tls import ServerTls
from gateway.model import Limits
from gateway.server.answer_clocks import AnswerClocks
from gateway.server.binding import ActivatedListener
from gateway.server.connection import Connection

__all__ = ["Listener", "Server", "SharedConnections"]

log = logging.getLogger("gateway.server")

_RESERVE = 32
"""Let in beyond the limit: some health checks at a time, and those that get to read why they are refused."""
_BACKLOG = 128
"""aiohttp's own. The system has more waiting than that only where its clients try again."""
_AT_A_TIME = 16
"""Then it is the turn of those that are connected."""
_RETRY_SECONDS = 1.0
_OUT_OF = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
"""What a connection that cannot be accepted fails with though nothing is wrong with it."""


class SharedConnections(Protocol):
    """The connections of several processes, which have one limit."""

    def tell(self, connections: int) -> None:
        """So many are this process's."""

    def of_others(self) -> int:
        """So many are not."""

    def is_our_turn(self) -> bool:
        """Whether this process is to accept the next one."""

    def accept_no_more(self) -> None:
        """Have others take all that come."""


class Server(web.Server):
    """aiohttp's, with connections of ours, which it counts, and clocks on what is answered there. `refused` is told why
    a request was refused that no handler has seen.
    """

    def __init__(
        self,
        handler: Any,
        *,
        limits: Limits,
        max_connections: int = 0,
        shared: SharedConnections | None = None,
        tls: ServerTls | None = None,
        handshake_seconds: float = 30,
        refused: Callable[[GatewayError], None] = lambda error: None,
        **settings: Any,
    ) -> None:
        super().__init__(handler, **settings)
        self._refused = refused
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._max_connections = max_connections or math.inf
        self._shared = shared
        self._listeners: list[Listener] = []
        self._accepted: set[Connection] = set()
        """aiohttp's own count has them a moment later."""
        self._clocks = AnswerClocks(
            self._connections, idle_seconds=limits.idle_seconds, min_rate_bytes=limits.min_answer_rate_bytes
        )
        self._clocks.start()

    def __call__(self) -> Connection:
        """A connection's handler. Raises TypeError for a setting that it does not know."""
        is_beyond = self._count() >= self._max_connections
        return Connection(
            self, is_beyond=is_beyond, is_over=self._is_over, refused=self._refused, loop=self._loop, **self._kwargs
        )

    def listen(self, bound: socket.socket) -> Listener:
        """Let connections in from there, until the listener is closed."""
        listener = Listener(
            bound, self._may_accept, self._next, tls=self._tls, handshake_seconds=self._handshake_seconds
        )
        self._listeners.append(listener)
        return listener

    def let_begin(self, *, next_seconds: float = 0) -> None:
        """The first request of each connection that has not been answered yet may begin, although nothing else may; or
        the next one of each, whichever it is, where it has `next_seconds` behind an answer that goes on now.
        """
        for connection in self._accepted:
            connection.let_begin(next_seconds=next_seconds)

    def let_begin_no_more(self, *, close: bool) -> None:
        """Those that have not come by now; who had one, and was idle since, is closed, or told so when he asks."""
        for connection in list(self._accepted):
            connection.let_begin_no_more(close=close)

    @property
    def connection_count(self) -> int:
        """How many there are in this process."""
        return len(self._accepted)

    @property
    def awaits_beginnings(self) -> bool:
        """Whether some of them have not come."""
        return any(connection.is_to_begin for connection in self._accepted)

    def accept_no_more(self) -> None:
        """Close the listeners."""
        for listener in self._listeners:
            listener.close()
        if self._shared is not None:
            self._shared.accept_no_more()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """As aiohttp's."""
        super().connection_lost(handler, exc)
        self._accepted.discard(handler)
        for listener in self._listeners:
            listener.resume()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own
        """As aiohttp's: the end of all connections."""
        await super().shutdown(timeout)
        self._clocks.stop()

    def _may_accept(self) -> bool | None:
        """Whether another connection may be let in: True, False until one ends, or None while it is others' turn."""
        if self._count() >= self._max_connections + _RESERVE:
            return False
        return True if self._shared is None or self._shared.is_our_turn() else None

    def _next(self) -> Connection:
        """The handler of one that was accepted just now."""
        handler = self()
        self._accepted.add(handler)
        return handler

    def _is_over(self) -> bool:
        return self._count() > self._max_connections

    def _count(self) -> int:
        ours = len(self._accepted)
        if self._shared is None:
            return ours
        self._shared.tell(ours)
        return ours + self._shared.of_others()

    @classmethod
    def like(
        cls,
        server: web.Server,
        limits: Limits,
        *,
        max_connections: int,
        shared: SharedConnections | None,
        tls: ServerTls | None = None,
        refused: Callable[[GatewayError], None],
    ) -> Server:
        """One with the settings of aiohttp's own, which makes them of an application."""
        return cls(
            server.request_handler,
            limits=limits,
            max_connections=max_connections,
            shared=shared,
            tls=tls,
            refused=refused,
            handshake_seconds=server._kwargs["head_seconds"],
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,
            **server._kwargs,
        )


class Listener:
    """A socket that is bound, from which connections are accepted for as long as `may_accept` says so.

    Not asyncio's own: where no descriptor is left that one writes a traceback for each connection that waits, and
    it cannot be told to wait.
    """

    def __init__(
        self,
        bound: socket.socket,
        may_accept: Callable[[], bool | None],
        next_handler: Callable[[], asyncio.Protocol],
        *,
        tls: ServerTls | None = None,
        handshake_seconds: float = 30,
    ) -> None:
        self._socket = bound
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._may_accept = may_accept
        self._next_handler = next_handler
        self._loop = asyncio.get_running_loop()
        self._connecting = OwnTasks()
        self._retry: asyncio.TimerHandle | None = None
        self._told_at = -math.inf
        self.address: Any = bound.getsockname()
        """As the system has it."""
        bound.setblocking(False)
        if not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # or it keeps the queue that it has
            bound.listen(_BACKLOG)
        self._loop.add_reader(bound, self._accept)

    def close(self) -> None:
        """Accept what waits with the system, which would reset it, and no more; or leave it to the next process, if
        the socket is kept for that.
        """
        if self._socket.fileno() < 0:
            return
        try:
            if self._retry is None and not isinstance(self._socket, ActivatedListener):
                self._accept(_BACKLOG + 1)
        except OSError as error:  # of a network that is going: it ends all the same
            self._tell(error)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def resume(self) -> None:
        """A connection has ended: if that was waited for, look again."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self._loop.add_reader(self._socket, self._accept)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket)
        self._retry = self._loop.call_later(_RETRY_SECONDS, self.resume)

    def _accept(self, most: int = _AT_A_TIME) -> None:
        for _ in range(most):
            may_accept = self._may_accept()
            if not may_accept:
                if may_accept is False:
                    self._pause()
                return
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                self._tell(error)
                self._pause()
                return
            connection.setblocking(False)
            self._connecting.start(self._connect(connection, self._next_handler()))

    async def _connect(self, connection: socket.socket, handler: asyncio.Protocol) -> None:
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls.current(), "ssl_handshake_timeout": self._handshake_seconds}
        try:
            await self._loop.connect_accepted_socket(lambda: handler, connection, **tls)
        except OSError as error:  # it is gone already, or speaks no TLS
            log.debug("a connection did not come about: %s", error)
            connection.close()
            handler.connection_lost(error)

    def _tell(self, error: OSError) -> None:
        """Once a second: connections may end, and be accepted, much faster than that."""
        now = self._loop.time()
        if now - self._told_at >= _RETRY_SECONDS:
            self._told_at = now
            log.warning("a connection has to wait: %s", error.strerror)
