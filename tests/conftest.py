"""Gateways and destinations on real sockets, in this process (quick) or in one of their own (for signals, memory)."""

from __future__ import annotations

import logging
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.config.make import make_tls
from gateway.config.settings import DEFAULT_ROUTES, Settings
from gateway.server.app import build_app, build_management, check_took_effect
from gateway.server.binding import bound_sockets
from gateway.server.demo_destination import receiver_app
from gateway.server.serve import DrainingRunner
from gateway.server.services import SERVICES, Services

__all__ = ["Destination", "RunningGateway", "StartDestination", "StartGateway"]


class RunningGateway:
    """A gateway in this process. `root` is the directory of its default disk sink."""

    def __init__(self, runner: DrainingRunner, root: Path) -> None:
        self.runner = runner
        self.root = root
        self.host, self.port = runner.addresses[0][:2]
        self.url = f"http://{self.host}:{self.port}"

    @property
    def services(self) -> Services:
        return self.runner.app[SERVICES]

    def stored(self) -> list[Path]:
        """Whatever lies under the root, temporary directories included."""
        return sorted(self.root.rglob("*"))


class Destination:
    """A server on a real socket that a relay can be pointed at."""

    def __init__(self, runner: web.AppRunner) -> None:
        self.runner = runner
        self.host, self.port = runner.addresses[0][:2]
        self.url = f"http://{self.host}:{self.port}"


_START_SERVERS = {"start_gateway", "start_destination"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests whose fixtures start servers open sockets (`make check` leaves them out). Others say so themselves."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if _START_SERVERS & item._fixtureinfo.name2fixturedefs.keys():
            item.add_marker(pytest.mark.sockets)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run tests (`--numprocesses`), some tests stay together."""
    from tests.support.schedule import TogetherScheduling

    return TogetherScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True)
def _sockets_only_where_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that is not marked `sockets`, and needs them all the same, fails."""
    if request.node.get_closest_marker("sockets") is not None:
        yield
        return

    def refuse(*arguments: object, **keywords: object) -> None:
        pytest.fail("this test opens a socket or starts a process: mark it with pytest.mark.sockets")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "bind", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(subprocess.Popen, "__init__", refuse)
        yield


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A test that configures the log, as the command line does, leaves no handler of a stream that is closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class _Tracebacks(logging.Handler):
    """What was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.logged: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, HttpProcessingError):  # of destinations: the gateway logs none
            self.logged.append(f"{record.name}: {record.getMessage()}: {error!r}")


@pytest.fixture(autouse=True)
def _no_tracebacks_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """No request's fault logs a traceback, and nothing that the system does to us: only mistakes in code do."""
    tracebacks = _Tracebacks()
    logging.getLogger().addHandler(tracebacks)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(tracebacks)
    if request.node.get_closest_marker("tracebacks") is None:
        assert tracebacks.logged == []


StartGateway = Callable[..., Awaitable[RunningGateway]]
StartDestination = Callable[..., Awaitable[Destination]]


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """`await start_gateway(limits={...}, sinks={...}, routes=[...], api="http://…")`: keys as in the TOML file.

    `api` is the URL of the default relay sink. fsync is off unless asked for: most tests are not about it. Beside its
    routes the default ones are there, unless the paths are the same.
    """
    counter = count()
    async with AsyncExitStack() as stack:

        async def start(*, api: str | None = None, fsync: bool = False, **document: Any) -> RunningGateway:
            root = tmp_path / f"uploads-{len(list(tmp_path.iterdir()))}"
            sinks = {"disk": {"root": str(root), "fsync": fsync}, **document.pop("sinks", {})}
            if api is not None:
                sinks["api"] = {"url": api, **sinks.get("api", {})}
            name = f"gateway-{number}" if (number := next(counter)) else "gateway"
            # all clients have one address here
            usual = {"drain_seconds": 2, "name": name, "max_uploads_per_address": 0}
            server = {**usual, **document.pop("server", {})}
            if routes := document.get("routes"):
                taken = [route["path"] for route in routes]
                document["routes"] = [*routes, *(route for route in DEFAULT_ROUTES if route["path"] not in taken)]
            settings = Settings(**{**document, "server": server, "sinks": sinks})
            app = build_app(settings)
            runner = DrainingRunner(
                app,
                drain_seconds=settings.server.drain_seconds,
                max_connections=settings.server.effective_max_connections,
                tls=make_tls(settings),
                management=build_management(app, settings),
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            check_took_effect(runner, settings)
            runner.listen(*await bound_sockets("127.0.0.1", server.get("port", 0)))
            if runner.management is not None:
                runner.management.listen(*await bound_sockets("127.0.0.1", 0))
            return RunningGateway(runner, root)

        yield start


@pytest.fixture
async def start_destination() -> AsyncIterator[StartDestination]:
    """`await start_destination()` is the demo receiver; `await start_destination(app)` any application."""
    async with AsyncExitStack() as stack:

        async def start(app: web.Application | None = None) -> Destination:
            runner = web.AppRunner(receiver_app() if app is None else app, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return Destination(runner)

        yield start
