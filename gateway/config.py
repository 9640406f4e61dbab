"""TOML and environment -> validated settings, or all that is wrong with them.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys
and wrong values are errors that name the key path, all at once.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from gateway.flows import BATCH_BYTES as FLOW_BATCH_BYTES
from gateway.routes import BestEffort
from gateway.settings import (
    BUILT_IN_FLOWS,
    BUILT_IN_SINKS,
    DOTTED_PATH,
    RESERVED_PATHS,
    RelaySettings,
    Settings,
    sink_tag,
    with_defaults,
)
from gateway.sinks.disk import BATCH_BYTES
from gateway.sinks.spool import BATCH_BYTES as SPOOL_BATCH_BYTES

_LAG = BestEffort()

__all__ = ["ConfigError", "load", "memory_bound_bytes", "unlimited_keys"]


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: str | Path | None = None) -> Settings:
    """The settings of a TOML file, or the defaults. Raises ConfigError with all that is wrong."""
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror}"]) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: {error}"]) from error
    # Keys with a leading underscore would be arguments of pydantic-settings, not ours.
    strangers = [f"{key}: Extra inputs are not permitted" for key in document if key.startswith("_")]
    document = {key: value for key, value in document.items() if not key.startswith("_")}
    strangers += _strange_variables()
    try:
        settings = Settings(**document)
    except ValidationError as error:
        with_environment = with_defaults(_laid_over(document, EnvSettingsSource(Settings)()))
        raise ConfigError(strangers + _lines(error) + _contradictions(with_environment)) from error
    except (ValueError, SettingsError) as error:  # an environment variable that is no JSON where it has to be
        field = re.search(r'field "(\w+)"', str(error))
        what = f"{field[1]}: " if field else ""
        raise ConfigError([*strangers, f"{what}a list or table in an environment variable is no JSON"]) from error
    if problems := strangers + _contradictions(settings.model_dump()):
        raise ConfigError(problems)
    return settings


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


def _lines(error: ValidationError) -> list[str]:
    """A line per mistake. Never the value: it may be a secret."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        path = [str(key) for key in detail["loc"]]
        if path[0] == "sinks" and len(path) > 2:
            del path[2]  # the tag of the union
        message = "not a table" if detail["type"] == "model_attributes_type" else detail["msg"]
        if path[0] == "sinks" and path[-1] == "type":
            message = f"not one of {', '.join(BUILT_IN_SINKS)}, nor of the form package.module:Class"
        lines.append(f"{'.'.join(path)}: {message}")
    return lines


def _contradictions(document: Mapping[str, Any]) -> list[str]:
    """What each key alone cannot show. The document may be wrong in other ways, too."""
    problems: list[str] = []
    sinks, routes = document.get("sinks"), document.get("routes")
    if not isinstance(sinks, Mapping) or not isinstance(routes, list | tuple):
        return problems
    flows = document.get("flows", {})
    flows = flows if isinstance(flows, Mapping) else {}
    for name, flow in flows.items():
        if isinstance(flow, Mapping) and flow.get("use") is None and name not in BUILT_IN_FLOWS:
            problems.append(f"flows.{name}.use: needed, since {name} is not one of {', '.join(BUILT_IN_FLOWS)}")
    for name, sink in sinks.items():
        if sink_tag(sink) == "relay" and isinstance(sink, Mapping):
            problems += _relay_contradictions(f"sinks.{name}", sink)
    routes = [route if isinstance(route, Mapping) else {} for route in routes]
    paths = [route.get("path") for route in routes]
    for number, route in enumerate(routes):
        where, path = f"routes.{number}", route.get("path")
        if path is not None and paths.count(path) > 1:
            problems.append(f"{where}.path: {path} is given twice")
        if isinstance(path, str) and RESERVED_PATHS.fullmatch(path):
            problems.append(f"{where}.path: {path} is the gateway's own")
        named: list[str] = []
        uses: list[tuple[str, Mapping[str, Any]]] = []
        rules = route.get("parts")
        for place, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
            for use in _uses(rule):
                name = use["sink"]
                uses.append((f"{where}.parts.{place}.sinks", use))
                named.append(name)
                if name not in sinks:
                    problems.append(f"{where}.parts.{place}.sinks: there is no sink {name}")
            names = rule.get("flows") if isinstance(rule, Mapping) else None
            for name in names if isinstance(names, list | tuple) else ():
                if name not in flows and name not in BUILT_IN_FLOWS and not re.match(DOTTED_PATH, str(name)):
                    problems.append(f"{where}.parts.{place}.flows: there is no flow {name}")
        kept = {_keep_seconds(sinks.get(name)) for name in named if sink_tag(sinks.get(name)) == "disk"}
        if len(kept) > 1:
            problems.append(
                f"{where}: its disk sinks have different keep_seconds, so that an upload would expire in part"
            )
        problems += _length_contradictions(where, rules, sinks)
        if route.get("kind") == "relay" and not any(sink_tag(sinks.get(name)) == "relay" for name in named):
            problems.append(f"{where}.kind: a route of kind relay needs a sink of type relay")
        if route.get("kind") == "opaque" and not _is_one_way(rules, sinks):
            problems.append(
                f"{where}.kind: a route of kind opaque has one rule without match or flows, to one required relay"
            )
        problems += _fan_out_contradictions(where, route, uses, sinks)
    return problems


