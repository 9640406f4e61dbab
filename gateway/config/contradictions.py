"""What each key of the configuration alone cannot show: keys that contradict each other, or name what is not there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.config.addresses import TcpAddress
from gateway.config.listening import ServerSettings
from gateway.config.messages import did_you_mean
from gateway.config.settings import BUILT_IN_FLOWS, OWN_PATHS, FlowSettings, RouteSettings, Settings
from gateway.config.sinks import DOTTED_PATH, DiskSettings, ObjectsSettings, RelaySettings, SinkSettings
from gateway.upload.routes import BestEffort

__all__ = ["contradictions", "server_contradictions"]


def contradictions(
    sinks: Mapping[str, SinkSettings | None],
    flows: Mapping[str, FlowSettings | None],
    routes: Sequence[RouteSettings | None],
) -> list[str]:
    """A line for each, led by the path of the key to change.

    None stands for a table that has a mistake of its own: it is there, and anything else about it would be a guess.
    """
    problems: list[str] = []
    for name, flow in flows.items():
        if flow is not None and flow.use is None and name not in BUILT_IN_FLOWS:
            built_in = f"{', '.join(BUILT_IN_FLOWS)}{did_you_mean(name, BUILT_IN_FLOWS)}"
            problems.append(f"flows.{name}.use: needed, since {name} is not one of {built_in}")
    for name, sink in sinks.items():
        if isinstance(sink, RelaySettings):
            problems += _of_relay(f"sinks.{name}", sink)
    times = Counter(route.path for route in routes if route is not None)
    for number, route in enumerate(routes):
        if route is None:
            continue
        where = f"routes.{number}"
        if times[route.path] > 1:
            problems.append(f"{where}.path: {route.path} is given twice")
        problems += _of_route(where, route)
        problems += _missing(where, route, sinks, flows)
        named = {use.sink: sinks.get(use.sink) for use in route.uses}
        known = {name: sink for name, sink in named.items() if sink is not None}
        if known.keys() == named.keys():
            problems += _of_route_and_sinks(_Routed(where, route, known))
    return problems


def server_contradictions(settings: Settings) -> Iterator[str]:
    """Likewise, of where it listens, and what is asked for there."""
    server, management = settings.server, settings.management
    if server.base_path:
        for path in (*OWN_PATHS, *(route.path for route in settings.routes)):
            if _is_below(path, server.base_path):
                yield f"server.base_path: {path} is below it, and would be taken for what is behind it"
    if server.workers > 1:
        for name, sink in settings.sinks.items():
            if isinstance(sink, ObjectsSettings) and sink.url.startswith("memory:"):
                yield f"sinks.{name}.url: each of the {server.workers} workers would have a memory of its own"
    yield from _of_addresses(server)
    if management.port and TcpAddress(management.host, management.port) in server.addresses:
        key = "server.port" if server.listen is None else "in server.listen"
        yield f"management.port: {management.port} is {key}, too; leave it out to have one listener"


def _of_addresses(server: ServerSettings) -> Iterator[str]:
    if server.listen is None:
        return
    for key in ("host", "port"):
        if key in server.model_fields_set:
            yield f"server.{key}: server.listen says where it listens; leave one of them out"
    free = [address for address in server.addresses if not (isinstance(address, TcpAddress) and not address.port)]
    for address in dict.fromkeys(free):
        if free.count(address) > 1:
            yield f"server.listen: {address.told('http').removeprefix('http://')} is there twice"


def _is_below(path: str, above: str) -> bool:
    return f"{path}/".startswith(f"{above}/")


# -- one table


def _of_relay(where: str, relay: RelaySettings) -> Iterator[str]:
    if relay.url is None and not relay.urls:
        yield f"{where}.url: needed, or urls"
    if relay.url is not None and relay.urls:
        yield f"{where}.urls: there is a url, too; one of them says where to send"
    modes = relay.length_modes
    for place, mode in enumerate(modes):
        before = modes[:place]
        if always := next((one for one in before if one in ("chunked", "spool")), None):
            yield f"{where}.length: {mode} comes after {always}, which takes every body"
        elif mode in before:
            yield f"{where}.length: {mode} is given twice"
        elif {mode, *before} >= {"passthrough", "known"}:
            yield f"{where}.length: passthrough and known exclude each other"
    if "passthrough" in modes:
        for key in relay.shaping_keys:
            yield f"{where}.{key}: passthrough leaves the body as it is"
    elif relay.per == "part" and relay.fields_first_bytes:
        yield f'{where}.fields_first_bytes: with per = "part" fields come first anyway'
    for name in relay.drop:
        if name in relay.rename:
            yield f"{where}.drop: {name} is renamed, too"


def _of_route(where: str, route: RouteSettings) -> Iterator[str]:
    if any(_is_below(route.path, own) for own in (*OWN_PATHS, "/problems")):
        yield f"{where}.path: {route.path} is the gateway's own"
    if route.methods is not None and route.kind not in ("relay", "opaque"):
        yield f"{where}.methods: a route of kind {route.kind} takes POST and PUT"
    first = {use.sink: use for use in reversed(route.uses)}
    for place, rule in enumerate(route.parts):
        for name, times in Counter(use.sink for use in rule.sinks).items():
            if times > 1:
                yield f"{where}.parts.{place}.sinks: {name} is given twice"
        for use in rule.sinks:
            name, here = use.sink, f"{where}.parts.{place}.sinks"
            if use.is_required and use.lag != BestEffort():
                yield f'{here}: lag_bytes and lag_seconds of {name} mean nothing without mode = "best_effort"'
            if use != first[name]:
                yield f"{here}: {name} has one mode and one lag in all rules of a route"


# -- tables that name others


def _missing(
    where: str,
    route: RouteSettings,
    sinks: Mapping[str, SinkSettings | None],
    flows: Mapping[str, FlowSettings | None],
) -> Iterator[str]:
    for place, rule in enumerate(route.parts):
        for use in rule.sinks:
            if use.sink not in sinks:
                yield f"{where}.parts.{place}.sinks: there is no sink {use.sink}{did_you_mean(use.sink, sinks)}"
        for name in rule.flows:
            known = [*flows, *BUILT_IN_FLOWS]
            if name not in known and not re.match(DOTTED_PATH, name):
                yield f"{where}.parts.{place}.flows: there is no flow {name}{did_you_mean(name, known)}"


@dataclass(frozen=True, slots=True)
class _Routed:
    """A route with the sinks that it names, in the order in which it first names them."""

    where: str
    route: RouteSettings
    sinks: Mapping[str, SinkSettings]

    @property
    def relays(self) -> dict[str, RelaySettings]:
        return {name: sink for name, sink in self.sinks.items() if isinstance(sink, RelaySettings)}

    @property
    def stores(self) -> dict[str, DiskSettings | ObjectsSettings]:
        return {name: sink for name, sink in self.sinks.items() if isinstance(sink, DiskSettings | ObjectsSettings)}


def _of_route_and_sinks(routed: _Routed) -> Iterator[str]:
    yield from _stores(routed)
    yield from _answers(routed)
    yield from _lengths(routed)
    yield from _each_part(routed)
    yield from _requests_per_part(routed)


def _stores(routed: _Routed) -> Iterator[str]:
    where, stores = routed.where, routed.stores
    if len({store.keep_seconds for store in stores.values()}) > 1:
        yield f"{where}: its stores have different keep_seconds, so that an upload would expire in part"
    places: dict[object, str] = {}
    for name, store in stores.items():
        place, key = (
            (Path(store.root).resolve(), "root") if isinstance(store, DiskSettings) else (store.place, "prefix")
        )
        other = places.setdefault(place, name)
        if other != name:
            yield f"{where}: {other} and {name} have one {key}, where an upload can lie only once (sinks.{name}.{key})"
    for keeper in list(stores)[:1]:
        if keeper in routed.route.best_effort:
            yield f"{where}: {keeper} keeps the manifest, being its first store, so it has to be required"


def _answers(routed: _Routed) -> Iterator[str]:
    """Whose answer the client gets."""
    where, route, relays = routed.where, routed.route, routed.relays
    if route.kind == "relay" and not relays:
        yield f"{where}.kind: a route of kind relay needs a sink of type relay"
    if route.kind == "opaque":
        if route.only_use is None or route.only_use.sink not in relays:
            yield f"{where}.kind: a route of kind opaque has one rule without match or flows, to one required relay"
        for name, relay in relays.items():
            for key in relay.shaping_keys:
                yield f"{where}.kind: opaque passes bodies on as they are, and {name} has {key}"
    if route.answer is not None and route.kind == "convert":
        yield f"{where}.answer: a route of kind convert answers its results"
    elif route.answer is not None and (route.answer not in relays or route.answer in route.best_effort):
        could = [name for name in relays if name not in route.best_effort]
        yield f"{where}.answer: {route.answer} is no required relay of this route; {' or '.join(could) or 'none'} is"
    elif route.answer is None and route.kind == "relay":
        for first in list(relays)[:1]:
            if first in route.best_effort:
                yield f"{where}: {first} answers the client, being its first relay, so it has to be required"


def _lengths(routed: _Routed) -> Iterator[str]:
    """What the ways of relays to tell lengths ask of the routes that name them."""
    for place, rule in enumerate(routed.route.parts):
        here = f"{routed.where}.parts.{place}"
        for name in (use.sink for use in rule.sinks if use.sink in routed.relays):
            modes = routed.relays[name].length_modes
            if "passthrough" in modes and routed.route.only_use is None:
                yield (
                    f"{here}.sinks: {name} passes the bytes of the wire through (sinks.{name}.length), "
                    "so a route gives it everything: one rule, an empty match, no flows, and this sink alone, required"
                )
            if "known" in modes and rule.flows:
                yield f"{here}.flows: {name} tells lengths before flows have changed them (sinks.{name}.length)"


def _each_part(routed: _Routed) -> Iterator[str]:
    where, route = routed.where, routed.route
    if route.keep != "each":
        return
    if route.kind in ("relay", "opaque") or route.answer is not None:
        yield f'{where}.keep: "each" is told in a manifest, and this route answers what a relay answers'
    for name, relay in routed.relays.items():
        if relay.per != "part":
            yield f'{where}.keep: "each" needs sinks that can drop one part, and {name} is a relay without per = "part"'


def _requests_per_part(routed: _Routed) -> Iterator[str]:
    """What a relay with a request for each part asks of a route."""
    where, route = routed.where, routed.route
    for name, relay in routed.relays.items():
        if relay.per != "part" or route.kind == "opaque":
            continue
        spooled = relay.length_modes == ("spool",)
        if route.kind == "relay":
            yield f"{where}.kind: {name} has as many answers as there are parts (sinks.{name}.per)"
        elif route.answer == name:
            yield f"{where}.answer: {name} has as many answers as there are parts (sinks.{name}.per)"
        if spooled:
            continue
        if name in route.best_effort:
            yield (
                f"{where}: {name} completes parts before the required sinks have committed, so as best_effort it "
                f'needs sinks.{name}.length = "spool"'
            )
        elif route.keep != "each":
            yield (
                f'{where}.keep: "all" is not what {name} does, which completes each part (sinks.{name}.per); it needs '
                f'keep = "each", or sinks.{name}.length = "spool"'
            )
