"""Where the parts of one upload go: the rules of a route, with lanes in place of the names of sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import NoRoute, NotMultipart
from gateway.flows import Flow
from gateway.model import Part, text
from gateway.sinks import Delivery
from gateway.upload.lanes import Lane
from gateway.upload.required_lane import RequiredLane
from gateway.upload.routes import Match, Route, Rule

__all__ = ["Plan", "Plans"]


@dataclass(slots=True)
class Plan:
    """Where the files of a rule go, and through what."""

    lanes: Sequence[Lane] = ()
    flows: Sequence[Flow] = ()
    is_short: bool = False
    """Whether small ones can go the short way to all of them."""
    hashing: Delivery | None = None
    """Who writes them as they come, and can hash them there."""


class Plans:
    """`wired` gets the bytes as they came, if there is such a sink: then parts are looked at, and go nowhere.

    `sinks_hash`: whether a sink may hash what it writes. Not where it is wanted before, or of what a sink may fail on.
    """

    def __init__(
        self,
        route: Route,
        lanes: Sequence[Lane],
        flows: Mapping[str, Flow],
        wired: RequiredLane | None = None,
        *,
        sinks_hash: bool = True,
    ) -> None:
        self.lanes = lanes
        self.wired = wired
        self._sinks_hash = sinks_hash
        self.relays = [lane for lane in lanes if lane.is_relay and wired is None]
        """Who gets fields, and empty file inputs."""
        self._route = route
        lanes_by_name = {lane.name: lane for lane in lanes}
        self._plans = {id(rule): self._plan(rule, lanes_by_name, flows) for rule in route.rules}
        first = route.rules[0] if route.rules else None
        self._only = self._plans[id(first)] if first is not None and first.match == Match() else None

    def _plan(self, rule: Rule, lanes_by_name: Mapping[str, Lane], flows: Mapping[str, Flow]) -> Plan:
        if self.wired is not None:
            return Plan()
        lanes = [lanes_by_name[name] for name in rule.sinks]
        if rule.flows:
            return Plan(lanes, [flows[name] for name in rule.flows])
        hashing = next((lane.hashing for lane in lanes if lane.hashing is not None), None) if self._sinks_hash else None
        return Plan(lanes, is_short=all(lane.takes_batches for lane in lanes), hashing=hashing)

    def plan_for(self, part: Part) -> Plan:
        """Where a file goes. Raises NoRoute, NotMultipart."""
        if self._only is not None and not (part.own_headers and self._only.flows):
            return self._only
        return self._plans[id(rule_for(self._route, part))]


def rule_for(route: Route, part: Part) -> Rule:
    """Which rule takes a file. Raises NoRoute, and NotMultipart for one that its flows could not look into."""
    rule = route.rule_for(part)
    if rule is None:
        raise NoRoute("no rule takes this file", part=part.index)
    if rule.flows and part.own_headers and (encodings := part.encodings):
        name, value = encodings[0]  # what looks at content is not shown an encoding of it
        raise NotMultipart(f"a file with {text(name).title()}: {text(value)} is not taken here", part=part.index)
    return rule
