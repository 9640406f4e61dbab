"""What is wrong with a configuration, in words: a line per mistake, and never the value, which may be a secret."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields

from pydantic import BaseModel, ValidationError

from gateway.config.access import (
    AccessSettings,
    HookSettings,
    JwtSettings,
    KeysSettings,
    QuotasSettings,
    SignedSettings,
)
from gateway.config.listening import ManagementSettings, ServerSettings
from gateway.config.settings import (
    DownloadSettings,
    MatchSettings,
    PageSettings,
    PartsSettings,
    RouteSettings,
    Settings,
    SinkUseSettings,
)
from gateway.config.sinks import BUILT_IN_SINKS, DiskSettings, RelaySettings, TlsSettings
from gateway.model import Limits

__all__ = ["ConfigError", "did_you_mean", "key_path", "keys_at", "mistakes"]

_WORDS = {
    "missing": "needed",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "int_from_float": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "string_type": "should be a text",
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
    "tuple_type": "should be a list",
    "dataclass_type": "should be a table",
    "dict_type": "should be a table",
    "model_attributes_type": "should be a table",
    "model_type": "should be a table",
}
"""By pydantic's types of errors; others are told in its own words, which have the limit or the choice in them."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = [_printable(problem) for problem in dict.fromkeys(problems)]
        super().__init__("\n".join(self.problems))


def _printable(line: str) -> str:
    """One line, whatever the names in it are made of."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def mistakes(
    error: ValidationError, *, file: str, variable: Callable[[Sequence[str], bool], str | None]
) -> Iterator[str]:
    """A line for each, led by the path of its key.

    `variable` says which one a key comes from, if from any; whether the key is missing is its second argument.
    """
    details = error.errors(include_url=False, include_input=False, include_context=False)
    for detail in details:
        place, path = detail["loc"], key_path(detail["loc"])
        if detail["type"] == "too_short" and any(place == one["loc"][: len(place)] != one["loc"] for one in details):
            continue  # what is in the list is wrong, which is told already
        is_missing, origin = detail["type"] == "missing", variable(path, detail["type"] == "missing")
        message = _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "there is no such key" + _what_is_there(path[-1], place[:-1])
        elif path[0] == "sinks" and path[2:] == ["type"]:
            message = f"{', '.join(BUILT_IN_SINKS)}, or of the form package.module:Class"
            message = f"needed: {message}" if is_missing else f"should be {message}"
        elif origin and message in ("should be a list", "should be a table"):
            message += ", written as JSON"
        yield f"{'.'.join(path)}: {message} ({origin or file})"


def _what_is_there(key: str, table: Sequence[str | int]) -> str:
    """Where the key belongs, or what it is called; to append."""
    homes = [home for home, place in _HOMES.items() if key.lower() in keys_at(place)]
    if key.lower() in Settings().sinks and not table:
        return f"; did you mean sinks.{key.lower()}?"
    if homes and key != "type" and key.lower() not in keys_at(table):
        return f" here, but in {' and '.join(homes)}"
    return did_you_mean(key, keys_at(table))


_OF_ACCESS: dict[str, type[BaseModel]] = {
    "keys": KeysSettings,
    "jwt": JwtSettings,
    "signed": SignedSettings,
    "hook": HookSettings,
}
_HOMES: dict[str, tuple[str | int, ...]] = {
    "[server]": ("server",),
    "[management]": ("management",),
    "[page]": ("page",),
    "[limits]": ("limits",),
    "[download]": ("download",),
    "sinks of type disk": ("sinks", "", "disk"),
    "sinks of type relay": ("sinks", "", "relay"),
    "[quotas]": ("quotas",),
    "[[routes]]": ("routes", 0),
    "[[routes.parts]]": ("routes", 0, "parts", 0),
}


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A question to append, where one of the known words is close."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def key_path(location: Sequence[str | int]) -> list[str]:
    """pydantic's path of a key as it is written."""
    path = [str(key) for key in location]
    if path[0] == "sinks" and len(path) > 2:
        del path[2]  # which kind of sink it was taken for
    if path[-1] == "[key]":
        del path[-2:]  # which is a name that the table gives
    return path


def keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys that there are in the table at this place, which is pydantic's path of it. None of no table of ours."""
    kind: type[BaseModel]
    match location:
        case ():
            kind = Settings
        case ("server",):
            kind = ServerSettings
        case ("management",):
            kind = ManagementSettings
        case ("page",):
            kind = PageSettings
        case ("limits",):
            return [one.name for one in fields(Limits)]
        case ("download",):
            kind = DownloadSettings
        case ("access",):
            kind = AccessSettings
        case ("access", "keys" | "jwt" | "signed" | "hook" as access):
            kind = _OF_ACCESS[access]
        case ("quotas",):
            kind = QuotasSettings
        case ("sinks", _, "disk"):
            kind = DiskSettings
        case ("sinks", _, "relay"):
            kind = RelaySettings
        case ("sinks", _, "relay", "tls"):
            kind = TlsSettings
        case ("routes", _):
            kind = RouteSettings
        case ("routes", _, "parts", _):
            kind = PartsSettings
        case ("routes", _, "parts", _, "match"):
            kind = MatchSettings
        case ("routes", _, "parts", _, "sinks", _):
            kind = SinkUseSettings
        case _:
            return []
    return list(kind.model_fields)
