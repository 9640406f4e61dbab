"""Settings -> an aiohttp application, and what its handlers share."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.access import Browsers, Counts, FileCounts, Holders, MemoryCounts, PostgresCounts, Quotas
from gateway.config.listening import ServerSettings
from gateway.config.make import make_sinks_and_flows
from gateway.config.messages import ConfigError
from gateway.config.policies import make_browsers, make_management_browsers, make_policies
from gateway.config.settings import Settings
from gateway.config.tracing import TracingSettings
from gateway.downloads.remote import Downloader
from gateway.http.origin import TrustedNetworks
from gateway.intake.admission import Gate, Slots
from gateway.server.board import Board
from gateway.server.handlers import add_routes
from gateway.server.measuring import looking
from gateway.server.metrics import Metrics
from gateway.server.middleware import complete_head, problems
from gateway.server.neighbours import Neighbours
from gateway.server.openapi import api_description
from gateway.server.page import Page
from gateway.server.server_timing import tell_server_timing
from gateway.server.services import SERVICES, Services
from gateway.server.slots import SharedCounts
from gateway.sinks import Sink
from gateway.sinks.store import Store

if TYPE_CHECKING:
    from gateway.server.tracing import Tracing

__all__ = ["build_app", "build_management", "check_took_effect"]

_LINGERING_SECONDS = 3
"""After an early answer the rest of the body is read and dropped for so long, so that the client gets to read it."""
_READ_WHOLE_BYTES = 65536
"""Nothing of ours reads a body whole; should something ever, it is small."""


def build_app(
    settings: Settings, *, metrics: Metrics | None = None, shared: SharedCounts | None = None
) -> web.Application:
    """The application. Raises ConfigError for sinks and flows that cannot be made, all at once.

    `metrics` and `shared` are those that several processes have together.
    """
    sinks, flows = make_sinks_and_flows(settings)
    counts = _counts(settings, shared)
    secret = secrets.token_hex() if shared is None else shared.secret
    policies = make_policies(settings, counts, secret)
    browsers = make_browsers(settings)
    tracing = _tracing(settings.tracing)
    app = _application(settings, browsers, *([] if tracing is None else [tracing.around]))
    if settings.tracing.server_timing:
        app.on_response_prepare.append(tell_server_timing)
    settings = settings.named()
    assert settings.server.name is not None
    downloader = Downloader(**settings.download.model_dump(exclude={"access"}), gateway=settings.server.name)
    metrics = metrics or Metrics()
    for sink in sinks.values():
        sink.observer = metrics
    metrics.begin_with((route.path for route in settings.routes), sinks)
    neighbours = None if shared is None else Neighbours(shared.directory, shared.number)
    board = Board(neighbours)
    hashing = ThreadPoolExecutor(2, thread_name_prefix="hash")
    app[SERVICES] = Services(
        limits=settings.limits,
        name=settings.server.name,
        gate=_gate(settings.server, shared),
        sinks=sinks,
        routes=settings.as_routes(),
        served=[*(route.path for route in settings.routes), *settings.own_paths],
        flows=flows,
        executor=hashing,
        downloader=downloader,
        metrics=metrics,
        quotas=_quotas(settings, counts, shared, sinks),
        board=board,
        page=_page(settings),
        policies=policies,
        read_policies=lambda before: make_policies(settings, counts, secret, before=before),
        description=api_description(settings) if settings.has_page else {},
        browsers=browsers,
        trusted=TrustedNetworks(settings.server.trusted_networks),
        trusted_header=settings.server.trusted_header,
        base_path=settings.server.base_path,
    )

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(tracing.end)
            stack.callback(hashing.shutdown)
            stack.callback(counts.close)
            await stack.enter_async_context(downloader)
            await stack.enter_async_context(policies)
            if neighbours is not None:
                await stack.enter_async_context(neighbours.answering(board))
            for sink in sinks.values():
                await stack.enter_async_context(sink)
            stack.enter_context(looking(metrics, app[SERVICES].gate, 0 if shared is None else shared.number))
            yield

    app.cleanup_ctx.append(running)
    add_routes(app)
    return app


def _tracing(settings: TracingSettings) -> Tracing | None:
    """What makes traces, as it is configured here and by the variables of OpenTelemetry; None where that is off, and
    then nothing of it is imported. Raises ConfigError for a variable that says nothing.
    """
    if not settings.enabled or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    from gateway.server.tracing import Tracing, make_exporter

    try:
        return Tracing(make_exporter())
    except ValueError as error:
        raise ConfigError([f"tracing: {error}"]) from error


def build_management(app: web.Application, settings: Settings) -> web.Application | None:
    """What is served at the management listener, of an application that `build_app` has made. None: nothing."""
    if settings.management.port is None:
        return None
    browsers = make_management_browsers(settings)
    management = _application(settings, browsers)
    # Requests of its own: no drain waits for them.
    management[SERVICES] = replace(app[SERVICES], served=settings.management_paths, browsers=browsers, requests=set())
    add_routes(management)
    return management


def _application(settings: Settings, browsers: Browsers, *around: Middleware) -> web.Application:
    app = web.Application(
        middlewares=[*around, problems],
        client_max_size=_READ_WHOLE_BYTES,
        handler_args=_handler_args(settings, browsers),
    )
    app.on_response_prepare.append(complete_head)
    return app


def _page(settings: Settings) -> Page | None:
    if not settings.has_page:
        return None
    access = {route.path: route.access or ("none",) for route in settings.routes}
    return Page(settings.as_routes(), settings.limits, access)


def _counts(settings: Settings, shared: SharedCounts | None) -> Counts:
    """Where it is configured, or in a file of all processes. Raises ConfigError."""
    if settings.quotas.postgres:
        return PostgresCounts(settings.quotas.postgres)
    path = Path(settings.quotas.file) if settings.quotas.file else None if shared is None else shared.counts_file
    if path is None:
        return MemoryCounts()
    try:
        return FileCounts(path)
    except OSError as error:
        raise ConfigError([f"quotas.file: {path}: {error.strerror}"]) from error


def _quotas(settings: Settings, counts: Counts, shared: SharedCounts | None, sinks: Mapping[str, Sink]) -> Quotas:
    stores = [sink for sink in sinks.values() if isinstance(sink, Store)]

    async def stored(owner: str) -> int:
        return sum([await store.stored_bytes(owner) for store in stores])

    return Quotas(
        uploads_per_address=settings.server.effective_uploads_per_address,
        reads_per_address=settings.server.effective_reads_per_address,
        uploads=settings.quotas.uploads,
        requests_per_minute=settings.quotas.requests_per_minute,
        bytes_per_day=settings.quotas.bytes_per_day,
        stored_bytes=settings.quotas.stored_bytes,
        stored=stored,
        counts=counts,
        holders=Holders() if shared is None else shared.holders(),
    )


def _gate(server: ServerSettings, shared: SharedCounts | None) -> Gate:
    return Gate(
        Slots("uploads", server.max_uploads, None if shared is None else shared.uploads(server.max_uploads)),
        Slots("reads", server.max_reads, None if shared is None else shared.reads(server.max_reads)),
    )


def _handler_args(settings: Settings, browsers: Browsers) -> dict[str, Any]:
    """What aiohttp makes the handler of each connection with."""
    return {
        "read_bufsize": settings.server.read_buffer_bytes,
        "max_head_bytes": settings.server.max_head_bytes,
        "base_path": settings.server.base_path,
        "browsers": browsers,
        "lingering_time": _LINGERING_SECONDS,
        "keepalive_timeout": settings.server.keepalive_seconds,
        "head_seconds": settings.server.head_seconds,
        "handler_cancellation": False,  # a commit is not to be torn by a hang-up; reads notice it
        "access_log": None,  # the upload's own line says more
    }


def check_took_effect(runner: web.AppRunner, settings: Settings) -> None:
    """Raises RuntimeError where a setting of aiohttp's is misspelt, or is not what connections get."""
    server = runner.server
    assert server is not None
    try:
        handler = server()  # a connection's, made as the server makes one
    except TypeError as error:
        raise RuntimeError(f"the server's settings did not take effect: {error}") from error
    found = {
        "read_bufsize": handler._read_bufsize,
        "lingering_time": handler._lingering_time,
        "keepalive_timeout": handler._keepalive_timeout,
        "max_head_bytes": server._kwargs.get("max_head_bytes"),
        "head_seconds": server._kwargs.get("head_seconds"),
        "base_path": server._kwargs.get("base_path"),
        "browsers": server._kwargs.get("browsers"),
        "client_max_size": runner.app._client_max_size,
    }
    wanted = {**_handler_args(settings, make_browsers(settings)), "client_max_size": _READ_WHOLE_BYTES}
    if wrong := {name: value for name, value in found.items() if value != wanted[name]}:
        raise RuntimeError(f"the server's settings did not take effect: {wrong}")
