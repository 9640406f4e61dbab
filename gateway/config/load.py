"""TOML and environment -> valid settings, or all that is wrong with them.

Sources, strongest first: environment (`GATEWAY_SINKS__API__URL=…`), the file, the defaults. Unknown keys, wrong
values, and keys that contradict each other are errors that name the key path, all at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.config.contradictions import contradictions
from gateway.config.environment import read_environment, variable_of
from gateway.config.messages import mistakes
from gateway.config.settings import FlowSettings, RouteSettings, Settings, with_defaults
from gateway.config.sinks import SinkSettings

__all__ = ["ConfigError", "load"]

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has a line per key path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: str | Path | None = None) -> Settings:
    """The settings of a TOML file, or the defaults. Raises ConfigError with all that is wrong."""
    file = {} if path is None else _read(path)
    environment, problems = read_environment(with_defaults(file))
    document = _laid_over(file, environment)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        problems += mistakes(error, source=lambda key: variable_of(key) or str(path))
        raise ConfigError(problems + _sound_contradictions(with_defaults(document), error)) from error
    if problems := problems + contradictions(settings.sinks, settings.flows, settings.routes):
        raise ConfigError(problems)
    return settings


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


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _laid_over(under, value)
        merged[key] = value
    return merged
