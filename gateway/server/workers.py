"""Several processes on one port: a parent that serves nothing, and workers, which it starts, watches and replaces.

1. The parent binds the port, and never accepts. The workers inherit its listener: there is one queue of
   connections. (With SO_REUSEPORT each worker has a queue of its own: the kernel fills them by a hash, be
   they busy or idle, what waits in one is lost with its worker, and a second gateway on the port is no error.)
2. A worker is a fresh interpreter (what has threads must not fork), with a number that its successor gets.
3. Parent and worker hold the two ends of a socket pair. It carries what the worker has to do, one byte when it
   listens, and one when what it does is to be broken off; its end tells each of them that the other one is gone. A
   worker without a parent drains.
4. SIGTERM and SIGINT end the parent, and SIGHUP of a terminal that closed: it sends SIGTERM to the workers, which drain
   as a single process does, and closes its listener. Ctrl-C reaches the workers by itself, too; for them a second
   signal is none: that the parent got one, it tells them through the socket pair. Until a worker can handle signals
   they are blocked, and wait. The management listener stays open until the last worker has ended: any of them answers
   there. Any other SIGHUP has the parent read the configuration anew; then it tells each worker the log level, and to
   read its files.
5. What counts for all of them lies in a directory of temporary files: upload slots, metrics, and the sockets by which
   they ask each other how far an upload is (neighbours.py).
6. A worker that ends is replaced, after a pause that grows while they are short-lived. If one cannot start at
   first, or several in a row later, nobody can: the parent gives up.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.config.make import make_sinks_and_flows, make_tls
from gateway.config.settings import Settings
from gateway.server.binding import ActivatedListener, bound_listeners, first_port, told_addresses
from gateway.server.descriptors import within_descriptors
from gateway.server.logs import LogFormat
from gateway.server.metrics import forget_process
from gateway.server.reloading import Reloading, Repeated
from gateway.server.signals import SIGNALS, Ending, catch_signals
from gateway.server.slots import clear_slots, make_slots
from gateway.server.worker import HURRY, LISTENING, RELOAD, Orders, written

__all__ = ["WorkersFailed", "supervise"]

log = logging.getLogger("gateway.workers")

_BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[2:]; from gateway.server.worker import work; sys.exit(work(int(sys.argv[1])))"
)
"""The parent's modules, wherever it found them."""
_MOST_FAILURES = 5
"""In a row; a machine that is short of memory for a moment gets over that."""
_SHORT_PAUSE_SECONDS, _LONG_PAUSE_SECONDS = 0.1, 10.0
_SHORT_LIFE_SECONDS = 60
_PATIENCE_SECONDS = 30
"""Beyond `drain_seconds`: then a worker hangs, and is killed."""


class WorkersFailed(Exception):
    """They could not be started, or did not end well."""


