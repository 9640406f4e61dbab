"""The process: listen, and on SIGTERM drain before anything is torn down.

The management listener, if there is one, answers until all that has ended.

aiohttp's own shutdown drops the bytes of uploads in flight as soon as it begins. So ours comes first:
readiness turns to 503, `drain_delay_seconds` later the listener closes, new requests on open connections are refused,
uploads in progress go on for up to `drain_seconds`, or until a second signal; those that are left are cancelled, which
keeps nothing of them (G3); only then aiohttp's clean-up runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from gateway.config.make import make_tls
from gateway.config.settings import Settings
from gateway.http.tls import ServerTls
from gateway.server.app import build_app, build_management, check_took_effect
from gateway.server.binding import bound_listeners, first_port, told_addresses
from gateway.server.descriptors import within_descriptors
from gateway.server.listening import Listener, Server, SharedConnections
from gateway.server.reloading import Reloading, Repeated, reread_files
from gateway.server.services import SERVICES
from gateway.server.signals import Ending, catch_signals, ignore_signals

__all__ = [
    "DrainingRunner",
    "ListeningRunner",
    "collect_seldom",
    "keep_freed_buffers",
    "run",
    "running",
    "serve",
]

log = logging.getLogger("gateway.server")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BUFFER_BYTES = 4 << 20
_KEPT_BYTES = 16 << 20
_COLLECT_AFTER_OBJECTS = 10_000

_ABORT_SECONDS = 5
"""For what was broken off to be removed from its sinks."""
_REMOVAL_SECONDS = 0.5
"""For what a disk that hangs has not removed by then."""
_FIRST_REQUEST_SECONDS = 0.5
"""For those who have connected before the end began to say what they want."""
_HANDED_OVER_SECONDS = 2
"""The same where the next process listens on: nobody else answers meanwhile, and a client on a busy machine is slow."""
_LOOKS = 25
_TO_HANDLER_SECONDS = 0.01
"""For a request that has come to get as far as its handler."""
_CLEANUP_SECONDS = 2
"""For connections that are idle, or whose upload was cancelled just now."""
_MANAGEMENT_CONNECTIONS = 16
"""In each process. A monitor and an orchestrator have one each."""


class ListeningRunner(web.AppRunner):
    """An AppRunner with listeners and connections of ours: these answer a client that has sent its FIN."""

    def __init__(
        self,
        app: web.Application,
        *,
        max_connections: int = 0,
        shared: SharedConnections | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        super().__init__(app, shutdown_timeout=_CLEANUP_SECONDS)
        self.tls = tls
        self._max_connections = max_connections
        self._shared = shared
        self._listeners: list[Listener] = []

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        services = self.app[SERVICES]
        return Server.like(
            made,
            services.limits,
            max_connections=self._max_connections,
            shared=self._shared,
            tls=self.tls,
            refused=services.metrics.refused,
        )

    def listen(self, *bound: socket.socket) -> None:
        """After `setup`: let connections in from these sockets, which are ours from now on."""
        assert isinstance(self.server, Server)
        self._listeners += [self.server.listen(one) for one in bound]

    @property
    def addresses(self) -> list[Any]:
        """As aiohttp's: where it listens."""
        return [listener.address for listener in self._listeners]

    def accept_no_more(self) -> None:
        """Close the listeners."""
        if isinstance(self.server, Server):  # or it was left before
            self.server.accept_no_more()

    async def cleanup(self) -> None:
        """Accept no more, and leave as aiohttp does."""
        self.accept_no_more()
        await super().cleanup()


