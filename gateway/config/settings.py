"""What can be configured: the tables, their keys, each default with its reason beside it.

The sinks of the defaults are there under every configuration; one of the same name changes or replaces them. The
routes of the defaults are there where none is configured: who names what is to be served has nothing else served.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from gateway.config.access import AccessKind, AccessSettings, CorsSettings, QuotasSettings
from gateway.config.listening import ListeningTlsSettings, ManagementSettings, ServerSettings
from gateway.config.sinks import DottedPath, RelaySettings, SinkSettings, Table, matching
from gateway.config.tracing import TracingSettings
from gateway.digests import ALGORITHMS
from gateway.downloads.guard import AddressGuard, UrlRules
from gateway.model import Count, Limits, Seconds
from gateway.upload.routes import BestEffort, Match, Route, Rule

__all__ = [
    "BUILT_IN_FLOWS",
    "DEFAULT_ROUTES",
    "HEALTH_PATHS",
    "OWN_PATHS",
    "DownloadSettings",
    "FlowSettings",
    "MatchSettings",
    "PageSettings",
    "PartsSettings",
    "RouteSettings",
    "Settings",
    "SinkUseSettings",
    "with_defaults",
]

BUILT_IN_FLOWS = {
    "sniff": "gateway.flows.sniff:sniff",
    "gzip": "gateway.flows.compress:gzip",
    "gunzip": "gateway.flows.compress:gunzip",
    "zstd": "gateway.flows.compress:zstd",
    "unzstd": "gateway.flows.compress:unzstd",
    "lines": "gateway.flows.lines:lines",
}


class PageSettings(Table):
    """`[page]`: what people are shown."""

    enabled: bool | None = None
    """There is one where no routes are configured: whoever configures some decides what is for people."""


class FlowSettings(BaseModel):
    """A flow's options, by its keyword arguments; `use` is the dotted path of a function of the user's."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)
    use: DottedPath | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Its keyword arguments."""
        return dict(self.model_extra or {})


class MatchSettings(Table):
    """Globs on what a file is called and what it is; None matches everything."""

    name: str | None = None
    filename: str | None = None
    content_type: str | None = None

    @property
    def takes_all(self) -> bool:
        """Whether there is no file that it does not match."""
        return {self.name, self.filename, self.content_type} <= {None, "*"}


class SinkUseSettings(Table):
    """A sink in a rule. In the file a plain name will do, for one that is required."""

    sink: str
    mode: Literal["required", "best_effort"] = "required"
    lag_bytes: Annotated[Count, Field(gt=0)] = 8 << 20
    """A moment's worth at a gigabit, so that it is not dropped for a hiccup; memory, per upload."""
    lag_seconds: Annotated[Seconds, Field(gt=0)] = 5
    """What a client waits for its answer at most, because of a sink that it does not depend on."""

    @property
    def is_required(self) -> bool:
        """Whether an upload fails with this sink."""
        return self.mode == "required"

    @property
    def lag(self) -> BestEffort:
        """How far it may fall behind."""
        return BestEffort(self.lag_bytes, self.lag_seconds)


def _use(value: Any) -> Any:
    return {"sink": value} if isinstance(value, str) else value


SinkUse = Annotated[SinkUseSettings, BeforeValidator(_use)]


class PartsSettings(Table):
    """A rule of a route: files that match go through the flows to all of the sinks."""

    match: MatchSettings = MatchSettings()
    flows: tuple[str, ...] = ()
    sinks: Annotated[tuple[SinkUse, ...], Field(min_length=1)]


def _known(algorithms: tuple[str, ...]) -> tuple[str, ...]:
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"{algorithm} is not one of {', '.join(ALGORITHMS)}")
        if algorithm == "blake3" and importlib.util.find_spec("blake3") is None:
            raise ValueError("blake3 needs the package of that name")
    return tuple(dict.fromkeys(algorithms))


