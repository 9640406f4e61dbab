"""Settings -> an aiohttp application, its sinks and flows made, and what the handlers share."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from aiohttp import web

from gateway.config.load import ConfigError
from gateway.config.settings import BUILT_IN_FLOWS, FlowSettings, Settings
from gateway.config.sinks import DiscardSettings, DiskSettings, OwnSinkSettings, RelaySettings
from gateway.downloads.remote import Downloader
from gateway.flows import Flow
from gateway.http.answers import strip_aiohttp_headers
from gateway.http.forwarding import HeaderRules, TrustedNetworks
from gateway.intake.admission import Gate, UploadSlots
from gateway.model import Limits
from gateway.server.handlers import add_request_id, add_routes, problems
from gateway.server.metrics import Metrics
from gateway.server.services import SERVICES, Services
from gateway.sinks import Sink
from gateway.sinks.discard import DiscardSink
from gateway.sinks.disk.sink import DiskSink
from gateway.sinks.relay.sending.connect import Connecting, TlsFileError, tls_context
from gateway.sinks.relay.sink import RelaySink

__all__ = ["build_app", "check_took_effect"]

_KEEPALIVE_SECONDS = 30
"""Bounds idle connections, and how long a client may take over its headers: aiohttp has no other clock for those."""
_LINGERING_SECONDS = 3
"""After an early answer the rest of the body is read and dropped for so long, so that the client gets to read it."""
_READ_WHOLE_BYTES = 65536
"""Nothing of ours reads a body whole; should something ever, it is small."""


def build_app(
    settings: Settings, *, metrics: Metrics | None = None, slots: UploadSlots | None = None
) -> web.Application:
    """The application. Raises ConfigError for sinks and flows that cannot be made, all at once.

    `metrics` and `slots` are those that several processes share.
    """
    routes = settings.as_routes()
    named = {*settings.flows, *(flow for route in routes for rule in route.rules for flow in rule.flows)}
    problems_found: list[str] = []
    sinks: dict[str, Sink] = {}
    flows: dict[str, Flow] = {}
    for name, sink in settings.sinks.items():
        with _collected(problems_found):
            sinks[name] = _sink(name, sink, settings.limits)
    for name in sorted(named):
        with _collected(problems_found):
            flows[name] = _flow(name, settings.flows.get(name, FlowSettings()))
    for number, route in enumerate(routes):
        problems_found += [
            f'routes.{number}.keep: "each" needs sinks that can drop one part, and {name} has no can_drop = True'
            for name in route.sinks
            if route.keep_each and name in sinks and not sinks[name].can_drop
        ]
    if problems_found:
        raise ConfigError(problems_found)
    app = web.Application(
        middlewares=[problems],
        client_max_size=_READ_WHOLE_BYTES,
        handler_args={
            "read_bufsize": settings.server.read_buffer_bytes,
            "auto_decompress": False,
            "lingering_time": _LINGERING_SECONDS,
            "keepalive_timeout": _KEEPALIVE_SECONDS,
            "handler_cancellation": False,  # a commit is not to be torn by a hang-up; reads notice it
            "access_log": None,  # the upload's own line says more
        },
    )
    downloader = Downloader(**settings.download.model_dump())
    hashing = ThreadPoolExecutor(2, thread_name_prefix="hash")
    app[SERVICES] = Services(
        limits=settings.limits,
        gate=Gate(settings.server.max_uploads, slots),
        sinks=sinks,
        routes=routes,
        flows=flows,
        executor=hashing,
        downloader=downloader,
        metrics=metrics or Metrics(),
        trusted=TrustedNetworks(settings.server.trusted_networks),
    )

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(hashing.shutdown)
            await stack.enter_async_context(downloader)
            for sink in sinks.values():
                await stack.enter_async_context(sink)
            yield

    app.cleanup_ctx.append(running)
    app.on_response_prepare.append(strip_aiohttp_headers)
    app.on_response_prepare.append(add_request_id)
    add_routes(app)
    return app


@contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        found += error.problems


def check_took_effect(runner: web.AppRunner, settings: Settings) -> None:
    """aiohttp drops all handler arguments, with a warning only, where one of them is misspelt."""
    server = runner.server
    assert server is not None
    # a connection's handler, made as the server makes one
    handler = server()
    found = {
        "read_bufsize": handler._read_bufsize,
        "lingering_time": handler._lingering_time,
        "keepalive_timeout": handler._keepalive_timeout,
        "auto_decompress": server._kwargs.get("auto_decompress"),  # the parser does not tell, but took what follows
        "client_max_size": runner.app._client_max_size,
    }
    wanted = {
        "read_bufsize": settings.server.read_buffer_bytes,
        "lingering_time": _LINGERING_SECONDS,
        "keepalive_timeout": _KEEPALIVE_SECONDS,
        "auto_decompress": False,
        "client_max_size": _READ_WHOLE_BYTES,
    }
    if found != wanted:
        raise RuntimeError(f"the server's settings did not take effect: {found}, wanted {wanted}")


def _sink(
    name: str, settings: DiskSettings | RelaySettings | DiscardSettings | OwnSinkSettings, limits: Limits
) -> Sink:
    match settings:
        case DiskSettings():
            return DiskSink(name=name, root=settings.root, fsync=settings.fsync, keep_seconds=settings.keep_seconds)
        case RelaySettings():
            return _relay(name, settings, limits)
        case DiscardSettings():
            return DiscardSink(name=name)
        case OwnSinkSettings():
            return _own_sink(name, settings)


def _relay(name: str, settings: RelaySettings, limits: Limits) -> RelaySink:
    """Clocks that are not set are what any sink has."""
    options = settings.model_dump(exclude={"type", "url", "urls", *_CONNECTING, *_RULES})
    if not settings.all_urls:
        raise ConfigError([f"sinks.{name}.url: needed, or urls"])
    for clock in ("write_seconds", "first_byte_seconds", "read_seconds"):
        if options[clock] is None:
            options[clock] = limits.stall_seconds
    return RelaySink(
        name=name,
        urls=settings.all_urls,
        parallel_parts=limits.parallel_parts,
        connecting=_connecting(name, settings),
        rules=_rules(settings),
        **options,
    )


_CONNECTING = ("max_connections", "keepalive_seconds", "tls")
_RULES = ("forward_cookies", "forward_authorization", "headers")


def _connecting(name: str, settings: RelaySettings) -> Connecting:
    tls, context = settings.tls, None
    if tls is not None:
        try:
            context = tls_context(ca=tls.ca, cert=tls.cert, key=tls.key, verify=tls.verify)
        except TlsFileError as error:
            raise ConfigError([f"sinks.{name}.tls.{error.key}: {error}"]) from error
    return Connecting(
        max_connections=settings.max_connections,
        keepalive_seconds=settings.keepalive_seconds,
        tls=context,
        server_name=tls.server_name if tls else None,
    )


def _rules(settings: RelaySettings) -> HeaderRules:
    return HeaderRules(
        forward_cookies=settings.forward_cookies,
        forward_authorization=settings.forward_authorization,
        headers=list(settings.headers.items()),
    )


def _flow(name: str, settings: FlowSettings) -> Flow:
    """A flow by its name, or by its dotted path; its options are checked against its signature."""
    path = settings.use or BUILT_IN_FLOWS.get(name, name)
    try:
        function = _import(path)
        if inspect.iscoroutinefunction(function):
            raise TypeError("it is a coroutine function, so it yields nothing: a flow has a `yield`")
        inspect.signature(function).bind(None, None, **settings.options)
        if hasattr(function, "check"):
            function.check(**settings.options)
    except Exception as error:
        raise ConfigError([f"flows.{name}: {error}"]) from error
    return Flow(name, function, settings.options)


def _import(path: str) -> Any:
    """What `package.module:name` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own_sink(name: str, settings: OwnSinkSettings) -> Sink:
    """A sink of the user's, by its dotted path. It has its `name`, and is told it if it asks for it."""
    try:
        make = _import(settings.type)
        arguments = settings.arguments
        if "name" in inspect.signature(make).parameters:
            arguments.setdefault("name", name)
        sink = make(**arguments)
    except Exception as error:
        raise ConfigError([f"sinks.{name}: {settings.type} cannot be made: {error!r}"]) from error
    if not isinstance(sink, Sink):
        raise ConfigError([f"sinks.{name}: {settings.type} does not derive from gateway.sinks.Sink, so it is no sink"])
    sink.name = name
    return sink