class DrainingRunner(ListeningRunner):
    """One whose `cleanup` drains first, `drain_delay_seconds` after it has begun to say so.

    `hands_over`: somebody keeps its listeners open for the next process. `management` is an application that is served
    until all has ended, by a runner that is set up and left together with this one.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        drain_seconds: float,
        drain_delay_seconds: float = 0,
        hands_over: bool = False,
        max_connections: int = 0,
        shared: SharedConnections | None = None,
        ending: Ending | None = None,
        management: web.Application | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        super().__init__(app, max_connections=max_connections, shared=shared, tls=tls)
        self._drain_seconds = drain_seconds
        self._drain_delay_seconds = drain_delay_seconds
        self._hands_over = hands_over
        self._ending = ending or Ending()
        self.management: ListeningRunner | None = None
        if management is not None:
            self.management = ListeningRunner(management, max_connections=_MANAGEMENT_CONNECTIONS)

    async def reread_files(self) -> None:
        """Of certificates and keys."""
        await reread_files(self.app[SERVICES], self.tls)

    async def setup(self) -> None:
        """As aiohttp's."""
        await super().setup()
        self.app[SERVICES].metrics.look_also(self._tell_connections)
        if self.management is not None:
            await self.management.setup()

    async def cleanup(self) -> None:
        """Stop listening, let requests in progress end for `drain_seconds`, break the others off, and leave."""
        try:
            await self._drain()
            await super().cleanup()
        finally:
            if self.management is not None:
                await self.management.cleanup()

    def _tell_connections(self) -> None:
        if isinstance(self.server, Server):  # it is not left
            self.app[SERVICES].metrics.connections_are(self.server.connection_count)

    async def _first_requests(self) -> None:
        """Of connections that were let in before: who could connect was not refused, and does not try again. Where the
        next process listens on it is the next request of each: none of them could know that this one ends.
        """
        if not isinstance(self.server, Server):  # it was left before
            return
        self.server.let_begin(next_seconds=_HANDED_OVER_SECONDS if self._hands_over else 0)
        patience_seconds = _HANDED_OVER_SECONDS if self._hands_over else _FIRST_REQUEST_SECONDS
        for _ in range(_LOOKS):
            if not self.server.awaits_beginnings or self._ending.hurried:
                break
            await asyncio.sleep(min(patience_seconds, self._drain_seconds) / _LOOKS)
        self.server.let_begin_no_more(close=self._hands_over)
        await asyncio.sleep(_TO_HANDLER_SECONDS)

    def _awaits_beginnings(self) -> bool:
        return isinstance(self.server, Server) and self.server.awaits_beginnings

    async def _drain(self) -> None:
        services, ending = self.app[SERVICES], self._ending
        loop = asyncio.get_running_loop()
        if self._drain_delay_seconds and not ending.hurried:
            services.gate.leaving = True
            log.info("draining in %g s: /readyz says so", self._drain_delay_seconds)
            async with ending.patience(loop.time() + self._drain_delay_seconds):
                await asyncio.Event().wait()
        services.gate.draining = True
        self.accept_no_more()
        deadline = loop.time() + self._drain_seconds
        if not ending.hurried:
            await self._first_requests()
        if services.requests and not ending.hurried:
            log.info(
                "draining: %d requests in progress; another SIGTERM or SIGINT breaks them off", len(services.requests)
            )
        deadline = loop.time() if ending.hurried else deadline
        async with ending.patience(deadline):
            while services.requests:
                await asyncio.wait(services.requests)
                while self._awaits_beginnings() and not services.requests:  # noqa: ASYNC110 - none of them tells
                    await asyncio.sleep(_TO_HANDLER_SECONDS)
                await asyncio.sleep(_TO_HANDLER_SECONDS)
        if services.requests:
            log.warning("draining: %d requests are broken off", len(services.requests))
            for request in list(services.requests):
                request.cancel()
            await asyncio.wait(services.requests, timeout=_ABORT_SECONDS)
            deadline = loop.time() + _REMOVAL_SECONDS
        async with ending.patience(deadline):  # the sinks tell what they leave to the next start
            for sink in services.sinks.values():
                await sink.cleaned_up()


def run(main: Coroutine[Any, Any, None], *, event_loop: str) -> None:
    """`asyncio.run` on the event loop of that name. The process is to end then: signals are ignored from there on."""
    factory = None if event_loop == "asyncio" else importlib.import_module(event_loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
        ignore_signals()


async def serve(
    settings: Settings,
    *,
    reloading: Reloading | None = None,
    started: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Serve until a signal comes, then drain. `started` is told where it listens, if it has a port. Raises OSError
    where an address cannot be had.
    """
    ending = Ending()
    settings = within_descriptors(settings)

    async def reload() -> None:
        if reloading is not None:
            await reloading.reread()
        await runner.reread_files()

    async with Repeated(reload) as reloads, running(build_app(settings), settings, ending) as runner:

        def signalled(number: int) -> None:
            if ending.is_for_files(number):
                reloads.ask()
            else:
                ending.signalled(number)

        listeners, of_management = await bound_listeners(settings)
        catch_signals(signalled)
        runner.listen(*listeners)
        if runner.management is not None:
            runner.management.listen(*of_management)
        scheme = "http" if settings.tls is None else "https"
        log.info("listening on %s", told_addresses(listeners, of_management, scheme=scheme))
        if (port := first_port(listeners)) is not None:
            started(*port)
        await ending.wait()


@asynccontextmanager
async def running(
    app: web.Application, settings: Settings, ending: Ending, shared: SharedConnections | None = None
) -> AsyncIterator[DrainingRunner]:
    """The application, ready to be listened for; on leaving it drains. `shared` is what several processes count."""
    keep_freed_buffers()
    collect_seldom()
    runner = DrainingRunner(
        app,
        drain_seconds=settings.server.drain_seconds,
        drain_delay_seconds=settings.server.drain_delay_seconds,
        hands_over=settings.server.hands_over,
        max_connections=settings.server.effective_max_connections,
        shared=shared,
        ending=ending,
        management=build_management(app, settings),
        tls=make_tls(settings),
    )
    await runner.setup()
    try:
        check_took_effect(runner, settings)
        yield runner
    finally:
        await runner.cleanup()


def collect_seldom() -> None:
    """Have the cycle collector run less often, and never over what start-up made.

    An upload of many parts makes many objects and hardly a cycle among them: by default a third of its time went
    into looking for some.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, 10, 10)


def keep_freed_buffers() -> None:
    """Tell glibc to keep what is freed for the next buffer.

    By default it gives 256 KiB, one receive call's worth, back to the system each time, and page faults cost
    more than parsing does. Elsewhere than on glibc: nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
