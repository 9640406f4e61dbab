"""TOML and environment -> valid settings, or all that is wrong with them.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys, wrong
values, and keys that contradict each other are errors that name the key path, all at once.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from gateway.config.contradictions import contradictions
from gateway.config.settings import FlowSettings, RouteSettings, Settings, with_defaults
from gateway.config.sinks import BUILT_IN_SINKS, SinkSettings

__all__ = ["ConfigError", "load"]

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: str | Path | None = None) -> Settings:
    """The settings of a TOML file, or the defaults. Raises ConfigError with all that is wrong."""
    problems = _strange_variables()
    try:
        document = _laid_over({} if path is None else _read(path), EnvSettingsSource(_Environment)())
    except SettingsError as error:  # an environment variable that is no JSON where it has to be
        field = re.search(r'field "(\w+)"', str(error))
        what = f"{field[1]}: " if field else ""
        raise ConfigError([*problems, f"{what}a list or table in an environment variable is no JSON"]) from error
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise ConfigError(problems + _lines(error) + _sound_contradictions(with_defaults(document), error)) from error
    if problems := problems + contradictions(settings.sinks, settings.flows, settings.routes):
        raise ConfigError(problems)
    return settings


class _Environment(BaseSettings, Settings):
    """Which variables there may be: pydantic-settings asks a class of its own kind."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_nested_delimiter="__")


def _read(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _sound_contradictions(document: Mapping[str, Any], error: ValidationError) -> list[str]:
    """What contradicts in the tables that have no mistake of their own, so that it is said at the same time."""
    wrong = {detail["loc"][:2] for detail in error.errors()}
    if wrong & {("sinks",), ("flows",), ("routes",)}:
        return []

    def sound(table: str, valid: Callable[[Any], T], entries: Iterable[tuple[str | int, Any]]) -> dict[Any, T | None]:
        return {key: None if (table, key) in wrong else valid(entry) for key, entry in entries}

    sinks: TypeAdapter[SinkSettings] = TypeAdapter(SinkSettings)
    return contradictions(
        sound("sinks", sinks.validate_python, document["sinks"].items()),
        sound("flows", FlowSettings.model_validate, document.get("flows", {}).items()),
        list(sound("routes", RouteSettings.model_validate, enumerate(document["routes"])).values()),
    )


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


_MESSAGES = {
    "model_attributes_type": "not a table",
    "dataclass_type": "not a table",
    "extra_forbidden": "there is no such key",
    "unexpected_keyword_argument": "there is no such key",
}


def _lines(error: ValidationError) -> list[str]:
    """A line per mistake. Never the value: it may be a secret."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        path = [str(key) for key in detail["loc"]]
        if path[0] == "sinks" and len(path) > 2:
            del path[2]  # the tag of the union
        message = _MESSAGES.get(detail["type"], detail["msg"]).removeprefix("Value error, ")
        if path[0] == "sinks" and path[-1] == "type":
            message = f"not one of {', '.join(BUILT_IN_SINKS)}, nor of the form package.module:Class"
        lines.append(f"{'.'.join(path)}: {message}")
    return lines
