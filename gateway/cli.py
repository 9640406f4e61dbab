"""The command line: `gateway serve | check | explain | key new | sign | receiver | send | get`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.access import SCOPES, new_key, read_secrets, seconds_of, signed_url, size_of
from gateway.client import add_commands, run_client
from gateway.config.doubts import doubts
from gateway.config.environment import unknown_variables
from gateway.config.load import load
from gateway.config.make import make_sinks_and_flows, make_tls
from gateway.config.memory import connection_bound_bytes, memory_bound_bytes, read_bound_bytes, unlimited_keys
from gateway.config.messages import ConfigError
from gateway.config.policies import make_policies, open_to_others
from gateway.config.settings import Settings
from gateway.config.sinks import RelaySettings
from gateway.errors import GatewayError
from gateway.http.urls import authority
from gateway.model import Part
from gateway.server.alive import ask_alive
from gateway.server.demo_destination import receiver_app
from gateway.server.logs import LOG_FORMATS, LogFormat, configure_logging
from gateway.server.probing import probe
from gateway.server.serve import run, serve
from gateway.server.signals import until_signalled
from gateway.server.workers import WorkersFailed, supervise
from gateway.upload.routes import Route, Rule

__all__ = ["main"]

log = logging.getLogger("gateway.config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 (it could not run), 2 (the configuration or the command line is wrong); `send` and `get` have
    more of them.
    """
    options = _parser().parse_args(arguments)
    log_format: LogFormat = getattr(options, "log_format", "auto")
    configure_logging(options.log_level, log_format=log_format)
    try:
        match options.command:
            case "serve":
                settings = load(options.config)
                for variable in unknown_variables(settings.model_dump()):
                    log.warning("%s is no variable of the gateway's", variable)
                if warning := open_to_others(settings):
                    log.warning(warning)
                # the parent of workers waits for processes, which any loop can
                event_loop = settings.server.event_loop if settings.server.workers == 1 else "asyncio"
                serving = _serve(settings, log_format=log_format, receiver_port=options.with_receiver)
                run(serving, event_loop=event_loop)
            case "check":
                settings = load(options.config)
                if options.alive:
                    print(f"alive at {ask_alive(settings)}")
                    return 0
                _check(settings)
                return asyncio.run(_probe(settings)) if options.probe else 0
            case "explain":
                return _explain(load(options.config), options)
            case "key":
                return _new_key(options)
            case "sign":
                return _sign(load(options.config), options)
            case "send" | "get":
                return run_client(options)
            case "receiver":
                asyncio.run(_receiver(options.host, options.port))
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1  # whoever reads our output has enough
    except socket.gaierror as error:
        print(f"gateway: server.host: {error.strerror}", file=sys.stderr)
        return 1
    except (OSError, WorkersFailed) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


