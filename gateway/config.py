"""TOML and environment -> validated settings. Every default has its reason beside it, and in config/gateway.toml.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys
and wrong values are errors that name the key path, all at once. The sinks and routes of the defaults are
there under every configuration; one of the same name, or path, replaces them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from gateway.digests import ALGORITHMS
from gateway.flows import BATCH_BYTES as FLOW_BATCH_BYTES
from gateway.model import Limits
from gateway.routes import Match, Route, Rule
from gateway.sinks.disk import BATCH_BYTES

__all__ = ["ConfigError", "Settings", "load", "memory_bound_bytes", "unlimited_keys"]

_BUILT_IN_SINKS = ("disk", "relay", "discard")
BUILT_IN_FLOWS = {
    "sniff": "gateway.flows.sniff:sniff",
    "gzip": "gateway.flows.compress:gzip",
    "gunzip": "gateway.flows.compress:gunzip",
    "zstd": "gateway.flows.compress:zstd",
    "unzstd": "gateway.flows.compress:unzstd",
    "lines": "gateway.flows.lines:lines",
}
_DOTTED = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(_Table):
    host: str = "127.0.0.1"
    """Loopback: what listens on a network is somebody's decision."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    workers: Literal[1] = 1
    """More than one process is not there yet."""
    max_uploads: Count = 64
    """With the per-upload bound it makes the memory bound that `gateway check` prints."""
    drain_seconds: Seconds = 60
    """What orchestrators commonly wait for, or can be told to."""
    read_buffer_bytes: Annotated[int, Field(ge=4096, le=16 << 20)] = 256 << 10
    """One receive call's worth; smaller ones cost a wake-up each."""


class LimitSettings(_Table):
    max_body_bytes: Count = 0
    max_file_bytes: Count = 0
    max_parts: Count = 1000
    max_field_bytes: Count = 1 << 20
    max_fields_bytes: Count = 8 << 20
    max_header_bytes: Count = 16384
    max_headers: Count = 64
    idle_seconds: Seconds = 30
    min_rate_bytes: Count = 0
    deadline_seconds: Seconds = 0
    parallel_parts: Count = 4
    window_bytes: Count = 1 << 20
    stall_seconds: Seconds = 30


class DiskSettings(_Table):
    type: Literal["disk"]
    root: str = "var/uploads"
    fsync: bool = True
    keep_seconds: Seconds = 0
    """0: for ever. What is kept for a while only has to be asked for."""


class RelaySettings(_Table):
    type: Literal["relay"]
    url: Annotated[str, Field(pattern=r"^https?://[^/\s?#]+[^\s#]*$")]
    connect_seconds: Annotated[float, Field(gt=0)] = 10


class DiscardSettings(_Table):
    type: Literal["discard"]


class OwnSinkSettings(BaseModel):
    """A sink of the user's: `type = "package.module:Class"`, the other keys are its keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)
    type: Annotated[str, Field(pattern=_DOTTED)]

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _sink_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind in _BUILT_IN_SINKS else "own"


SinkSettings = Annotated[
    Annotated[DiskSettings, Tag("disk")]
    | Annotated[RelaySettings, Tag("relay")]
    | Annotated[DiscardSettings, Tag("discard")]
    | Annotated[OwnSinkSettings, Tag("own")],
    Discriminator(_sink_tag),
]


class FlowSettings(BaseModel):
    """A flow's options, by its keyword arguments; `use` is the dotted path of a function of the user's."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)
    use: Annotated[str, Field(pattern=_DOTTED)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class MatchSettings(_Table):
    name: str | None = None
    filename: str | None = None
    content_type: str | None = None


class PartsSettings(_Table):
    match: MatchSettings = MatchSettings()
    flows: tuple[str, ...] = ()
    sinks: Annotated[tuple[str, ...], Field(min_length=1)]


def _known(algorithms: tuple[str, ...]) -> tuple[str, ...]:
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"{algorithm} is not one of {', '.join(ALGORITHMS)}")
        if algorithm == "blake3" and importlib.util.find_spec("blake3") is None:
            raise ValueError("blake3 needs the package of that name")
    return tuple(dict.fromkeys(algorithms))


class RouteSettings(_Table):
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$")]
    kind: Literal["upload", "relay", "convert"] = "upload"
    digests: Annotated[tuple[str, ...], AfterValidator(_known)] | None = None
    parts: tuple[PartsSettings, ...] = ()

    @property
    def effective_digests(self) -> tuple[str, ...]:
        if self.digests is not None:
            return self.digests
        return () if self.kind == "relay" else ("sha256",)


_DEFAULT_SINKS: dict[str, dict[str, Any]] = {
    "disk": {"type": "disk", "root": "var/uploads"},
    "api": {"type": "relay", "url": "http://127.0.0.1:8081/upload"},
    "none": {"type": "discard"},
}
_DEFAULT_ROUTES: tuple[dict[str, Any], ...] = (
    {"path": "/upload", "kind": "upload", "parts": [{"sinks": ["disk"]}]},
    {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]},
    {"path": "/convert", "kind": "convert", "parts": [{"flows": ["sniff", "gzip"], "sinks": ["disk"]}]},
)
_RESERVED_PATHS = re.compile(r"/(uploads|files|healthz|readyz|metrics|problems|download)(/.*)?")


