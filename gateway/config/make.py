"""Settings -> sinks and flows, made: the built-in ones, and those of the user's by their dotted paths."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gateway.config.messages import ConfigError, did_you_mean
from gateway.config.settings import BUILT_IN_FLOWS, FlowSettings, Settings
from gateway.config.sinks import (
    DiscardSettings,
    DiskSettings,
    ObjectsSettings,
    OwnSinkSettings,
    RelaySettings,
    SinkSettings,
)
from gateway.flows import Flow
from gateway.http.forwarding import HeaderRules
from gateway.http.tls import ServerTls, TlsFileError
from gateway.model import Limits
from gateway.sinks import Sink
from gateway.sinks.discard import DiscardSink
from gateway.sinks.disk import DiskSink, unusable
from gateway.sinks.relay.sending.connect import Connecting, tls_context
from gateway.sinks.relay.sending.spool import try_spool
from gateway.sinks.relay.sink import RelaySink
from gateway.sinks.store import Store
from gateway.upload.routes import Route

__all__ = ["make_sinks_and_flows", "make_tls"]


def make_sinks_and_flows(settings: Settings) -> tuple[dict[str, Sink], dict[str, Flow]]:
    """All sinks, and the flows that are configured or that a route names, by their names. A default sink that nobody
    has asked for is left out where it cannot be made.

    Raises ConfigError for those that cannot be made, all at once, and for sinks that cannot do what a route asks.
    """
    routes = settings.as_routes()
    problems: list[str] = []
    sinks: dict[str, Sink] = {}
    flows: dict[str, Flow] = {}
    used = {name for route in routes for name in route.sinks}
    nobodys = {name for name, sink in Settings().sinks.items() if settings.sinks.get(name) == sink and name not in used}
    for name, sink in settings.sinks.items():
        with suppress(ConfigError) if name in nobodys else _collected(problems):
            sinks[name] = _sink(name, sink, settings)
    named = {*settings.flows, *(flow for route in routes for rule in route.rules for flow in rule.flows)}
    for name in sorted(named):
        with _collected(problems):
            flows[name] = _flow(name, settings.flows.get(name, FlowSettings()))
    for number, route in enumerate(routes):
        problems += _asked_in_vain(f"routes.{number}", route, sinks)
    if problems:
        raise ConfigError(problems)
    return sinks, flows


def make_tls(settings: Settings) -> ServerTls | None:
    """What the listener shows, if it speaks TLS. Raises ConfigError for files that cannot be used."""
    if settings.tls is None:
        return None
    try:
        return ServerTls(**settings.tls.model_dump())
    except TlsFileError as error:
        raise ConfigError([f"tls.{error.key}: {error}"]) from error


def _asked_in_vain(where: str, route: Route, sinks: Mapping[str, Sink]) -> Iterator[str]:
    """What a route asks of its sinks, and only they themselves can say: some are the user's."""
    stores = [sink for name in route.sinks if isinstance(sink := sinks.get(name), Store)]
    if stores and stores[0].name in route.best_effort:
        yield f"{where}: {stores[0].name} keeps the manifest, being its first store, so it has to be required"
    if len({store.keep_seconds for store in stores}) > 1:
        yield f"{where}: its stores have different keep_seconds, so that an upload would expire in part"
    for name in route.sinks if route.keep_each else ():
        if name in sinks and not sinks[name].can_drop:
            yield f'{where}.keep: "each" needs sinks that can drop one part, and {name} has no can_drop = True'


@contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    """Go on after a ConfigError, with its lines among those that were found."""
    try:
        yield
    except ConfigError as error:
        found += error.problems


def _sink(name: str, settings: SinkSettings, all_settings: Settings) -> Sink:
    limits = all_settings.limits
    match settings:
        case DiskSettings():
            if why := unusable(Path(settings.root)):
                raise ConfigError([f"sinks.{name}.root: {why}"])
            return DiskSink(name=name, **settings.model_dump(exclude={"type"}))
        case ObjectsSettings():
            from gateway.sinks.objects.sink import ObjectSink  # only where there is one: its client is large

            counts = bool(all_settings.quotas.stored_bytes)
            options = settings.model_dump(exclude={"type"})
            return ObjectSink(name=name, stall_seconds=limits.stall_seconds, counts_owners=counts, **options)
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
    if settings.spool_dir:  # the system's own is there, or nothing is
        try:
            try_spool(settings.spool_dir)
        except OSError as error:
            raise ConfigError([f"sinks.{name}.spool_dir: {settings.spool_dir}: {error.strerror}"]) from error
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
_RULES = ("forward_cookies", "forward_authorization", "forward_headers", "forward_query", "headers")


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
    names = settings.forward_headers
    return HeaderRules(
        forward_cookies=settings.forward_cookies,
        forward_authorization=settings.forward_authorization,
        forward_headers=None if names is None else [name.lower() for name in names],
        forward_query=settings.forward_query,
        headers=list(settings.headers.items()),
    )


def _flow(name: str, settings: FlowSettings) -> Flow:
    """A flow by its name, or by its dotted path; its options are checked against its signature."""
    path = settings.use or BUILT_IN_FLOWS.get(name, name)
    try:
        function = _import(path)
        if inspect.iscoroutinefunction(function):
            raise ValueError("it is a coroutine function, so it yields nothing: a flow has a `yield`")
        _check_options(f"flows.{name}", function, settings.options, given=2)
        if hasattr(function, "check"):
            function.check(**settings.options)
    except ConfigError:
        raise
    except TypeError as error:
        raise ConfigError([f"flows.{name}: {path} cannot be called as flows are, (file, chunks): {error}"]) from error
    except Exception as error:
        raise ConfigError([f"flows.{name}: {error}"]) from error
    return Flow(name, function, settings.options)


def _check_options(where: str, function: Callable[..., Any], options: Mapping[str, Any], *, given: int = 0) -> None:
    """Raise ConfigError for options that it does not take, or misses, beside the first ones that it is `given`."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[given:]
    names = [one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    missed = [one.name for one in parameters if one.name in names and one.default is one.empty]
    problems = [f"{where}.{name}: needed" for name in missed if name not in options]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        unknown = [name for name in options if name not in names]
        problems += [f"{where}.{name}: there is no such key{did_you_mean(name, names)}" for name in unknown]
    if problems:
        raise ConfigError(problems)
    signature.bind(*[None] * given, **options)


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
        _check_options(f"sinks.{name}", make, arguments)
        sink = make(**arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError([f"sinks.{name}: {settings.type} cannot be made: {error!r}"]) from error
    if not isinstance(sink, Sink):
        raise ConfigError([f"sinks.{name}: {settings.type} does not derive from gateway.sinks.Sink, so it is no sink"])
    sink.name = name
    return sink