def _uses(rule: Any) -> list[Mapping[str, Any]]:
    """The sinks of a rule as tables, whichever way they are written, or dumped."""
    uses = rule.get("sinks") if isinstance(rule, Mapping) else None
    tables = [{"sink": use} if isinstance(use, str) else use for use in uses] if isinstance(uses, list | tuple) else []
    return [use for use in tables if isinstance(use, Mapping) and isinstance(use.get("sink"), str)]


def _fan_out_contradictions(
    where: str, route: Mapping[str, Any], uses: Sequence[tuple[str, Mapping[str, Any]]], sinks: Mapping[str, Any]
) -> list[str]:
    """Required and best-effort sinks, who answers, and `keep`."""
    problems: list[str] = []
    terms: dict[str, tuple[Any, ...]] = {}
    for place, use in uses:
        name, mode = use["sink"], use.get("mode", "required")
        lag = (use.get("lag_bytes", _LAG.lag_bytes), use.get("lag_seconds", _LAG.lag_seconds))
        if mode == "required" and lag != (_LAG.lag_bytes, _LAG.lag_seconds):
            problems.append(f'{place}: lag_bytes and lag_seconds of {name} mean nothing without mode = "best_effort"')
        if terms.setdefault(name, (mode, *lag)) != (mode, *lag):
            problems.append(f"{place}: {name} has one mode and one lag in all rules of a route")
    by_type = {name: sink_tag(sinks.get(name)) for name in terms}
    required = [name for name, (mode, *_) in terms.items() if mode == "required"]
    disks = [name for name, kind in by_type.items() if kind == "disk"]
    relays = [name for name, kind in by_type.items() if kind == "relay"]
    if disks and disks[0] not in required:
        problems.append(f"{where}: {disks[0]} keeps the manifest, being its first disk sink, so it has to be required")
    kind, answer = route.get("kind", "upload"), route.get("answer")
    if answer is not None:
        if kind == "convert":
            problems.append(f"{where}.answer: a route of kind convert answers its results")
        elif answer not in relays or answer not in required:
            problems.append(f"{where}.answer: {answer} is no required relay of this route")
    elif kind == "relay" and relays and relays[0] not in required:
        problems.append(f"{where}: {relays[0]} answers the client, being its first relay, so it has to be required")
    if route.get("keep") == "each":
        if kind in ("relay", "opaque") or answer is not None:
            problems.append(f'{where}.keep: "each" is told in a manifest, and this route answers what a relay answers')
        problems += [
            f'{where}.keep: "each" needs sinks that can drop one part, and {name} is a relay without per = "part"'
            for name in relays
            if not isinstance(sinks[name], Mapping) or sinks[name].get("per") != "part"
        ]
    return problems


