"""`gateway serve` and `gateway receiver`: what runs until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from aiohttp import web

from gateway.cli.arguments import add_config
from gateway.config.environment import unknown_variables
from gateway.config.load import load
from gateway.config.policies import open_to_others
from gateway.config.settings import Settings
from gateway.config.sinks import RelaySettings
from gateway.http.urls import authority
from gateway.server.demo_destination import receiver_app
from gateway.server.logs import LOG_FORMATS, LogFormat, configure_logging
from gateway.server.reloading import Reloading
from gateway.server.serve import run as run_in_loop
from gateway.server.serve import serve
from gateway.server.signals import until_signalled
from gateway.server.workers import supervise

__all__ = ["add_arguments", "run"]

log = logging.getLogger("gateway.config")


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Those of the command."""
    if command == "receiver":
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8081)
        return
    parser.add_argument(
        "--with-receiver",
        type=int,
        metavar="PORT",
        help="run the demo destination, too, and relay to it",
    )
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="auto",
        help="lines for people, or JSON (default: for people on a terminal, else JSON)",
    )
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    """Until a signal comes. Raises ConfigError, OSError, WorkersFailed."""
    log_format: LogFormat = getattr(options, "log_format", "auto")
    configure_logging(options.log_level or "INFO", log_format=log_format)
    if options.command == "receiver":
        asyncio.run(_receiver(options.host, options.port))
        return 0
    read = partial(_configured, options)
    settings = read()
    logging.getLogger().setLevel(settings.server.log_level)
    for variable in unknown_variables(settings.model_dump()):
        log.warning("%s is no variable of the gateway's", variable)
    if warning := open_to_others(settings):
        log.warning(warning)
    # the parent of workers waits for processes, which any loop can
    event_loop = settings.server.event_loop if settings.server.workers == 1 else "asyncio"
    serving = _serve(settings, read, log_format=log_format, receiver_port=options.with_receiver)
    run_in_loop(serving, event_loop=event_loop)
    return 0


def _configured(options: argparse.Namespace) -> Settings:
    """What is configured now; the command line has the last word. Raises ConfigError."""
    settings = load(options.config)
    if options.log_level is None:
        return settings
    server = settings.server.model_copy(update={"log_level": options.log_level})
    return settings.model_copy(update={"server": server})


async def _serve(
    settings: Settings, read: Callable[[], Settings], *, log_format: LogFormat, receiver_port: int | None
) -> None:
    reloading = Reloading(settings, read)
    serve_all = partial(serve, reloading=reloading)
    if settings.server.workers > 1:
        serve_all = partial(supervise, reloading=reloading, log_format=log_format)
    async with AsyncExitStack() as stack:
        if receiver_port is None:
            await serve_all(settings)
            return
        receiver = await _start_receiver("127.0.0.1", receiver_port)
        stack.push_async_callback(receiver.cleanup)
        api = settings.sinks.get("api")
        if isinstance(api, RelaySettings):
            url = f"http://127.0.0.1:{receiver.addresses[0][1]}/upload"
            settings = settings.model_copy(
                update={"sinks": {**settings.sinks, "api": api.model_copy(update={"url": url})}}
            )
        await serve_all(settings, started=partial(_print_examples, settings))


def _print_examples(settings: Settings, host: str, port: int) -> None:
    gateway = f"http://{authority('127.0.0.1' if host in ('0.0.0.0', '::') else host, port)}"
    print(
        "\nTry it in another terminal:\n"
        f"  curl -F file=@README.md -F file=@LICENSE {gateway}/upload\n"
        f"  curl -T README.md {gateway}/upload/\n"
        f"  curl -F file=@README.md -F file=@LICENSE {gateway}/proxy\n"
        f"  curl -F file=@README.md '{gateway}/proxy?status=503'\n"
        f"  curl -F file=@README.md {gateway}/both\n"
        f"  curl -F file=@README.md -F file=@LICENSE {gateway}/convert\n"
        + (f"  curl {gateway}/metrics\n" if "/metrics" in settings.own_paths else "")
        + (f"or in a browser: {gateway}/\n" if settings.has_page else ""),
        flush=True,
    )


async def _receiver(host: str, port: int) -> None:
    runner = await _start_receiver(host, port)
    try:
        print(f"the demo destination listens on http://{authority(host, runner.addresses[0][1])}", flush=True)
        await until_signalled()
    finally:
        await runner.cleanup()


async def _start_receiver(host: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(receiver_app(), shutdown_timeout=1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
