"""The environment as a source of settings: `GATEWAY_SINKS__API__URL`, two underscores between a table and its key.

Others have variables that begin like ours. Kubernetes sets some for each service, and a service may be called gateway
(`GATEWAY_SERVICE_HOST`, `GATEWAY_PORT_8080_TCP_ADDR`) or gateway-server (`GATEWAY_SERVER_PORT=tcp://...`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gateway.config.messages import did_you_mean, keys_at
from gateway.config.settings import Settings
from gateway.config.sinks import sink_tag

__all__ = ["laid_over", "misspelt_variables", "read_environment", "unknown_variables", "variable_below", "variable_of"]

_PREFIX = "GATEWAY_"
_OF_KUBERNETES = re.compile(
    r"GATEWAY(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_OF_THE_CLIENT = ("GATEWAY_KEY", "GATEWAY_URL")
"""What `gateway send` and `gateway get` read, perhaps on the same machine."""
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""What Kubernetes puts into `..._PORT`; no key of ours has such a value."""


def read_environment(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(settings as a document, a line for each variable that cannot be what it looks like).

    The document of the file says which sinks there are. Whether a value suits its key is looked at later, with the
    file's.
    """
    misspelt = misspelt_variables(document)
    lines = [
        f"{path}: two underscores belong between a table and its key: {right} ({variable})"
        for variable, (path, right) in misspelt.items()
    ]
    found: dict[str, Any] = {}
    for path, variable in sorted((_path_of(variable), variable) for variable in _ours() if variable not in misspelt):
        if path[0] in Settings.model_fields:
            value: Any = _value(path, os.environ[variable], laid_over(document, found))
            for key in reversed(path):
                value = {key: value}
            found = laid_over(found, value)
        elif path[1:]:
            suggestion = did_you_mean(path[0], Settings.model_fields)
            lines.append(f"{path[0]}: there is no such table{suggestion} ({variable})")
    return found, lines


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A document with the keys of another in place of its own, table by table."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = laid_over(under, value)
        merged[key] = value
    return merged


def _value(path: Sequence[str], text: str, document: Mapping[str, Any]) -> Any:
    """A list or a table is written as JSON, and so is what has no type here: the options of flows and own sinks."""
    if text.lstrip()[:1] in ("[", "{") or _is_an_option(path, document):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _is_an_option(path: Sequence[str], document: Mapping[str, Any]) -> bool:
    match path:
        case ("flows", _, key, *_):
            return key != "use"
        case ("sinks", name, key, *_):
            sinks = document.get("sinks")
            return key != "type" and isinstance(sinks, Mapping) and sink_tag(sinks.get(name)) == "own"
    return False


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
        and variable.upper() not in _OF_THE_CLIENT
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


def variable_below(path: Sequence[str]) -> str | None:
    """A variable that makes a table of what stands at this path; None for none."""
    return next((variable for variable in _ours() if variable.upper().startswith(f"{variable_name(path)}__")), None)


def variable_name(path: Sequence[str]) -> str:
    """What the variable of a key is called."""
    return _PREFIX + "__".join(path).upper()


def _path_of(variable: str) -> tuple[str, ...]:
    return tuple(variable.upper().removeprefix(_PREFIX).lower().split("__"))


def _ours() -> list[str]:
    return [variable for variable in os.environ if variable.upper().startswith(_PREFIX)]


def _paths(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """All keys that a single variable can set, of the tables that there are."""
    for table in ("server", "management", "page", "limits", "download", "quotas"):
        for key in keys_at((table,)):
            yield table, key
    for kind in keys_at(("access",)):
        for key in keys_at(("access", kind)):
            yield "access", kind, key
    sinks = document.get("sinks")
    for name, sink in sinks.items() if isinstance(sinks, Mapping) else ():
        tag = sink_tag(sink)
        for key in keys_at(("sinks", name, tag)):
            yield "sinks", name, key
        for key in keys_at(("sinks", name, tag, "tls")):
            yield "sinks", name, "tls", key
