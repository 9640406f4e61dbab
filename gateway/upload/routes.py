"""Which part takes which flows to which sinks. Pure; the first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from gateway.model import Part, text

__all__ = ["BestEffort", "Match", "Route", "Rule"]


@dataclass(frozen=True, slots=True)
class Match:
    """Globs (`*`, `?`, `[…]`) on a file's name, file name and media type; None matches everything.

    A media type is compared without its parameters and without regard to case (RFC 9110 8.3.1), the
    others as they are. A file without a file name, or without a type, has an empty one.
    """

    name: str | None = None
    filename: str | None = None
    content_type: str | None = None

    def takes(self, part: Part) -> bool:
        """Whether it is a file that all of them match."""
        media_type = text(part.content_type or b"").partition(";")[0].strip().lower()
        return (
            (self.name is None or fnmatchcase(part.name, self.name))
            and (self.filename is None or fnmatchcase(part.filename or "", self.filename))
            and (self.content_type is None or fnmatchcase(media_type, self.content_type.lower()))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """Files that match go through the flows, in order, and on to every one of the sinks."""

    match: Match
    sinks: tuple[str, ...]
    flows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BestEffort:
    """What a sink may fall behind while the others go on, and how long it may take after they are done."""

    lag_bytes: int = 8 << 20
    lag_seconds: float = 5


@dataclass(frozen=True)
class Route:
    """A path, what it answers, and its rules. Rules are for files only: fields need none."""

    path: str
    kind: str
    """`upload` answers the manifest; `relay` what the destination answered; `convert` the list of results.
    `opaque`, too, answers what the destination did: it passes bodies on as they are, of whatever type.
    """
    rules: Sequence[Rule] = ()
    methods: tuple[str, ...] = ("POST", "PUT")
    """By which it is asked; where bodies are passed on, the destination is asked by the same."""
    digests: tuple[str, ...] = field(default=("sha256",))
    best_effort: Mapping[str, BestEffort] = field(default_factory=dict)
    """The sinks that an upload does not depend on; all others are required."""
    answer: str | None = None
    """The relay whose answer is the client's; None: the first one on a route that passes answers on, none on others."""
    keep_each: bool = False
    """Whether a part that fails is reported, and the others are kept; else it is all or nothing."""

    @property
    def passes_answers(self) -> bool:
        """Whether a destination's answer is the client's."""
        return self.kind in ("relay", "opaque") or self.answer is not None

    def rule_for(self, part: Part) -> Rule | None:
        """The first that takes this file; None: no rule does."""
        for rule in self.rules:
            if rule.match.takes(part):
                return rule
        return None

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Those of its sinks that an upload depends on, in the same order."""
        return tuple(name for name in self.sinks if name not in self.best_effort)

    @cached_property
    def sinks(self) -> tuple[str, ...]:
        """All sinks that the rules name, in the order in which they are first named."""
        return tuple(dict.fromkeys(sink for rule in self.rules for sink in rule.sinks))