class _Once(argparse.Action):
    """A file that is named twice is two configurations, of which one would be passed over."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="A streaming multipart relay gateway.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the gateway")
    serve.add_argument(
        "--with-receiver",
        type=int,
        metavar="PORT",
        help="run the demo destination, too, and relay to it",
    )
    serve.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="auto",
        help="lines for people, or JSON (default: for people on a terminal, else JSON)",
    )
    check = commands.add_parser(
        "check", help="is the configuration valid, and what does it mean? memory, routes, warnings"
    )
    only = check.add_mutually_exclusive_group()
    only.add_argument(
        "--alive", action="store_true", help="only ask whether a gateway of this configuration answers on this machine"
    )
    only.add_argument(
        "--probe", action="store_true", help="open each sink, too; write, read and remove something in each store"
    )
    explain = commands.add_parser("explain", help="say which rule takes a file")
    explain.add_argument("--path", default="/upload", help="the route's path (default: %(default)s)")
    explain.add_argument("--name", default="file", help="the part's name (default: %(default)s)")
    explain.add_argument("--filename", default="", help="the part's file name")
    explain.add_argument("--content-type", default=None, help="the part's type")
    for command in (serve, check, explain):
        command.add_argument("--config", metavar="FILE", action=_Once, help="a TOML file (default: built-in defaults)")
    _add_access_commands(commands)
    add_commands(commands)
    receiver = commands.add_parser("receiver", help="run the demo destination")
    receiver.add_argument("--host", default="127.0.0.1")
    receiver.add_argument("--port", type=int, default=8081)
    return parser


def _add_access_commands(commands: Any) -> None:
    key = commands.add_parser("key", help="API keys").add_subparsers(dest="key_command", required=True)
    new = key.add_parser("new", help="make one: it is printed now and never again, with the line for the keys file")
    new.add_argument("--name", required=True, type=_key_name, help="whose it is")
    new.add_argument("--scope", action="append", choices=SCOPES, help="what for; several are possible (default: all)")
    new.add_argument("--expires", type=_unit(seconds_of), metavar="TIME", help="how long it is good for, such as 90d")
    sign = commands.add_parser("sign", help="print a url with which somebody may do one thing for a while")
    sign.add_argument("--config", metavar="FILE", help="a TOML file with [access.signed]")
    sign.add_argument(
        "--route", required=True, help="/upload, or what is to be read: /files/{id}/{index}, /uploads/{id}"
    )
    sign.add_argument("--expires", required=True, type=_unit(seconds_of), metavar="TIME", help="90s, 30m, 1h, 7d")
    sign.add_argument("--max-bytes", type=_unit(size_of), metavar="SIZE", help="of the body: 500k, 20M, 1G")
    sign.add_argument("--types", action="append", default=[], metavar="GLOB", help="media types of files: image/*")
    sign.add_argument("--count", type=_count, default=0, help="how often (default: as often as they like)")
    sign.add_argument("--name", type=_file_name, help="the only file name")
    sign.add_argument("--identity", default="", help="whose the upload is to be, as manifests call it: key:ci")
    sign.add_argument(
        "--base", default="", metavar="URL", help="what stands before the path: https://files.example.org"
    )


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError("it can be used once, or oftener")
    return int(text)


def _file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a file has a name")
    return text


def _unit(parse: Callable[[str], float]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _key_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", name):
        raise argparse.ArgumentTypeError("a name has letters, digits, - and _, 64 at most")
    return name


def _new_key(options: argparse.Namespace) -> int:
    ends = datetime.now(UTC) + timedelta(seconds=options.expires) if options.expires is not None else None
    key, line = new_key(options.name, tuple(options.scope or SCOPES), ends)
    print(key)
    print(f"# the line for the keys file:\n{line}")
    return 0


def _sign(settings: Settings, options: argparse.Namespace) -> int:
    signed = settings.access.signed
    if signed is None:
        print("gateway: access.signed.secrets_file: needed, for there is nothing to sign with", file=sys.stderr)
        return 2
    if wrong := _unsignable(settings, options.route):
        print(f"gateway: --route: {wrong}", file=sys.stderr)
        return 2
    try:
        keys = read_secrets(signed.secrets_file)
    except (OSError, ValueError) as error:
        print(f"gateway: access.signed.secrets_file: {error}", file=sys.stderr)
        return 2
    url = signed_url(
        keys,
        options.route,
        expires_seconds=options.expires,
        max_bytes=options.max_bytes,
        types=options.types,
        count=options.count,
        name=options.name,
        identity=options.identity,
    )
    print(options.base.rstrip("/") + settings.server.base_path + url)
    return 0


_SIGNED_READ = re.compile(r"/uploads/[0-9A-Z]{26}(/archive\.zip)?|/files/[0-9A-Z]{26}/[0-9]+")

_SIGNED_ROUTE = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def _unsignable(settings: Settings, route: str) -> str | None:
    """Why nobody could use a url of this route. Whoever signs may have the secret, and not the routes."""
    takes = [one.path for one in settings.routes if "signed" in (one.access or ())]
    if _SIGNED_READ.fullmatch(route) or route in takes:
        return None
    if settings.routes == Settings().routes and _SIGNED_ROUTE.fullmatch(route):
        return None
    listed = ", ".join(takes) or "none"
    return f"{route} is no route with signed in its access ({listed}), nor /uploads/{{id}} or /files/{{id}}/{{index}}"


async def _serve(settings: Settings, *, log_format: LogFormat, receiver_port: int | None) -> None:
    serve_all = serve if settings.server.workers == 1 else partial(supervise, log_format=log_format)
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


def _check(settings: Settings) -> None:
    _, flows = make_sinks_and_flows(settings)
    make_tls(settings)
    make_policies(settings)  # what cannot be read is said
    print("the configuration is valid")
    _print_bound(settings)
    server, management = settings.server, settings.management
    below = f", and below {server.base_path}" if server.base_path else ""
    scheme = "http" if settings.tls is None else "https"
    print(f"at {scheme}://{authority(server.host, server.port)}{below}:")
    for route in settings.as_routes():
        told = [_told(route, rule) for rule in route.rules] or ["no file"]
        print(f"{route.path} ({route.kind}):", *told, sep=" " if len(told) == 1 else "\n    ")
    print(f"also served: {', '.join(settings.own_paths)}")
    if management.port is not None:
        at = f"http://{authority(management.host, management.port)}"
        print(f"for management at {at}: {', '.join(settings.management_paths)}")
    for doubt in doubts(settings, flows):
        print(f"warning: {doubt}")
    for variable in unknown_variables(settings.model_dump()):
        print(f"warning: {variable} is no variable of the gateway's")


async def _probe(settings: Settings) -> int:
    """A line for each sink; 1 where one cannot be used."""
    sinks, _ = make_sinks_and_flows(settings)
    status = 0
    for name, sink in sinks.items():
        try:
            print(f"probe of {name}: {await probe(sink)}")
        except (GatewayError, OSError) as error:
            print(f"probe of {name}: failed: {error}")
            status = 1
    return status


def _print_bound(settings: Settings) -> None:
    total, bounds = memory_bound_bytes(settings)
    rest = total
    for what, size in sorted(bounds.items(), key=itemgetter(1), reverse=True):
        if size * 100 >= total:
            print(f"{size / 2**20:10.2f} MiB  {what}")
            rest -= size
    print(f"{rest / 2**20:10.2f} MiB  what is less than a hundredth of it")
    print(f"{total / 2**20:10.2f} MiB  per upload at most, and about 1 KiB for each part")
    uploads, reads, parts = settings.server.max_uploads, settings.server.max_reads, settings.limits.max_parts
    if unbounded := unlimited_keys(settings):
        print(f"without bound, since unlimited: {', '.join(unbounded)}")
    else:
        beside = "the process itself" if settings.server.workers == 1 else f"the {settings.server.workers} workers"
        others = max(0, settings.server.effective_max_connections - uploads - reads)
        bound = uploads * (total + parts * 1024) + reads * read_bound_bytes(settings)
        bound += others * connection_bound_bytes(settings)
        kinds = f"{uploads} uploads, {reads} reads and {others} other connections"
        print(f"{bound / 2**20:10.2f} MiB  for {kinds}, beside {beside}")


def _told(route: Route, rule: Rule) -> str:
    """Which files, through what, to where."""
    match = {"name": rule.match.name, "filename": rule.match.filename, "content_type": rule.match.content_type}
    files = " and ".join(f"{key} {glob}" for key, glob in match.items() if glob is not None)
    return f"{files or 'every file'} {_way(route, rule)}"


def _way(route: Route, rule: Rule) -> str:
    through = f"through {', '.join(rule.flows)} " if rule.flows else ""
    sinks = [f"{name} (best effort)" if name in route.best_effort else name for name in rule.sinks]
    return f"{through}to {', '.join(sinks)}"


def _explain(settings: Settings, options: argparse.Namespace) -> int:
    make_sinks_and_flows(settings)  # what cannot run explains nothing
    routes = settings.as_routes()
    route = next((route for route in routes if route.path == options.path), None)
    if route is None:
        print(f"there is no route {options.path}; there are {', '.join(route.path for route in routes)}")
        return 1
    content_type = None if options.content_type is None else options.content_type.encode()
    part = Part(0, options.name.encode(), options.filename.encode(), content_type, is_file=True)
    rule = route.rule_for(part)
    if rule is None:
        print(f"no rule of {route.path} takes it: 422 NoRoute")
        return 1
    number = list(route.rules).index(rule)
    print(f"rule {number} of {route.path} ({route.kind}) takes it: {_way(route, rule)}")
    return 0
