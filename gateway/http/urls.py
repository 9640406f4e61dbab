"""One strict parser for the absolute URLs that others write, an operator's or a client's. Pure.

Taken apart once, and put together again from the parts that were looked at: all of it ASCII. Anything that two parsers
could read differently (backslashes, user info, white space, short or octal or hex addresses, an escape that is none) is
refused with a ValueError that says what it is about, and never quotes it: it may hold a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import idna

__all__ = [
    "PATH_SAFE",
    "PORTS",
    "SplitUrl",
    "authority",
    "destination_url",
    "origin_path",
    "split_url",
    "without_secrets",
]

PORTS = {"http": 80, "https": 443}
PATH_SAFE = "%/:@!$&'()*+,;=~[]"
"""What stays as it is in a path; the rest is percent-encoded, as UTF-8."""
_QUERY_SAFE = PATH_SAFE + "?"

# re.ASCII: to IGNORECASE alone, U+017F is an s
_URL = re.compile(r"(https?)://([^/?]*)([^?]*)(?:\?(.*))?", re.ASCII | re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_USER_INFO = re.compile(r"://[^\s/?#\"]*@")
_QUERY = re.compile(r"(://[^\s?#\"]*)\?[^\s\"]*")
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class SplitUrl:
    """A URL taken apart: scheme and host in lower case, host and query in ASCII, the path as it came."""

    scheme: str
    host: str
    """An IPv6 address stands in brackets; a name may end in a dot."""
    port: int | None
    """None: the scheme's."""
    path: str
    query: str | None
    """None where there is no question mark."""


def split_url(url: str) -> SplitUrl:
    """Take an http or https URL apart. Raises ValueError for one that is none, or has two readings."""
    _check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("the URL does not begin with http:// or https://")
    scheme, hostport, path, query = match.groups()
    if "@" in hostport:
        raise ValueError("the URL has user info")
    match = _AUTHORITY.fullmatch(hostport)
    if match is None:
        raise ValueError("the URL's host or port is invalid")
    host, port = match.groups()
    if port is not None and not (port.isascii() and 0 < int(port or 0) <= 65535 and port[0] != "0"):
        raise ValueError("the URL's port is no number from 1 to 65535")
    query = None if query is None else quote(query, safe=_QUERY_SAFE)
    return SplitUrl(scheme.lower(), _host(host), None if port is None else int(port), path, query)


def destination_url(url: str) -> str:
    """An operator's URL as requests are made of it: IDNA and percent-encoding applied, otherwise as it was written.

    Raises ValueError. Dot segments and escapes stay as they are: an operator knows what his destination makes of them.
    """
    split = split_url(url)
    port = "" if split.port is None else f":{split.port}"
    query = "" if split.query is None else f"?{split.query}"
    if _NO_ESCAPE.search(split.path + query):
        raise ValueError("the URL has a % that begins no escape: a percent sign itself is %25")
    return f"{split.scheme}://{split.host}{port}{quote(split.path or '/', safe=PATH_SAFE)}{query}"


def origin_path(text: str) -> str:
    """A path, with or without a query, on a host that is known: it begins with one slash. Raises ValueError."""
    _check_characters(text)
    if not text.startswith("/") or text.startswith("//"):
        raise ValueError("the path does not begin with one slash")
    if _NO_ESCAPE.search(text):
        raise ValueError("the path has a % that begins no escape: a percent sign itself is %25")
    return quote(text, safe=_QUERY_SAFE)


def authority(host: str, port: int) -> str:
    """`host:port` as it stands in a URL: an IPv6 address in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_secrets(text: str) -> str:
    """A text without the user info and the queries of the URLs in it: those may be credentials, or signatures."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("://", text)) if "://" in text else text


def _check_characters(text: str) -> None:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("the URL has white space or control characters in it")
    if "\\" in text:
        raise ValueError("the URL has a backslash in it")
    if "#" in text:
        raise ValueError("the URL has a fragment")


def _host(text: str) -> str:
    try:
        return _address(text) if text.startswith("[") else _name(text)
    except ValueError as error:  # idna's and ipaddress's errors among them
        raise ValueError("the URL's host is invalid") from error


def _address(text: str) -> str:
    address = IPv6Address(text[1:-1])
    if address.scope_id is not None:
        raise ValueError("an address of one link only")
    return f"[{address.compressed}]"


def _name(text: str) -> str:
    host = idna.uts46_remap(text, std3_rules=False).lower()
    dotless = host.removesuffix(".")
    *_, last = labels = dotless.split(".")
    if _NUMBER.fullmatch(last):  # then it is an address to some: 2130706433, 127.1, 0177.0.0.1, 0x7f.1
        return str(IPv4Address(dotless))
    name = ".".join(_label(label) for label in labels)
    if len(name) > 253:
        raise ValueError("too long")
    return name + host[len(dotless) :]


def _label(label: str) -> str:
    """One label of a name, as it is asked for. Liberal where no two parsers differ: `_`, and `--` in the middle."""
    if not label.isascii():
        return idna.alabel(label).decode()
    if not _LABEL.fullmatch(label) or (label.startswith("xn--") and idna.alabel(idna.ulabel(label)) != label.encode()):
        raise ValueError(label)
    return label
