"""The description of the API (OpenAPI 3.1): openapi.json beside this, with the routes of a configuration put into it.

What is the same at each operation is written here once: the problems that it may answer, `X-Request-ID`, who may, and
examples with the addresses of this gateway (`x-curl`, `{url}`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

from gateway.config.addresses import TcpAddress
from gateway.config.settings import RouteSettings, Settings
from gateway.errors import LEAVES

__all__ = ["api_description"]

Operation = dict[str, Any]

_PROBLEM = {"$ref": "#/components/responses/Problem"}
_PROBLEM_OR_PAGE = {"$ref": "#/components/responses/ProblemOrPage"}
_REQUEST_ID = {"$ref": "#/components/parameters/X-Request-ID"}
_OPEN = ("/healthz", "/readyz", "/metrics", "/problems", "/openapi.json", "/selftest", "/page")
"""Nobody is asked who he is there, and below."""
_LINKED = ("/uploads/{id}/archive.zip", "/files/{id}/{index}", "/files/{id}/{index}/{filename}")
"""What links of the page lead to, which are signed."""


def api_description(settings: Settings) -> dict[str, Any]:
    """That of a gateway with these settings."""
    document: dict[str, Any] = json.loads(files("gateway.server").joinpath("openapi.json").read_text("utf-8"))
    kinds = document.pop("x-routes")
    own = {path: item for path, item in document["paths"].items() if _is_served(path, settings)}
    paths = {}
    for route in settings.routes:
        for below, operations in json.loads(json.dumps(kinds[route.kind])).items():
            paths[route.path + below] = {
                method: operation
                for method, operation in operations.items()
                if method.upper() in route.effective_methods or below
            }
            if route.keep == "each":
                for operation in paths[route.path + below].values():
                    _keep_each(operation)
    document["servers"] = [{"url": settings.server.base_path or "/"}]
    document["paths"] = paths | own
    components = document["components"]
    components["schemas"] |= _problems()
    for path, method, operation in _operations(document):
        _complete(operation, path, method, components["parameters"], _address(settings))
        if security := _security(path, settings):
            operation["security"] = security
    used = {name for _, _, operation in _operations(document) for one in operation.get("security", ()) for name in one}
    schemes = components.pop("securitySchemes")
    if used:
        components["securitySchemes"] = {name: scheme for name, scheme in schemes.items() if name in used}
    return document


def _is_served(path: str, settings: Settings) -> bool:
    if path == "/" or "/links/" in path:
        return settings.has_page
    return _is_below(path, ("/problems", *settings.own_paths))


def _is_below(path: str, owns: Iterable[str]) -> bool:
    return any(path == own or path.startswith(own + "/") for own in owns)


def _keep_each(operation: Operation) -> None:
    """What a route says that keeps the parts that are good."""
    responses = operation["responses"]
    for status in [status for status in ("200", "201") if status in responses]:
        description = "Not all files are kept: parts that are not have a problem"
        responses["207"] = {**responses[status], "description": description}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _complete(operation: Operation, path: str, method: str, parameters: dict[str, Any], address: str) -> None:
    operation["parameters"] = [*operation.get("parameters", ()), _REQUEST_ID]
    has_page = method == "post" and any(
        "text/html" in one.get("content", ()) for one in operation["responses"].values()
    )
    problem = _PROBLEM_OR_PAGE if has_page else _PROBLEM
    for status in operation.pop("x-problems"):
        operation["responses"][str(status)] = problem
    operation["responses"]["default"] = problem
    for name, parameter in parameters.items():
        path = path.replace(f"{{{name}}}", str(parameter.get("example", name)))
    if samples := operation.pop("x-curl", None):
        sources = [sample.replace("{url}", address + path) for sample in samples]
        operation["x-codeSamples"] = [{"lang": "Shell", "source": source} for source in sources]


def _problems() -> dict[str, Any]:
    """A schema for each kind of problem."""
    return {
        f"{leaf.__name__}Problem": {
            "allOf": [
                {"$ref": "#/components/schemas/Problem"},
                {
                    "properties": {
                        "type": {"type": "string", "pattern": f"/problems/{leaf.slug()}$"},
                        "title": {"const": leaf.title},
                        "status": {"const": leaf.status},
                    }
                },
            ]
        }
        for leaf in LEAVES
    }


def _security(path: str, settings: Settings) -> list[dict[str, list[str]]]:
    """Any one of these; an empty one is nobody's."""
    if path == "/" or _is_below(path, _OPEN):
        return []
    if path.startswith("/download/"):
        kinds = settings.download.access or ("none",)
    else:
        kinds = tuple(dict.fromkeys(kind for route in _routes_of(path, settings) for kind in route.access or ("none",)))
        if settings.has_page and kinds != ("none",) and "signed" not in kinds and path in _LINKED:
            kinds += ("signed",)
    return [] if kinds == ("none",) else [{} if kind == "none" else {kind: []} for kind in kinds]


def _routes_of(path: str, settings: Settings) -> list[RouteSettings]:
    """The route; all of them for what was stored, which is for whoever may use any."""
    return [route for route in settings.routes if path in (route.path, route.path + "/{filename}")] or [
        *settings.routes
    ]


def _address(settings: Settings) -> str:
    """Where it can be asked by a url; on its own host where it listens on none."""
    scheme, base = "https" if settings.tls else "http", settings.server.base_path
    found = [address.told(scheme) for address in settings.server.addresses if isinstance(address, TcpAddress)]
    return found[0] + base if found else base or "/"
