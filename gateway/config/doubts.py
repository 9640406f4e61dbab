"""What is valid, and yet hardly what was meant: `gateway check` warns of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping

from gateway.config.addresses import TcpAddress
from gateway.config.listening import ManagementSettings, ServerSettings
from gateway.config.policies import open_to_others
from gateway.config.settings import DownloadSettings, RouteSettings, Settings
from gateway.config.sinks import DiskSettings, RelaySettings
from gateway.flows import Flow
from gateway.http.urls import PORTS, split_url
from gateway.model import Limits

__all__ = ["doubts"]

_NESTED = (
    ("max_field_bytes", "max_fields_bytes"),
    ("max_fields_bytes", "max_body_bytes"),
    ("max_file_bytes", "max_body_bytes"),
    ("max_value_bytes", "max_field_bytes"),
    ("idle_seconds", "deadline_seconds"),
    ("idle_seconds", "total_seconds"),
    ("connect_seconds", "total_seconds"),
    ("first_byte_seconds", "total_seconds"),
    ("read_seconds", "total_seconds"),
)
"""Limits of a thing, and of what it is in."""
_BALANCERS_SECONDS = 60
"""For which nginx and AWS's balancer keep an idle connection."""


def doubts(settings: Settings, flows: Mapping[str, Flow]) -> list[str]:
    """A line for each, led by the path of its key. `flows` are those that were made of the settings."""
    lines = [line for number, route in enumerate(settings.routes) for line in _of_route(f"routes.{number}", route)]
    lines += [
        f"sinks.{name}: {url} leads back to this gateway"
        for name, sink in settings.sinks.items()
        if isinstance(sink, RelaySettings)
        for url in sink.all_urls
        if _is_own(url, settings)
    ]
    lines += _of_limits(settings)
    lines += _of_connections(settings.server)
    if warning := open_to_others(settings):
        lines.append(warning)
    used = {use.sink for route in settings.routes for use in route.uses}
    given = settings.sinks.keys() - Settings().sinks.keys()
    lines += [f"sinks.{name}: no route names it" for name in sorted(given - used)]
    lines += [
        f"sinks.{name}.{key}: the umask of this process takes {taken:04o} of it"
        for name, sink in settings.sinks.items()
        if isinstance(sink, DiskSettings)
        for key in ("mode", "directory_mode")
        if (taken := int(getattr(sink, key), 8) & _umask())
    ]
    lines += [
        f"flows.{name}: no async generator function: what it returns has to be an async iterator of bytes"
        for name, flow in flows.items()
        if not inspect.isasyncgenfunction(flow.function)
    ]
    if settings.server.trusted_header == "forwarded" and not settings.server.trusted_networks:
        lines.append("server.trusted_header: nobody is believed, for there are no server.trusted_networks")
    if settings.management.host != ManagementSettings().host and settings.management.port is None:
        lines.append("management.host: nothing listens there, for there is no management.port")
    if settings.server.trusted_networks and settings.server.keepalive_seconds <= _BALANCERS_SECONDS:
        lines.append(
            "server.keepalive_seconds: should be longer than the proxy in front keeps an idle connection, which is "
            f"{_BALANCERS_SECONDS} s with most"
        )
    return lines


def _of_limits(settings: Settings) -> Iterator[str]:
    """The limits that somebody has set, and that are never reached, since another one is."""
    tables: dict[str, tuple[object, object]] = {
        "limits": (settings.limits, Limits()),
        "download": (settings.download, DownloadSettings()),
    }
    for name, sink in settings.sinks.items():
        if isinstance(sink, RelaySettings):
            tables[f"sinks.{name}"] = (sink, RelaySettings(type="relay"))
    for where, (table, default) in tables.items():
        for inside, around in _NESTED:
            inner, outer = getattr(table, inside, None), getattr(table, around, None)
            if inner and outer and inner > outer and inner != getattr(default, inside):
                yield f"{where}.{inside}: {around} is less, so it is never reached"


def _of_connections(server: ServerSettings) -> Iterator[str]:
    if 0 < server.effective_max_connections < server.max_uploads:
        yield f"server.max_uploads: server.max_connections is {server.max_connections}, so it is never reached"


def _is_own(url: str, settings: Settings) -> bool:
    """Whether it is where this gateway listens, as far as that can be told without asking for names."""
    parts = split_url(url)
    host, port = parts.host.strip("[]"), parts.port or PORTS[parts.scheme]
    for address in settings.server.addresses:
        if isinstance(address, TcpAddress) and port == address.port and parts.scheme == "http":
            own = address.host
            everywhere = own in ("0.0.0.0", "::", "") and host in ("127.0.0.1", "::1", "localhost", "0.0.0.0")
            local = {own, host} <= {"127.0.0.1", "::1", "localhost"}
            if host == own or everywhere or local:
                return True
    return False


def _umask() -> int:
    mask = os.umask(0o077)  # it can be asked for only so
    os.umask(mask)
    return mask


def _of_route(where: str, route: RouteSettings) -> Iterator[str]:
    if not route.parts:
        yield f"{where}.parts: there is no rule, so no file is taken: 422 NoRoute"
    catch_all: int | None = None
    for place, rule in enumerate(route.parts):
        if catch_all is not None:
            yield f"{where}.parts.{place}: nothing comes as far as this rule, since rule {catch_all} takes every file"
        elif rule.match.takes_all:
            catch_all = place
