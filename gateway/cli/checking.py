"""`gateway check` and `gateway explain`: what a configuration means, and whether it does."""

from __future__ import annotations

import argparse
import asyncio
from operator import itemgetter

from gateway.cli.arguments import add_config
from gateway.config.doubts import doubts
from gateway.config.environment import unknown_variables
from gateway.config.load import load
from gateway.config.make import make_sinks_and_flows, make_tls
from gateway.config.memory import connection_bound_bytes, memory_bound_bytes, read_bound_bytes, unlimited_keys
from gateway.config.policies import make_policies
from gateway.config.settings import Settings
from gateway.errors import GatewayError
from gateway.http.urls import authority
from gateway.model import Part
from gateway.server.alive import ask_alive
from gateway.server.logs import configure_logging
from gateway.server.probing import probe
from gateway.upload.routes import Route, Rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Those of the command."""
    if command == "check":
        only = parser.add_mutually_exclusive_group()
        only.add_argument(
            "--alive",
            action="store_true",
            help="only ask whether a gateway of this configuration answers on this machine",
        )
        only.add_argument(
            "--probe", action="store_true", help="open each sink, too; write, read and remove something in each store"
        )
    else:
        parser.add_argument("--path", default="/upload", help="the route's path (default: %(default)s)")
        parser.add_argument("--name", default="file", help="the part's name (default: %(default)s)")
        parser.add_argument("--filename", default="", help="the part's file name")
        parser.add_argument("--content-type", default=None, help="the part's type")
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises ConfigError, OSError."""
    configure_logging(options.log_level or "INFO")
    settings = load(options.config)
    if options.command == "explain":
        return _explain(settings, options)
    if options.alive:
        print(f"alive at {ask_alive(settings)}")
        return 0
    _check(settings)
    return asyncio.run(_probe(settings)) if options.probe else 0


def _check(settings: Settings) -> None:
    _, flows = make_sinks_and_flows(settings)
    make_tls(settings)
    make_policies(settings)  # what cannot be read is said
    print("the configuration is valid")
    _print_bound(settings)
    server, management = settings.server, settings.management
    below = f", and below {server.base_path}" if server.base_path else ""
    scheme = "http" if settings.tls is None else "https"
    print(f"at {', '.join(address.told(scheme) for address in server.addresses)}{below}:")
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