class RouteSettings(Table):
    """`[[routes]]`: a path, what it answers, and its rules."""

    path: Annotated[
        str,
        matching(
            r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+",
            "not a path: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between, "
            "and not . or .. alone",
        ),
    ]
    kind: Literal["upload", "relay", "convert", "opaque"] = "upload"
    methods: Annotated[tuple[Literal["POST", "PUT", "PATCH"], ...], Field(min_length=1)] | None = None
    """Where bodies are passed on, all: the destination knows what they mean to it. Elsewhere POST and PUT, always."""
    digests: Annotated[tuple[str, ...], AfterValidator(_known)] | None = None
    answer: str | None = None
    access: Annotated[tuple[AccessKind, ...], Field(min_length=1)] | None = None
    """Anybody where only this machine can ask; elsewhere that is somebody's decision."""
    cors: CorsSettings | None = None
    """As anywhere else."""
    keep: Literal["all", "each"] = "all"
    """All or nothing: what a client has to do about a part that is missing, only it knows."""
    parts: tuple[PartsSettings, ...] = ()

    @property
    def uses(self) -> list[SinkUseSettings]:
        """The sinks of all rules, in their order; a sink may be in several."""
        return [use for rule in self.parts for use in rule.sinks]

    @property
    def best_effort(self) -> dict[str, BestEffort]:
        """The sinks that an upload does not depend on."""
        return {use.sink: use.lag for use in self.uses if not use.is_required}

    @property
    def only_use(self) -> SinkUseSettings | None:
        """The one required sink that gets everything as it came in: one rule without match or flows. Else None."""
        match self.parts:
            case (PartsSettings(match=match, flows=(), sinks=(use,)),) if match == MatchSettings() and use.is_required:
                return use
        return None

    @property
    def effective_methods(self) -> tuple[str, ...]:
        """Those that are configured, or the default of the route's kind."""
        if self.methods is not None:
            return tuple(dict.fromkeys(self.methods))
        return ("POST", "PUT", "PATCH") if self.kind in ("relay", "opaque") else ("POST", "PUT")

    @property
    def effective_digests(self) -> tuple[str, ...]:
        """Those that are configured, or the default of the route's kind."""
        if self.digests is not None:
            return self.digests
        return () if self.kind in ("relay", "opaque") else ("sha256",)


_DEFAULT_SINKS: dict[str, dict[str, Any]] = {
    "disk": {"type": "disk", "root": "var/uploads"},
    "api": {"type": "relay", "url": "http://127.0.0.1:8081/upload"},
    "none": {"type": "discard"},
}
DEFAULT_ROUTES: tuple[dict[str, Any], ...] = (
    {"path": "/upload", "kind": "upload", "parts": [{"sinks": ["disk"]}]},
    {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]},
    {"path": "/convert", "kind": "convert", "parts": [{"flows": ["sniff", "gzip"], "sinks": ["disk"]}]},
)
HEALTH_PATHS = ("/healthz", "/readyz")
"""Answered where anything else is refused."""
OWN_PATHS = (
    "/uploads",
    "/files",
    "/download",
    "/selftest",
    "/page",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/metrics",
)
"""What may be served beside the routes, with all below."""
_OF_PAGE = ("/page", "/openapi.json")
_MANAGEMENT_PATHS = ("/selftest", "/healthz", "/readyz", "/metrics")