def _merged(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document and the default sinks and routes that it does not replace."""
    sinks, routes = document.get("sinks", {}), document.get("routes", ())
    if not isinstance(sinks, Mapping) or not isinstance(routes, list | tuple):
        return dict(document)
    merged: dict[str, Any] = {}
    for name in [*_DEFAULT_SINKS, *(name for name in sinks if name not in _DEFAULT_SINKS)]:
        default, given = _DEFAULT_SINKS.get(name, {}), sinks.get(name, {})
        # an override of a default sink need not repeat its type, but one of another type starts anew
        same = isinstance(given, Mapping) and given.get("type", default.get("type")) == default.get("type")
        merged[name] = {**default, **given} if same else given
    taken = {route.get("path") for route in routes if isinstance(route, Mapping)}
    return {
        **document,
        "sinks": merged,
        "routes": [*routes, *(route for route in _DEFAULT_ROUTES if route["path"] not in taken)],
    }


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix="GATEWAY_", env_nested_delimiter="__"
    )

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    sinks: dict[str, SinkSettings] = Field(default_factory=dict)
    flows: dict[str, FlowSettings] = Field(default_factory=dict)
    routes: tuple[RouteSettings, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _merged(values)

    def as_limits(self) -> Limits:
        return Limits(**self.limits.model_dump())

    def as_routes(self) -> list[Route]:
        return [
            Route(
                path=route.path,
                kind=route.kind,
                rules=[Rule(Match(**rule.match.model_dump()), rule.sinks, rule.flows) for rule in route.parts],
                digests=route.effective_digests,
            )
            for route in self.routes
        ]


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
        with_environment = _merged(_laid_over(document, EnvSettingsSource(Settings)()))
        raise ConfigError(strangers + _lines(error) + _contradictions(with_environment)) from error
    except (ValueError, SettingsError) as error:  # an environment variable that is no JSON where it has to be
        raise ConfigError([str(error)]) from error
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
            message = f"not one of {', '.join(_BUILT_IN_SINKS)}, nor of the form package.module:Class"
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
    routes = [route if isinstance(route, Mapping) else {} for route in routes]
    paths = [route.get("path") for route in routes]
    for number, route in enumerate(routes):
        where, path = f"routes.{number}", route.get("path")
        if path is not None and paths.count(path) > 1:
            problems.append(f"{where}.path: {path} is given twice")
        if isinstance(path, str) and _RESERVED_PATHS.fullmatch(path):
            problems.append(f"{where}.path: {path} is the gateway's own")
        named: list[str] = []
        rules = route.get("parts")
        for place, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
            names = rule.get("sinks") if isinstance(rule, Mapping) else None
            for name in names if isinstance(names, list | tuple) else ():
                named.append(name)
                if name not in sinks:
                    problems.append(f"{where}.parts.{place}.sinks: there is no sink {name}")
            names = rule.get("flows") if isinstance(rule, Mapping) else None
            for name in names if isinstance(names, list | tuple) else ():
                if name not in flows and name not in BUILT_IN_FLOWS and not re.match(_DOTTED, str(name)):
                    problems.append(f"{where}.parts.{place}.flows: there is no flow {name}")
        if route.get("kind") == "relay" and not any(_sink_tag(sinks.get(name)) == "relay" for name in named):
            problems.append(f"{where}.kind: a route of kind relay needs a sink of type relay")
    return problems


def memory_bound_bytes(settings: Settings) -> tuple[int, dict[str, int]]:
    """(bytes that one upload may hold at most, by what); G1. Unlimited settings have no bound: 0 there.

    Entries of the manifest are extra: about 1 KiB for each part beyond the first.
    """
    server, limits = settings.server, settings.limits
    buffer = server.read_buffer_bytes
    routes = settings.as_routes()
    lanes = max((len(route.sinks) for route in routes), default=0)
    disks = max((sum(settings.sinks[name].type == "disk" for name in route.sinks) for route in routes), default=0)
    relays = max((sum(settings.sinks[name].type == "relay" for name in route.sinks) for route in routes), default=0)
    received = 2 * buffer + (256 << 10)  # aiohttp's high water mark, and one receive call over it
    window = max(limits.window_bytes, received)
    flowing = any(rule.flows for route in routes for rule in route.rules)
    bounds = {
        "received, not yet parsed": received,
        "windows towards sinks": lanes * (limits.parallel_parts + 1) * window,
        "flows": flowing * limits.parallel_parts * (window + 6 * FLOW_BATCH_BYTES),
        "batches being written to disk": disks * limits.parallel_parts * 2 * (BATCH_BYTES + received),
        "buffers towards destinations": relays * 2 * received,
        "batches being hashed": 2 * ((1 << 20) + received),
        "field values": 2 * limits.max_fields_bytes,
        "headers of a part": 2 * limits.max_header_bytes,
    }
    return sum(bounds.values()), bounds


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
