"""What a download may ask for, and which addresses it may dial. No socket is opened and no name looked up here.

A download makes this process ask for what a stranger names, from where this process stands: beside
databases, metadata services and other people's admin pages. Two fences, and every hop passes both:

1. `UrlRules`: the URL is on the operator's list. What is compared is what is dialled: the URL is taken
   apart once, strictly, and put together again from the parts that were compared. Anything that two
   parsers could read differently (backslashes, user info, encoded slashes and dots, short or octal or hex
   addresses, white space) is refused, not repaired. Encoded slashes pass where every path of a host does.
2. `AddressGuard`: the address that is about to be dialled is a public one, whatever name led to it. A
   list of our own: `ipaddress.is_global` differs between versions of Python, and lets NAT64 through.
   An address that holds another one (mapped, NAT64, 6to4, Teredo) is refused for its range: who would
   route it, and to where, cannot be known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, unquote_to_bytes

from yarl import URL

from gateway.errors import Forbidden
from gateway.http.urls import PATH_SAFE, PORTS, split_url

__all__ = ["AddressGuard", "UrlRules", "redirect_target", "target_of"]

_MAPPED = IPv6Network("::ffff:0:0/96")

_DENIED = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host; Linux dials loopback for it
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT; 100.100.100.200 is a metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the host of a virtual machine at Azure, public by its number only
        "169.254.0.0/16",  # link-local; 169.254.169.254 is a metadata service
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is a metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        # All that is not global unicast 2000::/3: unspecified, loopback, IPv4-compatible, IPv4-mapped, NAT64
        # (64:ff9b::/96, 64:ff9b:1::/48), discard (100::/64), segment routing (5f00::/16), unique local (fc00::/7,
        # fd00:ec2::254 is a metadata service), link-local (fe80::/10), site-local (fec0::/10), multicast (ff00::/8).
        "::/3",
        "4000::/2",
        "8000::/1",
        # and within it
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


class AddressGuard:
    """Refuses what is not a public address. `allow_private` opens ranges: `["10.1.0.0/16"]`.

    Raises ValueError for a range that is none.
    """

    def __init__(self, allow_private: Sequence[str] = ()) -> None:
        self._opened = [_range(text) for text in allow_private]

    def check(self, address: str) -> None:
        """Raises Forbidden. An IPv4-mapped address is opened by the range of the address in it."""
        try:
            ip = ip_address(address)
        except ValueError as error:
            raise Forbidden("this is not an IP address") from error
        mapped = None
        if isinstance(ip, IPv6Address):
            if ip.scope_id is not None:
                raise Forbidden(f"{address} is an address of one link only")
            mapped = ip.ipv4_mapped
        if any((mapped or ip) in network for network in self._opened):
            return
        if any(ip in network for network in _DENIED):
            raise Forbidden(f"{address} is not a public address")


def _range(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text} is not a range of addresses such as 10.1.0.0/16: {error}") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError(f"{text} is a range of IPv4 addresses: write it as one")
    return network


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart: lower case, ports filled in, dot segments removed, all of it ASCII."""

    scheme: str
    host: str
    """An IPv6 address stands in brackets."""
    port: int
    path: str
    query: str | None
    hides_slash: bool
    """Whether a slash is encoded in the path: who decodes it before he looks reads another path."""

    @property
    def url(self) -> URL:
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        query = "" if self.query is None else f"?{self.query}"
        return URL(f"{self.scheme}://{self.host}{port}{self.path}{query}", encoded=True)


@dataclass(frozen=True, slots=True)
class _Rule:
    scheme: str
    host: str | None
    """None: any."""
    port: int
    path: str
    tail: bool
    """Whether `path` is only how it begins."""

    @property
    def covers_all_paths(self) -> bool:
        """Then no reading of a path leads out of it."""
        return self.tail and self.path == "/"

    def covers(self, target: _Target) -> bool:
        return (
            (self.scheme, self.port) == (target.scheme, target.port)
            and self.host in (None, target.host)
            and (self.covers_all_paths or not target.hides_slash)
            and (target.path.startswith(self.path) if self.tail else target.path == self.path)
        )