async def supervise(
    settings: Settings,
    *,
    log_format: LogFormat = "auto",
    reloading: Reloading | None = None,
    started: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Serve with workers until a signal comes, then let them drain. `started` is told where they listen, if at a port.

    Raises OSError where an address cannot be had, ConfigError, WorkersFailed.
    """
    settings = within_descriptors(settings)
    make_tls(settings)
    make_sinks_and_flows(settings)  # what cannot be made is said once, and before anything runs
    with ExitStack() as stack:
        listeners, of_management = await bound_listeners(settings)
        for listener in (*listeners, *of_management):
            stack.enter_context(listener)
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="gateway-", ignore_cleanup_errors=True)))
        await _Parent(settings, listeners, of_management, directory, log_format, reloading, started).run()


class _Parent:
    def __init__(
        self,
        settings: Settings,
        listeners: list[socket.socket],
        of_management: list[socket.socket],
        directory: Path,
        log_format: LogFormat,
        reloading: Reloading | None,
        started: Callable[[str, int], None],
    ) -> None:
        self._settings = settings.named()  # together they are one gateway
        self._listeners = listeners
        self._of_management = of_management
        self._directory = directory
        self._log_format = log_format
        self._reloading = reloading
        self._reloads = Repeated(self._reload)
        self._started = started
        self._ending = Ending()
        self._one_at_a_time = asyncio.Lock()
        self._running: dict[int, tuple[Process, socket.socket]] = {}
        self._listening: set[int] = set()
        self._announced = False
        self._failures = 0
        self._problem: str | None = None

    async def run(self) -> None:
        """Keep the workers running until a signal comes, then let them drain. Raises WorkersFailed."""
        catch_signals(self._signalled)
        make_slots(self._orders(0).slots, processes=self._settings.server.workers)
        async with self._reloads, asyncio.TaskGroup() as group:
            for number in range(self._settings.server.workers):
                group.create_task(self._keep(number))
            await self._ending.wait()
            log.info("draining; another SIGTERM or SIGINT breaks off what is in progress")
            self._send(signal.SIGTERM)
            server, loop = self._settings.server, asyncio.get_running_loop()
            seconds = server.drain_delay_seconds + server.drain_seconds + _PATIENCE_SECONDS
            patience = loop.call_later(seconds, self._send, signal.SIGKILL)
            if server.drain_delay_seconds:
                async with self._ending.patience(loop.time() + server.drain_delay_seconds):
                    await asyncio.Event().wait()
            for listener in self._listeners:
                listener.close()
        patience.cancel()
        if self._problem is not None:
            raise WorkersFailed(self._problem)

    def _orders(self, number: int) -> Orders:
        return Orders(
            number,
            self._settings,
            tuple(listener.fileno() for listener in self._listeners),
            tuple(one.fileno() for one in self._listeners if isinstance(one, ActivatedListener)),
            tuple(listener.fileno() for listener in self._of_management),
            self._directory,
            logging.getLogger().level,
            self._log_format,
        )

    def _signalled(self, number: int) -> None:
        if self._ending.is_for_files(number):
            self._reloads.ask()
            return
        was_hurried = self._ending.hurried
        self._ending.signalled(number)
        if self._ending.hurried and not was_hurried:
            log.info("draining: what is left is broken off")
            self._tell(HURRY)

    async def _reload(self) -> None:
        if self._reloading is not None:
            await self._reloading.reread()
        self._tell(RELOAD + bytes([logging.getLogger().level]))

    def _tell(self, message: bytes) -> None:
        for _, channel in self._running.values():
            with suppress(OSError):
                channel.send(message)

    def _send(self, number: signal.Signals) -> None:
        for process, _ in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int) -> None:
        """Let there be a worker of this number until the end."""
        pause_seconds = _SHORT_PAUSE_SECONDS
        while not self._ending.begun:
            began = time.monotonic()
            try:
                how = await self._one(number)
            except OSError as error:
                if self._ending.begun:
                    return  # the listeners are closed already
                how = f"cannot be started: {error}"
            extra = {"worker": number}
            if self._ending.begun:
                if how != "exit code 0":
                    self._problem = self._problem or f"worker {number} did not end well: {how}"
                return
            if number in self._listening:
                self._listening.discard(number)
                log.warning("worker %d ended (%s), and is replaced", number, how, extra=extra)
            else:
                log.error("worker %d did not start (%s)", number, how, extra=extra)
                self._failures += 1
                if self._failures >= (_MOST_FAILURES if self._announced else 1):
                    self._problem = f"worker {number} did not start: {how}"
                    self._ending.begin()
                    return
            if time.monotonic() - began >= _SHORT_LIFE_SECONDS:
                pause_seconds = _SHORT_PAUSE_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._ending.wait()
            pause_seconds = min(2 * pause_seconds, _LONG_PAUSE_SECONDS)

    async def _one(self, number: int) -> str:
        """One worker, from its start to its end; how it ended. Raises OSError where it cannot be started."""
        orders = self._orders(number)
        loop = asyncio.get_running_loop()
        try:
            async with self._process(orders) as (process, channel):
                with suppress(ConnectionError):
                    await loop.sock_sendall(channel, written(orders))
                    if await loop.sock_recv(channel, 1) == LISTENING:
                        self._listens(number, process.pid)
                code = await process.wait()
        finally:
            clear_slots(orders.slots, number)
            forget_process(orders.directory, number)
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    @asynccontextmanager
    async def _process(self, orders: Orders) -> AsyncIterator[tuple[Process, socket.socket]]:
        """A worker and our end of its channel; left while it runs, it drains."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            async with self._one_at_a_time:
                with theirs, _blocked_signals():
                    process = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), *sys.path),
                        stdin=asyncio.subprocess.DEVNULL,
                        pass_fds=(theirs.fileno(), *orders.listeners, *orders.of_management),
                    )
            self._running[orders.number] = process, ours
            try:
                if self._ending.begun:  # since it was being started
                    self._send(signal.SIGTERM)
                yield process, ours
            finally:
                del self._running[orders.number]

    def _listens(self, number: int, pid: int) -> None:
        self._failures = 0
        self._listening.add(number)
        log.info("worker %d listens", number, extra={"worker": number, "pid": pid})
        if self._announced or len(self._listening) < self._settings.server.workers or self._ending.begun:
            return
        self._announced = True
        log.info(
            "listening on %s",
            told_addresses(
                self._listeners, self._of_management, scheme="http" if self._settings.tls is None else "https"
            ),
        )
        if (port := first_port(self._listeners)) is not None:
            self._started(*port)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """What is started meanwhile inherits that. Not for two at a time: the first to leave would unblock both."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
