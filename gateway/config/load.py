"""TOML and environment -> valid settings, or all that is wrong with them.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys, wrong
values, and keys that contradict each other are errors that name the key path, all at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.config.contradictions import contradictions, server_contradictions
from gateway.config.environment import laid_over, read_environment, variable_below, variable_of
from gateway.config.make import make_sinks_and_flows
from gateway.config.messages import ConfigError, mistakes
from gateway.config.policies import access_contradictions
from gateway.config.settings import BUILT_IN_FLOWS, FlowSettings, RouteSettings, Settings, with_defaults
from gateway.config.sinks import SinkSettings

__all__ = ["load"]

T = TypeVar("T")


def load(path: str | Path | None = None) -> Settings:
    """The settings of a TOML file, or the defaults. Raises ConfigError with all that is wrong."""
    file = {} if path is None else _read(path)
    environment, problems = read_environment(with_defaults(file))
    document = laid_over(file, environment)

    def variable(key: Sequence[str], is_missing: bool) -> str | None:
        return variable_of(key) or variable_below(key) or (variable_below(key[:-1]) if is_missing else None)

    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        problems += mistakes(error, file=str(path), variable=variable)
        raise ConfigError([*problems, *_of_what_is_sound(with_defaults(document), error)]) from error
    problems += server_contradictions(settings)
    problems += contradictions(settings.sinks, settings.flows, settings.routes)
    problems += access_contradictions(settings)
    if problems:
        raise ConfigError([*problems, *_unmakeable(settings.sinks, settings.flows)])
    return settings


def _read(path: str | Path) -> dict[str, Any]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"{path or '--config'}: {error.strerror}"]) from error
    try:
        text = data.decode("utf-8-sig")  # with the mark ahead that some editors write
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {line}: it is not UTF-8, which TOML files are"]) from error
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError([f"{path}: {_in_words(str(error), lines=len(text.splitlines()))}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: lists or tables in each other, too many of them"]) from error


_SYNTAX = {
    "Invalid value": "no value: a text stands in quotes, and true and false in small letters",
    "Cannot overwrite a value": "the key is given twice",
    "Cannot declare": "the table is given twice",
    "Expected newline or end of document after a statement": "more on the line than one key and its value",
    "Expected '=' after a key": "a key without = and a value",
    "Unescaped '\\'": "a backslash in a text in quotes is written twice",
    "Invalid hex value": "a backslash in a text in quotes is written twice",
    "Exceeds the limit": "a number of thousands of digits",
    "Unclosed array": "a list that does not end in ]",
}
"""What tomllib says first, and what that means to somebody who has not read the specification of TOML."""


def _in_words(error: str, *, lines: int) -> str:
    """What tomllib says, with the line ahead."""
    what, _, where = error.removesuffix(")").partition(" (at ")
    place = re.match(r"line (\d+)", where)
    words = next((words for start, words in _SYNTAX.items() if what.startswith(start)), what)
    return f"line {place[1] if place else lines}: {words}"


def _of_what_is_sound(document: Mapping[str, Any], error: ValidationError) -> list[str]:
    """What contradicts, or cannot be made, of tables that have no mistake of their own: it is said at the same time."""
    wrong = {detail["loc"][:2] for detail in error.errors()}
    if wrong & {("sinks",), ("flows",), ("routes",)}:
        return []

    def sound(table: str, valid: Callable[[Any], T], entries: Iterable[tuple[str | int, Any]]) -> dict[Any, T | None]:
        return {key: None if (table, key) in wrong else valid(entry) for key, entry in entries}

    adapter: TypeAdapter[SinkSettings] = TypeAdapter(SinkSettings)
    sinks = sound("sinks", adapter.validate_python, document["sinks"].items())
    flows = sound("flows", FlowSettings.model_validate, document.get("flows", {}).items())
    routes = list(sound("routes", RouteSettings.model_validate, enumerate(document["routes"])).values())
    return contradictions(sinks, flows, routes) + _unmakeable(sinks, flows)


def _unmakeable(sinks: Mapping[str, SinkSettings | None], flows: Mapping[str, FlowSettings | None]) -> list[str]:
    """A line for each sink and flow that has no mistake of its own, and yet cannot be made."""
    makeable = {
        "sinks": {name: sink for name, sink in sinks.items() if sink is not None},
        "flows": {name: flow for name, flow in flows.items() if flow and (flow.use or name in BUILT_IN_FLOWS)},
        "routes": (),  # what they name may not be there
    }
    try:
        make_sinks_and_flows(Settings().model_copy(update=makeable))
    except ConfigError as error:
        return error.problems
    return []