def with_defaults(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document and the default sinks that it does not replace; the default routes if it has none of its own."""
    document = {"routes": DEFAULT_ROUTES, **document}
    sinks = document.get("sinks", {})
    if not isinstance(sinks, Mapping):
        return document
    merged: dict[str, Any] = {}
    for name in [*_DEFAULT_SINKS, *(name for name in sinks if name not in _DEFAULT_SINKS)]:
        default, given = _DEFAULT_SINKS.get(name, {}), sinks.get(name, {})
        # an override of a default sink need not repeat its type, but one of another type starts anew
        same = isinstance(given, Mapping) and given.get("type", default.get("type")) == default.get("type")
        if same and "urls" in given:
            default = {key: value for key, value in default.items() if key != "url"}
        merged[name] = {**default, **given} if same else given
    return {**document, "sinks": merged}


def _patterns(allow: tuple[str, ...]) -> tuple[str, ...]:
    UrlRules(allow)  # its ValueError names the pattern
    return allow


def _ranges(allow_private: tuple[str, ...]) -> tuple[str, ...]:
    AddressGuard(allow_private)
    return allow_private


class DownloadSettings(Table):
    """`[download]`: what may be fetched, and how long that may take."""

    allow: Annotated[tuple[str, ...], AfterValidator(_patterns)] = ()
    """Nothing: what may be fetched from where this process stands is somebody's decision."""
    access: Annotated[tuple[AccessKind, ...], Field(min_length=1)] | None = None
    """As a route's."""
    allow_private: Annotated[tuple[str, ...], AfterValidator(_ranges)] = ()
    """No range: a name that is allowed may point anywhere, today or tomorrow."""
    max_bytes: Count = 0
    max_redirects: Annotated[Count, Field(le=5)] = 5
    connect_seconds: Seconds = 10
    idle_seconds: Seconds = 30
    total_seconds: Seconds = 0


class Settings(Table):
    """The whole configuration: each key is valid for itself. What they say together: contradictions.py."""

    server: ServerSettings = ServerSettings()
    tls: ListeningTlsSettings | None = None
    management: ManagementSettings = ManagementSettings()
    limits: Limits = Limits()
    sinks: dict[str, SinkSettings] = Field(default_factory=dict)
    flows: dict[str, FlowSettings] = Field(default_factory=dict)
    download: DownloadSettings = DownloadSettings()
    access: AccessSettings = AccessSettings()
    quotas: QuotasSettings = QuotasSettings()
    page: PageSettings = PageSettings()
    tracing: TracingSettings = TracingSettings()
    cors: CorsSettings = CorsSettings()
    routes: tuple[RouteSettings, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_defaults(values)

    def named(self) -> Settings:
        """The same, with a name."""
        if self.server.name is not None:
            return self
        server = self.server.model_copy(update={"name": f"gateway-{secrets.token_hex(4)}"})
        return self.model_copy(update={"server": server})

    @property
    def own_paths(self) -> list[str]:
        """What is served beside the routes, where uploads are."""
        moved = {"/selftest", "/metrics"} if self.management.port is not None else set()
        return [path for path in OWN_PATHS if path not in moved and self._is_on(path)]

    @property
    def management_paths(self) -> list[str]:
        """What is served at the management listener, if there is one."""
        return [path for path in _MANAGEMENT_PATHS if self.management.port is not None and self._is_on(path)]

    @property
    def has_page(self) -> bool:
        """Whether people are shown a page: unless it is said, where no routes are configured."""
        return self.routes == Settings().routes if self.page.enabled is None else self.page.enabled

    def _is_on(self, path: str) -> bool:
        if path in _OF_PAGE:
            return self.has_page
        return bool(getattr(self.management, path[1:], True))

    def as_routes(self) -> list[Route]:
        """The routes as the dispatcher takes them."""
        return [
            Route(
                path=route.path,
                kind=route.kind,
                rules=[
                    Rule(Match(**rule.match.model_dump()), tuple(use.sink for use in rule.sinks), rule.flows)
                    for rule in route.parts
                ],
                methods=route.effective_methods,
                digests=self._digests(route),
                best_effort=route.best_effort,
                answer=route.answer,
                keep_each=route.keep == "each",
            )
            for route in self.routes
        ]

    def _digests(self, route: RouteSettings) -> tuple[str, ...]:
        """Those that the route names, and what its relays tell their destinations."""
        named = [self.sinks.get(use.sink) for use in route.uses]
        wanted = any(isinstance(sink, RelaySettings) and sink.wants_sha256 for sink in named)
        return tuple(dict.fromkeys([*route.effective_digests, *(["sha256"] if wanted else [])]))
