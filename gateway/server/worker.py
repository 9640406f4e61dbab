"""One of several processes on one port: told what to do by its parent, it serves as a single process would."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.config.messages import ConfigError
from gateway.config.settings import Settings
from gateway.server.app import build_app
from gateway.server.binding import ActivatedListener
from gateway.server.logs import LogFormat, configure_logging
from gateway.server.metrics import Metrics, share_metrics
from gateway.server.reloading import Repeated
from gateway.server.serve import DrainingRunner, run, running
from gateway.server.signals import SIGNALS, Ending, catch_signals
from gateway.server.slots import SharedCounts

__all__ = ["HURRY", "LISTENING", "RELOAD", "Orders", "work", "written"]

LISTENING = b"+"
HURRY = b"!"
RELOAD = b"r"
"""With the log level, a byte, behind it."""
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told."""

    number: int
    settings: Settings
    listeners: tuple[int, ...]
    activated: tuple[int, ...]
    """Those of the listeners that are kept for the next gateway."""
    of_management: tuple[int, ...]
    directory: Path
    log_level: int
    log_format: LogFormat

    @property
    def slots(self) -> Path:
        """The file in which slots are counted."""
        return self.directory / "slots"


def written(orders: Orders) -> bytes:
    """As they are sent to a worker, who reads no byte of what is said behind them: how long they are comes first."""
    pickled = pickle.dumps(orders)
    return len(pickled).to_bytes(_LENGTH_BYTES) + pickled


def _read_orders(channel: socket.socket) -> Orders:
    """Raises EOFError."""
    length = channel.recv(_LENGTH_BYTES, socket.MSG_WAITALL)
    orders: Orders = pickle.loads(channel.recv(int.from_bytes(length), socket.MSG_WAITALL))
    return orders


def work(descriptor: int) -> int:
    """Be a worker; `descriptor` is its end of the channel. The exit code."""
    with socket.socket(fileno=descriptor) as channel:
        channel.set_inheritable(False)
        try:
            orders = _read_orders(channel)
        except (EOFError, pickle.UnpicklingError):
            return 1  # there is no parent any more
        configure_logging(orders.log_level, log_format=orders.log_format, worker=orders.number)
        try:
            run(_work(orders, channel), event_loop=orders.settings.server.event_loop)
        except (OSError, ConfigError) as error:  # the parent has made them all, but that was before
            print(f"gateway: worker {orders.number}: {error}", file=sys.stderr)
            return 1
    return 0


async def _work(orders: Orders, channel: socket.socket) -> None:
    ending, orphaned = Ending(), asyncio.Event()
    loop = asyncio.get_running_loop()
    made: asyncio.Future[DrainingRunner] = loop.create_future()

    async def reread() -> None:
        """What was asked for before there is a runner is done then: it may have read its files already."""
        await (await made).reread_files()

    rereads = Repeated(reread)

    def signalled(number: int) -> None:
        """A terminal, or systemd, signals all: only the parent counts, and tells what there is to be read anew."""
        if not ending.is_for_files(number):
            ending.begin()

    catch_signals(signalled)

    def parent_speaks() -> None:
        word = channel.recv(1)
        if word == HURRY:
            ending.hurry()
        elif word == RELOAD:
            logging.getLogger().setLevel(channel.recv(1)[0])
            rereads.ask()
        else:
            loop.remove_reader(channel)  # its end
            orphaned.set()
            ending.begin()

    loop.add_reader(channel, parent_speaks)
    settings = orders.settings
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with _shared(orders.directory, orphaned):
        share_metrics(orders.directory, orders.number)
        shared = SharedCounts(orders.slots, number=orders.number)
        with closing(shared):
            app = build_app(settings, metrics=Metrics(orders.directory), shared=shared)
            connections = shared.connections()
            async with rereads, running(app, settings, ending, connections) as runner:
                if ending.begun:
                    return
                made.set_result(runner)
                runner.listen(*_inherited(orders.listeners, orders.activated))
                if runner.management is not None:
                    runner.management.listen(*_inherited(orders.of_management))
                connections.tell(0)
                with suppress(ConnectionError):
                    channel.send(LISTENING)
                await ending.wait()


def _inherited(descriptors: Iterable[int], activated: Container[int] = ()) -> list[socket.socket]:
    """The parent's sockets, for us alone from now on."""
    sockets = [
        ActivatedListener(fileno=descriptor) if descriptor in activated else socket.socket(fileno=descriptor)
        for descriptor in descriptors
    ]
    for one in sockets:
        one.set_inheritable(False)
    return sockets


@contextmanager
def _shared(directory: Path, orphaned: asyncio.Event) -> Iterator[None]:
    """The parent removes the directory; where there is none any more, the last worker that leaves it does."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if orphaned.is_set():
            # Who is not the last one fails, and loses its shared lock: the last one finds none.
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)
