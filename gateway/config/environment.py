"""The environment as a source of settings: `GATEWAY_SINKS__API__URL`, two underscores between a table and its key.

Others have variables that begin like ours. Kubernetes sets some for each service, and a service may be called gateway
(`GATEWAY_SERVICE_HOST`, `GATEWAY_PORT_8080_TCP_ADDR`) or gateway-server (`GATEWAY_SERVER_PORT=tcp://...`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from gateway.config.messages import did_you_mean, keys_at
from gateway.config.settings import Settings
from gateway.config.sinks import sink_tag

__all__ = ["misspelt_variables", "read_environment", "unknown_variables", "variable_of"]

_PREFIX = "GATEWAY_"
_OF_KUBERNETES = re.compile(
    r"GATEWAY(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""What Kubernetes puts into `..._PORT`; no key of ours has such a value."""


class _Environment(BaseSettings, Settings):
    """Which variables there may be: pydantic-settings asks a class of its own kind."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter="__")


def read_environment(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(settings as a document, a line for each variable that cannot be what it looks like).

    The document of the file says which sinks there are.
    """
    misspelt = misspelt_variables(document)
    lines = [
        f"{path}: two underscores belong between a table and its key: {right} ({variable})"
        for variable, (path, right) in misspelt.items()
    ]
    for variable in _ours():
        table, separator, _ = variable.upper().removeprefix(_PREFIX).lower().partition("__")
        if separator and table not in Settings.model_fields and variable not in misspelt:
            lines.append(f"{table}: there is no such table{did_you_mean(table, Settings.model_fields)} ({variable})")
    source = EnvSettingsSource(_Environment)
    skipped = {variable.lower() for variable in misspelt}
    source.env_vars = {name: value for name, value in source.env_vars.items() if name.lower() not in skipped}
    try:
        return source(), lines
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        table = field[1] if field else "?"
        named = ", ".join(one for one in _ours() if one.upper().startswith(f"{_PREFIX}{table.upper()}"))
        return {}, [*lines, f"{table}: a list or a table is written as JSON, and this is none ({named})"]


def misspelt_variables(document: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Variable -> the path of the key that it means, and how that is written: fewer underscores than belong there."""
    known = {variable_name(path): path for path in _paths(document)}
    single = {right.replace("__", "_"): right for right in known}
    found: dict[str, tuple[str, str]] = {}
    for variable in _ours():
        right = single.get(variable.upper().replace("__", "_"))
        if right not in (None, variable.upper()) and not _ADDRESS.match(os.environ[variable]):
            found[variable] = (".".join(known[right]), right)
    return found


def unknown_variables(document: Mapping[str, Any]) -> list[str]:
    """Those that begin like ours, name nothing that there is, and are not known to be somebody else's."""
    tables = {variable_name([table]) for table in Settings.model_fields}
    misspelt = misspelt_variables(document)
    return [
        variable
        for variable in _ours()
        if "__" not in variable
        and variable.upper() not in tables
        and variable not in misspelt
        and not _OF_KUBERNETES.fullmatch(variable.upper())
        and not (variable.upper().endswith("_PORT") and _ADDRESS.match(os.environ[variable]))
    ]


def variable_of(path: Sequence[str]) -> str | None:
    """The variable that a key was read from, or that of the table around it; None for none."""
    set_ones = {variable.upper(): variable for variable in _ours()}
    names = (variable_name(path[:length]) for length in range(len(path), 0, -1))
    return next((set_ones[name] for name in names if name in set_ones), None)


def variable_name(path: Sequence[str]) -> str:
    """What the variable of a key is called."""
    return _PREFIX + "__".join(path).upper()


def _ours() -> list[str]:
    return [variable for variable in os.environ if variable.upper().startswith(_PREFIX)]


def _paths(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """All keys that a single variable can set, of the tables that there are."""
    for table in ("server", "limits", "download"):
        for key in keys_at((table,)):
            yield table, key
    sinks = document.get("sinks")
    for name, sink in sinks.items() if isinstance(sinks, Mapping) else ():
        tag = sink_tag(sink)
        for key in keys_at(("sinks", name, tag)):
            yield "sinks", name, key
        for key in keys_at(("sinks", name, tag, "tls")):
            yield "sinks", name, "tls", key