def _relay_contradictions(where: str, sink: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    if sink.get("url") is None and not sink.get("urls"):
        problems.append(f"{where}.url: needed, or urls")
    if sink.get("url") is not None and sink.get("urls"):
        problems.append(f"{where}.urls: there is a url, too; one of them says where to send")
    lengths = _lengths(sink)
    for place, way in enumerate(lengths):
        before = lengths[:place]
        if always := next((one for one in before if one in ("chunked", "spool")), None):
            problems.append(f"{where}.length: {way} comes after {always}, which takes every body")
        elif way in before:
            problems.append(f"{where}.length: {way} is given twice")
        elif {way, *before} >= {"passthrough", "known"}:
            problems.append(f"{where}.length: passthrough and known exclude each other")
    return problems


def _length_contradictions(where: str, rules: Any, sinks: Mapping[str, Any]) -> list[str]:
    """What the ways of relays to tell lengths ask of the routes that name them."""
    problems: list[str] = []
    rules = [rule if isinstance(rule, Mapping) else {} for rule in (rules if isinstance(rules, list | tuple) else ())]
    for place, rule in enumerate(rules):
        uses = _uses(rule)
        for use in uses:
            name = use["sink"]
            lengths = _lengths(sinks.get(name))
            match = rule.get("match") or {}
            matches_all = isinstance(match, Mapping) and all(glob is None for glob in match.values())
            required = use.get("mode", "required") == "required"
            alone = len(rules) == 1 and len(uses) == 1 and matches_all and required and not rule.get("flows")
            if "passthrough" in lengths and not alone:
                problems.append(
                    f"{where}.parts.{place}.sinks: {name} passes the bytes of the wire through (sinks.{name}.length), "
                    "so a route gives it everything: one rule, an empty match, no flows, and this sink alone, required"
                )
            if "known" in lengths and rule.get("flows"):
                problems.append(
                    f"{where}.parts.{place}.flows: {name} tells lengths before flows have changed them "
                    f"(sinks.{name}.length)"
                )
    return problems


def _lengths(sink: Any) -> tuple[Any, ...]:
    length = sink.get("length", "chunked") if isinstance(sink, Mapping) and sink_tag(sink) == "relay" else ()
    return (length,) if isinstance(length, str) else tuple(length) if isinstance(length, list | tuple) else ()


def _is_one_way(rules: Any, sinks: Mapping[str, Any]) -> bool:
    """Whether these are the rules of a route that passes bodies on as they are."""
    if not isinstance(rules, list | tuple) or len(rules) != 1 or not isinstance(rules[0], Mapping):
        return False
    uses, match = _uses(rules[0]), rules[0].get("match") or {}
    if rules[0].get("flows") or (isinstance(match, Mapping) and any(glob is not None for glob in match.values())):
        return False
    required = [use for use in uses if use.get("mode", "required") == "required"]
    return len(uses) == len(required) == 1 and sink_tag(sinks.get(uses[0]["sink"])) == "relay"


def _keep_seconds(sink: Any) -> Any:
    return sink.get("keep_seconds", 0) if isinstance(sink, Mapping) else 0


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
    relays = max((sum(settings.sinks[name].type == "relay" for name in route.sinks) for route in routes), default=0)
    received = 2 * buffer + (256 << 10)  # aiohttp's high water mark, and one receive call over it
    window = max(limits.window_bytes, received)
    flowing = any(rule.flows for route in routes for rule in route.rules)
    bounds = {
        "received, not yet parsed": received,
        "windows towards sinks": lanes * (limits.parallel_parts + 1) * window,
        "flows": flowing * limits.parallel_parts * (window + 6 * FLOW_BATCH_BYTES),
        "batches being written to disk": disks * limits.parallel_parts * (BATCH_BYTES + received),
        "buffers towards destinations": relays * 2 * received,
        "prefixes kept for another destination": max(
            (sum(_kept_bytes(settings.sinks[name]) for name in route.sinks) for route in routes), default=0
        ),
        "batches being spooled": relays * (SPOOL_BATCH_BYTES + received),
        "batches being hashed": 2 * ((1 << 20) + received),
        "field values": 2 * limits.max_fields_bytes,
        "headers of a part": 2 * limits.max_header_bytes,
    }
    if lag:
        bounds["waiting for best-effort sinks"] = lag
    return sum(bounds.values()), bounds


def _kept_bytes(sink: object) -> int:
    return sink.replay_bytes if isinstance(sink, RelaySettings) else 0


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