class UrlRules:
    """What may be asked for: `https://example.org/files/*`. Raises ValueError for a pattern that cannot be one.

    Scheme, host and port are compared exactly, and so is the path, but for a `*` at its end. `*` may also be
    the whole host; it stands nowhere else. The query is not compared.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [_rule(pattern) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def check(self, url: str | URL) -> URL:
        """The URL as it was compared, and is to be dialled. Raises Forbidden."""
        target = _parse(str(url))
        if not any(rule.covers(target) for rule in self._rules):
            if target.hides_slash:
                raise Forbidden("the URL's path has an encoded slash, which takes a pattern that allows the whole host")
            raise Forbidden("this URL is not one that may be downloaded")
        return target.url


def _rule(pattern: str) -> _Rule:
    shown = pattern.rpartition("@")[2].partition("?")[0]  # without what may be a secret
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise ValueError(f"{shown} does not begin with http:// or https://")
    scheme, authority, path = match.groups()
    if "?" in path:
        raise ValueError(f"{shown} has a query: queries are not compared")
    any_host = authority == "*" or authority.startswith("*:")
    if any_host:
        authority = f"any{authority[1:]}"
    tail = path.endswith("*")
    if tail:
        path = path[:-1]
    if "*" in authority + path:
        raise ValueError(f"{shown} has a * that is neither the whole host nor the end of the path")
    if any(segment in (".", "..") for segment in path.split("/")):
        raise ValueError(f"{shown} has a dot segment in its path")
    try:
        target = _parse(f"{scheme}://{authority}{path}")
    except Forbidden as error:
        raise ValueError(f"{shown} is not a pattern of URLs: {error.detail}") from error
    if target.hides_slash:
        raise ValueError(f"{shown} is not a pattern of URLs: it has an encoded slash")
    return _Rule(target.scheme, None if any_host else target.host, target.port, target.path, tail)


def target_of(raw_target: str) -> str:
    """The URL in what follows `/download/` in a request target. Raises Forbidden.

    Either it stands there as it is, query included; or it was percent-encoded, and is decoded exactly once. A proxy on
    the way may have merged the slashes in front of its host (`https:/host/…`): no host begins with one, so there is
    nothing else that was typed.
    """
    url = raw_target
    if not _BEGINNING.match(url):
        try:
            url = unquote_to_bytes(url.encode()).decode()
        except UnicodeError as error:
            raise Forbidden("the URL is not UTF-8") from error
    url = _BEGINNING.sub(r"\1://", url, count=1)
    _parse(url)
    return url


def redirect_target(current: URL, location: str) -> str:
    """The URL that `location`, in the answer of `current`, leads to (RFC 3986 5.2), percent-encoded where it is not.

    Raises ValueError for one that is no URL to all who read it, and Forbidden.
    """
    location = _encoded(location.strip(" \t").partition("#")[0])  # a fragment is not sent (RFC 9110 10.2.2)
    origin, path = f"{current.scheme}://{current.raw_authority}", current.raw_path
    if _SCHEME.match(location):
        url = location
    elif location.startswith("//"):
        url = f"{current.scheme}:{location}"
    elif location.startswith("/"):
        url = origin + location
    elif location.startswith("?"):
        url = origin + path + location
    elif location:
        url = f"{origin}{path.rpartition('/')[0]}/{location}"
    else:
        url = str(current)
    target = _parse(url)
    if current.scheme == "https" and target.scheme != "https":
        raise Forbidden("a redirect leads from https to http")
    return url


def _encoded(location: str) -> str:
    """A Location with what servers leave as it is percent-encoded: spaces, and bytes that are no ASCII.

    Raises ValueError for controls, which some readers skip, and for backslashes, which some take for slashes.
    """
    if re.search(r"[\x00-\x1f\x7f\\]", location):
        raise ValueError("its Location has a control character or a backslash in it")
    match = _REFERENCE.fullmatch(location)
    assert match is not None  # every part may be missing, and the last takes everything
    raw = _NO_ESCAPE.sub("%25", match[2]).encode("utf-8", "surrogateescape")
    return match[1] + quote(raw, safe=PATH_SAFE + "?")


# -- what is compared

# re.ASCII: to IGNORECASE alone, U+017F is an s
_BEGINNING = re.compile(r"(https?):/+", re.ASCII | re.IGNORECASE)
_PATTERN = re.compile(r"(https?)://([^/?]*)(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII | re.IGNORECASE)
_REFERENCE = re.compile(r"((?:[a-z][a-z0-9+.-]*:)?(?://[^/?]*)?)(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIDDEN_SLASH = re.compile(r"%(?:25)*2f", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9a-f]{2}")

_TRAPS = re.compile(
    r"%(?![0-9a-f]{2})"  # no encoding at all: %u002e, %zz
    r"|%2e%2e|%5c"  # what other parsers take for dots and separators
    r"|%25(?:25)*(?:2e|5c)"  # the same for those who decode more than once
    r"|%[01][0-9a-f]|%7f"  # controls
    r"|%c[01]%[89ab]|%e0%[89]|%f0%8",  # overlong UTF-8, which is no UTF-8: %c0%ae is a dot to some
    re.ASCII | re.IGNORECASE,
)


def _parse(url: str) -> _Target:
    try:
        split = split_url(url)
    except ValueError as error:
        raise Forbidden(str(error)) from error
    host, port = split.host.removesuffix("."), split.port or PORTS[split.scheme]
    hides_slash = _HIDDEN_SLASH.search(split.path) is not None
    return _Target(split.scheme, host, port, _path(split.path), split.query, hides_slash)


def _path(path: str) -> str:
    if _TRAPS.search(path):
        raise Forbidden("the URL's path has an encoding in it that is not allowed")
    kept: list[str] = []
    *_, last = segments = (path or "/").split("/")[1:]
    for segment in segments:
        if _hides_dots(segment):
            raise Forbidden("the URL's path has a dot segment in disguise")
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if last in (".", ".."):
        kept.append("")
    joined = "/" + quote("/".join(kept), safe=PATH_SAFE)
    return _ESCAPE.sub(lambda escape: escape[0].upper(), joined)


def _hides_dots(segment: str) -> bool:
    """Whether only some read a dot segment in it: `%2e.`, `..;x` (to servlets), `..%2fx`."""
    pieces = [piece.lower().replace("%2e", ".").partition(";")[0] for piece in _HIDDEN_SLASH.split(segment)]
    return segment not in (".", "..") and not {".", ".."}.isdisjoint(pieces)
