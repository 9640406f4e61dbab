"""What each key of the configuration alone cannot show: keys that contradict each other, or name what is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.config.settings import BUILT_IN_FLOWS, RESERVED_PATHS
from gateway.config.sinks import DOTTED_PATH, sink_tag
from gateway.upload.routes import BestEffort

__all__ = ["contradictions"]

_LAG = BestEffort()


def contradictions(document: Mapping[str, Any]) -> list[str]:
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
        problems += _shape_contradictions(where, route, uses, sinks)
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
    if "passthrough" in lengths:
        problems += [f"{where}.{key}: passthrough leaves the body as it is" for key in _shaping(sink)]
    elif sink.get("per") == "part" and sink.get("fields_first_bytes"):
        problems.append(f'{where}.fields_first_bytes: with per = "part" fields come first anyway')
    renamed, dropped = sink.get("rename"), sink.get("drop")
    if isinstance(renamed, Mapping) and isinstance(dropped, list | tuple):
        problems += [f"{where}.drop: {name} is renamed, too" for name in dropped if name in renamed]
    return problems


def _shaping(sink: Any) -> list[str]:
    """The keys of a relay by which a request has another shape than the client's."""
    if not isinstance(sink, Mapping):
        return []
    shaping = [key for key in ("rename", "drop", "add_before", "add_after", "fields_first_bytes") if sink.get(key)]
    return [*(["per"] if sink.get("per") == "part" else []), *shaping]


def _shape_contradictions(
    where: str, route: Mapping[str, Any], uses: Sequence[tuple[str, Mapping[str, Any]]], sinks: Mapping[str, Any]
) -> list[str]:
    """What the shape of a relay's requests asks of the routes that name it."""
    problems: list[str] = []
    kind, answer, each = route.get("kind", "upload"), route.get("answer"), route.get("keep") == "each"
    relays = {use["sink"]: use for _, use in uses if sink_tag(sinks.get(use["sink"])) == "relay"}
    for name, use in relays.items():
        sink = sinks[name]
        if kind == "opaque":
            problems += [
                f"{where}.kind: opaque passes bodies on as they are, and {name} has {key}" for key in _shaping(sink)
            ]
            continue
        if not isinstance(sink, Mapping) or sink.get("per") != "part":
            continue
        spooled = _lengths(sink) == ("spool",)
        if kind == "relay":
            problems.append(f"{where}.kind: {name} has as many answers as there are parts (sinks.{name}.per)")
        elif answer == name:
            problems.append(f"{where}.answer: {name} has as many answers as there are parts (sinks.{name}.per)")
        if use.get("mode", "required") == "best_effort":
            if not spooled:
                problems.append(
                    f"{where}: {name} completes parts before the required sinks have committed, so as best_effort it "
                    f'needs sinks.{name}.length = "spool"'
                )
        elif not each and not spooled:
            problems.append(
                f'{where}.keep: "all" is not what {name} does, which completes each part (sinks.{name}.per); it needs '
                f'keep = "each", or sinks.{name}.length = "spool"'
            )
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
