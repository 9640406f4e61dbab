"""What a request asks for: the host, and the path with its query, out of its target and its Host. Pure.

1. An absolute target says all of it, and Host says nothing then (RFC 9112 3.2.2); but it has to be there, and valid.
2. A host is a name, or an address, and perhaps a port, in the characters that names of hosts have. RFC 3986 allows
   more (`,` `;` `%2c`), which is read as a list, or as further parameters, where the host is told in a header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

from gateway.errors import Malformed

__all__ = ["is_host", "origin_form", "requested_host"]

_HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_ABSOLUTE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)", re.ASCII)


def is_host(text: str) -> bool:
    """Whether it is `host` or `host:port`, an IPv6 address in brackets (rule 2)."""
    match = _HOST.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        return False
    if match["address"] is not None:
        try:
            IPv6Address(match["address"])
        except ValueError:
            return False
    return True


def requested_host(target: str, hosts: Sequence[str]) -> str:
    """The host that a request asks for; `hosts` are the values of its Host. Empty where it names none, as HTTP/1.0 may.

    Raises Malformed, and never quotes what it refuses: a target may hold credentials.
    """
    if len(hosts) > 1:
        raise Malformed("Host is given more than once (RFC 9112 3.2)")
    host = hosts[0].strip() if hosts else ""
    if host and not is_host(host):
        raise Malformed("Host is not the name or the address of a host, with or without a port (RFC 9112 3.2)")
    match = _ABSOLUTE.match(target)
    if match is None:
        return host
    if match["scheme"].lower() not in ("http", "https"):
        raise Malformed("the request's target is no URL of http or https")
    if "@" in match["authority"]:
        raise Malformed("the request's target has user info (RFC 9110 4.2.4)")
    if not is_host(match["authority"]):
        raise Malformed("the host in the request's target is not the name or the address of one")
    return match["authority"]


def origin_form(target: str) -> str:
    """The path and the query of a target, whatever its form (RFC 9112 3.2.1)."""
    match = _ABSOLUTE.match(target)
    if match is None:
        return target
    rest = target[match.end() :]
    return rest if rest.startswith("/") else f"/{rest}"
