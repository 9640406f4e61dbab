"""TOML and environment -> valid settings, or all that is wrong with them.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys, wrong
values, and keys that contradict each other are errors that name the key path, all at once.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from gateway.config.contradictions import contradictions
from gateway.config.settings import FlowSettings, RouteSettings, Settings, with_defaults
from gateway.config.sinks import BUILT_IN_SINKS, RelaySettings, SinkSettings
from gateway.flows import BATCH_BYTES as FLOW_BATCH_BYTES
from gateway.model import Limits
from gateway.sinks.disk.delivery import BATCH_BYTES
from gateway.sinks.relay.sending.spool import BATCH_BYTES as SPOOL_BATCH_BYTES
from gateway.upload.lanes import BULK_BYTES

__all__ = ["ConfigError", "load", "memory_bound_bytes", "unlimited_keys"]

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: str | Path | None = None) -> Settings:
    """The settings of a TOML file, or the defaults. Raises ConfigError with all that is wrong."""
    problems = _strange_variables()
    try:
        document = _laid_over({} if path is None else _read(path), EnvSettingsSource(_Environment)())
    except SettingsError as error:  # an environment variable that is no JSON where it has to be
        field = re.search(r'field "(\w+)"', str(error))
        what = f"{field[1]}: " if field else ""
        raise ConfigError([*problems, f"{what}a list or table in an environment variable is no JSON"]) from error
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise ConfigError(problems + _lines(error) + _sound_contradictions(with_defaults(document), error)) from error
    if problems := problems + contradictions(settings.sinks, settings.flows, settings.routes):
        raise ConfigError(problems)
    return settings


class _Environment(BaseSettings, Settings):
    """Which variables there may be: pydantic-settings asks a class of its own kind."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_nested_delimiter="__")


def _read(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _sound_contradictions(document: Mapping[str, Any], error: ValidationError) -> list[str]:
    """What contradicts in the tables that have no mistake of their own, so that it is said at the same time."""
    wrong = {detail["loc"][:2] for detail in error.errors()}
    if wrong & {("sinks",), ("flows",), ("routes",)}:
        return []

    def sound(table: str, valid: Callable[[Any], T], entries: Iterable[tuple[str | int, Any]]) -> dict[Any, T | None]:
        return {key: None if (table, key) in wrong else valid(entry) for key, entry in entries}

    sinks: TypeAdapter[SinkSettings] = TypeAdapter(SinkSettings)
    return contradictions(
        sound("sinks", sinks.validate_python, document["sinks"].items()),
        sound("flows", FlowSettings.model_validate, document.get("flows", {}).items()),
        list(sound("routes", RouteSettings.model_validate, enumerate(document["routes"])).values()),
    )


def _strange_variables() -> list[str]:
    """Variables of the form of ours that name no table. Others are somebody else's: Kubernetes sets GATEWAY_PORT
    for a service of that name.
    """
    strange = []
    for variable in os.environ:
        table, separator, _ = variable.lower().removeprefix("gateway_").partition("__")
        if variable.upper().startswith("GATEWAY_") and separator and table not in Settings.model_fields:
            strange.append(f"{table}: there is no such table (environment variable {variable})")
    return strange


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _laid_over(under, value)
        merged[key] = value
    return merged


_MESSAGES = {
    "model_attributes_type": "not a table",
    "dataclass_type": "not a table",
    "extra_forbidden": "there is no such key",
    "unexpected_keyword_argument": "there is no such key",
}


def _lines(error: ValidationError) -> list[str]:
    """A line per mistake. Never the value: it may be a secret."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        path = [str(key) for key in detail["loc"]]
        if path[0] == "sinks" and len(path) > 2:
            del path[2]  # the tag of the union
        message = _MESSAGES.get(detail["type"], detail["msg"])
        if path[0] == "sinks" and path[-1] == "type":
            message = f"not one of {', '.join(BUILT_IN_SINKS)}, nor of the form package.module:Class"
        lines.append(f"{'.'.join(path)}: {message}")
    return lines


def memory_bound_bytes(settings: Settings) -> tuple[int, dict[str, int]]:
    """(bytes that one upload may hold at most, by what); G1. Unlimited settings have no bound: 0 there.

    Entries of the manifest are extra: about 1 KiB for each part beyond the first.
    """
    server, limits = settings.server, settings.limits
    buffer = server.read_buffer_bytes
    routes = settings.as_routes()
    lanes = max((len(route.sinks) - len(route.best_effort) for route in routes), default=0)
    lag = max((sum(terms.lag_bytes for terms in route.best_effort.values()) for route in routes), default=0)
    disks = max((sum(settings.sinks[name].type == "disk" for name in route.sinks) for route in routes), default=0)
    received = 2 * buffer + max(2 * buffer, 256 << 10)  # aiohttp's high water mark, and one receive call over it
    window = max(limits.window_bytes, received)
    flowing = any(rule.flows for route in routes for rule in route.rules)
    relays = [
        [one for name in route.sinks if isinstance(one := settings.sinks[name], RelaySettings)] for route in routes
    ]
    requests = max((sum(_requests(relay, limits) for relay in of_route) for of_route in relays), default=0)
    bounds = {
        "received, not yet parsed": received,
        # of the open parts, of small parts that a sink takes, and of those that gather meanwhile
        "windows towards sinks": lanes * (limits.parallel_parts + 2) * window,
        "the beginning of a file that is held": BULK_BYTES + received,
        "flows": flowing * limits.parallel_parts * (window + 6 * FLOW_BATCH_BYTES),
        "batches being written to disk": disks * limits.parallel_parts * (BATCH_BYTES + received),
        "buffers towards destinations": requests * 2 * received,
        "prefixes kept for another destination": max(
            (sum(_requests(relay, limits) * relay.replay_bytes for relay in of_route) for of_route in relays), default=0
        ),
        "batches being spooled": requests * (SPOOL_BATCH_BYTES + received),
        "batches being hashed": 2 * ((1 << 20) + received),
        "field values": 2 * limits.max_fields_bytes,
        "headers of a part": 2 * limits.max_header_bytes,
    }
    if lag:
        bounds["waiting for best-effort sinks"] = lag
    if held := max((sum(relay.fields_first_bytes for relay in of_route) for of_route in relays), default=0):
        bounds["files that wait for fields"] = held
    if per_part := max((sum(relay.per == "part" for relay in of_route) for of_route in relays), default=0):
        bounds["fields for the requests of later parts"] = per_part * limits.max_fields_bytes
        bounds["batches being hashed for destinations"] = per_part * limits.parallel_parts * 2 * ((1 << 20) + received)
    return sum(bounds.values()), bounds


def _requests(relay: RelaySettings, limits: Limits) -> int:
    """How many may be under way at a time for one upload."""
    return limits.parallel_parts if relay.per == "part" else 1


def unlimited_keys(settings: Settings) -> list[str]:
    """The keys that bound memory, and are off."""
    limits = settings.limits
    sizes = {
        "server.max_uploads": settings.server.max_uploads,
        "limits.max_parts": limits.max_parts,
        "limits.window_bytes": limits.window_bytes,
        "limits.parallel_parts": limits.parallel_parts,
        "limits.max_fields_bytes": limits.max_fields_bytes,
        "limits.max_header_bytes": limits.max_header_bytes,
    }
    return [key for key, size in sizes.items() if not size]
