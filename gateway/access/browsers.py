"""What other people's pages may have browsers do here. Pure.

1. Pages of the configured origins may ask, and read every answer, refusals too (CORS, Fetch 3.3). An origin is compared
   as a whole, and one that is not listed is never repeated. What a destination says about this is about itself, and is
   replaced.
2. A page whose name was made to point at this machine (DNS rebinding) is of the same origin to its browser, and told by
   the name in Host alone.
3. A form, or an image, of another site is sent without being asked about by CORS. Browsers say where it comes from in
   Sec-Fetch-Site, and nothing else does: who sends no such field is no browser, or one that does not say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.http.target import is_host

__all__ = ["ANY", "Browsers", "Cors", "check_host", "check_origin", "head_origin", "is_cross_site", "refused_origin"]

ANY = "*"
_MAX_AGE_SECONDS = 7200
"""What Chrome keeps the answer to a preflight for at most."""
_READ_HERE = (
    *(
        "Authorization",
        "X-API-Key",
        "X-Request-ID",
        "X-Upload-ID",
        "Content-Type",
        "Content-Disposition",
        "Content-Digest",
    ),
    *("Repr-Digest", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"),
)
"""Fields of requests that the gateway itself reads."""
_WRITTEN_HERE = (
    *("Location", "X-Request-ID", "ETag", "Content-Length", "Content-Range", "Content-Disposition", "Accept-Ranges"),
    *("Repr-Digest", "Retry-After", "RateLimit", "RateLimit-Policy", "WWW-Authenticate", "Proxy-Status", "Allow"),
    "Accept-Encoding",
)
"""Fields of answers that it writes, and that a page reads only where it is told that it may."""
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@]+)", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PATH_IN_HEAD = re.compile(rb"[A-Z]+ ([^ ?#\r\n]*)")
_ORIGIN_IN_HEAD = re.compile(rb"\r\norigin:[ \t]*([!-~]*)[ \t]*(?=\r\n)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cors:
    """Whose pages may use some paths."""

    origins: frozenset[str]
    headers: tuple[str, ...] = ()
    """Of requests, beside those that the gateway reads."""
    credentials: bool = False

    def allows(self, origin: str | None) -> bool:
        """Whether it is one of them."""
        return ANY in self.origins or origin in self.origins

    def fields(self, origin: str | None, methods: str = "") -> dict[str, str]:
        """Those of an answer; with `methods` of one to a preflight."""
        if not self.allows(origin):
            return {}
        fields = {"Access-Control-Allow-Origin": ANY if ANY in self.origins else str(origin)}
        if self.credentials:
            fields["Access-Control-Allow-Credentials"] = "true"
        if not methods:
            return {**fields, "Access-Control-Expose-Headers": ", ".join(_WRITTEN_HERE)}
        return {
            **fields,
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": ", ".join([*_READ_HERE, *self.headers]),
            "Access-Control-Max-Age": str(_MAX_AGE_SECONDS),
        }


@dataclass(frozen=True, slots=True)
class Browsers:
    """What holds at one listener."""

    cors: Cors | None = None
    """Where a route has none of its own. None: no page but our own may read anything."""
    routes: Mapping[str, Cors | None] = field(default_factory=dict)
    """By path."""
    hosts: frozenset[str] = frozenset([ANY])
    """The names that it is asked under, in lower case, without ports."""

    def cors_of(self, path: str) -> Cors | None:
        """That of a path: of a route, of what is right below one (a raw upload's name), or of all others."""
        for place in (path, path.rpartition("/")[0]):
            if place in self.routes:
                return self.routes[place]
        return self.cors

    def tell(self, headers: CIMultiDict[str], path: str, origin: str | None, methods: str = "") -> None:
        """Write into an answer's headers who may read it, in place of what is there."""
        cors = self.cors_of(path)
        if cors is None:
            return
        for name in [name for name in headers if name.lower().startswith("access-control-")]:
            headers.popall(name, None)
        headers.update(cors.fields(origin, methods))
        vary = [token.strip() for value in headers.getall("Vary", ()) for token in value.split(",")]
        others = [token for token in vary if token and token.lower() != "origin"]
        headers["Vary"] = ", ".join([*others, "Origin"])

    def takes(self, host: str) -> bool:
        """Whether it may be asked under that Host. No browser leaves it out."""
        if ANY in self.hosts:
            return True
        name = re.sub(r":[0-9]*$", "", host.lower()).removesuffix(".")
        return not name or name in self.hosts


def head_origin(headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> str | None:
    """The origin that a request comes from; None where it does not say, or says two."""
    origins = headers.getall("Origin", ())
    return origins[0] if len(origins) == 1 else None


def refused_origin(head: bytes, base_path: str) -> tuple[str, str | None]:
    """The path and the origin of a head that is refused, as far as it came: whoever is allowed reads why."""
    path = _PATH_IN_HEAD.match(head)
    origins = _ORIGIN_IN_HEAD.findall(head)
    told = path[1].decode("latin-1") if path else ""
    if told.startswith(base_path + "/"):
        told = told.removeprefix(base_path)
    return told, origins[0].decode() if len(origins) == 1 else None


def is_cross_site(headers: CIMultiDictProxy[str] | CIMultiDict[str], method: str, scope: str) -> bool:
    """Whether another site's page has a browser ask (Fetch Metadata). A link that is followed is the user's own doing:
    what is read by it no page sees.
    """
    if "cross-site" not in {site.strip().lower() for site in headers.getall("Sec-Fetch-Site", ())}:
        return False
    follows = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return not (follows and method in ("GET", "HEAD") and scope in ("read", "download"))


def check_origin(origin: str) -> str:
    """The same. Raises ValueError for what no browser calls an origin (RFC 6454 6.2)."""
    if origin in (ANY, "null"):
        return origin
    match = _ORIGIN.fullmatch(origin)
    if match is None or not is_host(match["host"]) or match["host"] != match["host"].lower():
        raise ValueError(f"{origin} is no origin, such as https://app.example.org: scheme, host, perhaps a port")
    port = _DEFAULT_PORTS.get(match["scheme"])
    if port and origin.endswith(port):
        raise ValueError(f"{origin} is {origin.removesuffix(port)} to browsers, without the port")
    return origin


def check_host(host: str) -> str:
    """The same, in lower case. Raises ValueError for what is no name, nor an address."""
    if host != ANY and (not is_host(host) or ":" in host.rpartition("]")[2]):
        raise ValueError(f"{host} is no name or address of a host, without a port; an IPv6 address stands in brackets")
    return host.lower()
