"""Who a request comes from, and what was asked for: what is believed of that, and what destinations are told. Pure.

1. What a header says of that is only worth what its sender is: it is taken from a peer in a trusted network, and from
   nobody else. So is all by which proxies tell applications who somebody is, or what he really asked for.
2. A proxy writes one family, Forwarded (RFC 7239) or X-Forwarded-*, and what it does not write its client may have.
   The family that the trusted ones write is configured; the other is ignored, and made anew of it.
3. What cannot be read in one way only says nothing: a Forwarded that does not follow its grammar, or a scheme or a host
   that is given twice. Whoever appends to the one, or chooses among the others, would tell what a client made up.
4. Then this hop is added. Destinations get both families, and they tell the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Literal

from gateway.http.target import is_host
from gateway.model import Upload

__all__ = [
    "TOKEN",
    "UNIX_PEER",
    "Family",
    "TrustedNetworks",
    "appended",
    "client_address",
    "is_believed",
    "joined",
    "names_origin",
    "origin_headers",
    "peer_address",
]

Family = Literal["x-forwarded", "forwarded"]
"""What the trusted proxies write: X-Forwarded-For, -Proto, -Host and their like, or Forwarded."""

UNIX_PEER = "unix:"
"""The address of all that come by a socket of this machine: they have none, and the mode of its file lets them in."""
_TCHARS = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TOKEN = re.compile(_TCHARS)
_PAIR = re.compile(rf'({_TCHARS})=("(?:[\t\x20\x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"|{_TCHARS})')
_BETWEEN_PAIRS = re.compile(r"[ \t]*(?:(;)|,)[ \t]*")
_REMEMBERED = 1024
"""Addresses: whoever connects is asked about some times per request."""
_WITH_PORT = re.compile(r"\[?([0-9A-Fa-f.:]+?)\]?:([0-9]{1,5})")
_VISIBLE = re.compile(r"[\x21-\x7e]+")

_CLAIMS = frozenset(
    [
        # where from
        *("forwarded", "forwarded-for", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-originating-ip"),
        *("x-proxyuser-ip", "x-appengine-user-ip", "x-azure-clientip", "x-azure-socketip", "client-ip"),
        *("true-client-ip", "fastly-client-ip", "fly-client-ip", "do-connecting-ip", "x-nf-client-connection-ip"),
        *("cf-pseudo-ipv4", "cf-ipcountry", "cf-visitor", "proxy-client-ip", "wl-proxy-client-ip"),
        # what was asked for, and how
        *("x-host", "x-http-host-override", "x-http-method", "x-http-method-override", "x-method-override"),
        *("x-scheme", "x-url-scheme", "front-end-https"),
        # by whom; the second line is RFC 9440
        *("x-client-cert", "x-client-dn", "x-client-verify"),
        *("client-cert", "client-cert-chain"),
    ]
)
_CLAIMING = (
    *("x-forwarded", "x-vercel-forwarded", "cf-connecting-", "x-original-", "x-rewrite-", "x-arr-", "x-envoy-"),
    *("x-ssl", "ssl-client-", "x-tls-client-", "x-amzn-mtls-", "remote-", "x-remote-", "x-webauth-"),
    *("x-auth-request-", "x-authenticated-", "x-authentik-", "x-goog-authenticated-user-", "x-goog-iap-"),
    *("x-amzn-oidc-", "x-ms-client-principal", "cf-access-"),
)
"""How further ones begin."""


class TrustedNetworks:
    """`peer in networks`: may this address tell us who it speaks for? Raises ValueError for what is no network."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = []
        self._has_unix = False
        for text in networks:
            if text == UNIX_PEER:
                self._has_unix = True
                continue
            try:
                self._networks.append(ip_network(text))
            except ValueError as error:
                raise ValueError(f"{text} is not a range of addresses such as 10.1.0.0/16: {error}") from error
        self._found = lru_cache(maxsize=_REMEMBERED)(self._look_up)

    def __contains__(self, peer: str) -> bool:
        return self._found(peer)

    def _look_up(self, peer: str) -> bool:
        if peer == UNIX_PEER:
            return self._has_unix
        try:
            address = ip_address(peer_address(peer))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


@lru_cache(maxsize=_REMEMBERED)
def peer_address(name: str) -> str:
    """The address of a peer, as the system names it. One of IPv4 is itself where a socket takes both (RFC 4291
    2.5.5.2), which is what systemd opens for a port.
    """
    if not name.startswith("::ffff:"):
        return name
    try:
        mapped = IPv6Address(name).ipv4_mapped
    except ValueError:
        return name
    return name if mapped is None else str(mapped)


def client_address(headers: Iterable[tuple[str, str]], peer: str, *, trusted: TrustedNetworks, family: Family) -> str:
    """Where a request comes from: who is trusted tells for whom it speaks, and so on, as far as that are addresses.

    Of a peer that is not trusted nothing is looked at: it is the client.
    """
    if peer not in trusted:
        return peer
    if family == "forwarded":
        nodes = [_bare(pairs.get("for", "")) for pairs in _elements(joined(headers, "forwarded"))]
    else:
        nodes = [_bare(_node(node.strip())) for node in joined(headers, "x-forwarded-for").split(",")]
    client = peer
    while client in trusted and nodes:
        try:
            client = str(ip_address(nodes.pop()))
        except ValueError:
            break
    return client


def names_origin(name: str) -> bool:
    """Whether a header, in lower case, is of those by which proxies tell applications whom they speak for (rule 1)."""
    return name in _CLAIMS or name.startswith(_CLAIMING)


def is_believed(name: str, family: Family) -> bool:
    """Whether a trusted proxy writes this header, in lower case, itself: not if it is of the other family (rule 2)."""
    return name != "forwarded" if family == "x-forwarded" else not name.startswith("x-forwarded")


def origin_headers(upload: Upload) -> list[tuple[str, str]]:
    """Forwarded and X-Forwarded-For, -Proto, -Host: what was believed, and this hop (rule 4)."""
    chain, addresses, scheme, host = _told(upload)
    # without the zone of a link-local address
    peer = "" if upload.peer == UNIX_PEER else upload.peer.partition("%")[0]
    made = [
        ("Forwarded", appended(chain, _element(peer or "unknown", upload.scheme, upload.host))),
        ("X-Forwarded-For", appended(addresses, peer)),
        ("X-Forwarded-Proto", scheme or upload.scheme),
        ("X-Forwarded-Host", host or upload.host),
    ]
    return [(name, value) for name, value in made if value and value.isprintable()]


def _told(upload: Upload) -> tuple[str, str, str, str]:
    """What the hops before us told, in both families: Forwarded, X-Forwarded-For, -Proto, -Host. Empty: nothing."""
    chain = joined(upload.headers, "forwarded")
    if elements := _elements(chain):
        addresses = ", ".join(_bare(pairs["for"]) for pairs in elements if "for" in pairs)
        scheme, host = elements[0].get("proto", ""), elements[0].get("host", "")
    else:
        addresses = joined(upload.headers, "x-forwarded-for")
        scheme, host = _only(upload, "x-forwarded-proto"), _only(upload, "x-forwarded-host")
    scheme, host = scheme if TOKEN.fullmatch(scheme) else "", host if is_host(host) else ""
    if not elements:
        nodes = [node.strip() for node in addresses.split(",") if node.strip()]
        first = _element(nodes[0] if nodes else "", scheme, host)
        chain = ", ".join(filter(None, [first, *(_element(node) for node in nodes[1:])]))
    return chain, addresses, scheme, host


def _elements(chain: str) -> list[dict[str, str]]:
    """The pairs of each forwarded-element (RFC 7239 4), names in lower case; none where it cannot be read (rule 3)."""
    found: list[dict[str, str]] = [{}]
    position = 0
    while match := _PAIR.match(chain, position):
        name, value = match[1].lower(), match[2]
        if name in found[-1]:
            return []
        found[-1][name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        position = match.end()
        if position == len(chain):
            return found
        between = _BETWEEN_PAIRS.match(chain, position)
        if between is None:
            return []
        if between[1] is None:
            found.append({})
        position = between.end()
    return []


def _element(node: str, scheme: str = "", host: str = "") -> str:
    """One forwarded-element (RFC 7239 4): `for="[2001:db8::1]";host="a:8080";proto=https`."""
    pairs = [f"for={_quoted(_node(node))}"] if node else []
    if _VISIBLE.fullmatch(host):
        pairs.append(f"host={_quoted(host)}")
    if TOKEN.fullmatch(scheme):
        pairs.append(f"proto={scheme}")
    return ";".join(pairs)


def _node(text: str) -> str:
    """An address as RFC 7239 6 writes it; `unknown` for what is none, and no name that is obfuscated on purpose."""
    address, port = text.strip("[]"), ""
    if match := _WITH_PORT.fullmatch(text):
        address, port = match[1], f":{match[2]}"
    for candidate, suffix in ((text.strip("[]"), ""), (address, port)):
        try:
            ip = ip_address(candidate)
        except ValueError:
            continue
        return f"[{ip}]{suffix}" if isinstance(ip, IPv6Address) else f"{ip}{suffix}"
    return text if re.fullmatch(r"_[A-Za-z0-9._-]+", text) else "unknown"


def _bare(node: str) -> str:
    """The address in a node, as X-Forwarded-For has it: no brackets, no port; `unknown` for what is none."""
    match = re.fullmatch(r"\[([0-9A-Fa-f.:]+)\](?::.*)?|([0-9.]+):.*", node)
    bare = node if match is None else match[1] or match[2]
    return bare if _node(bare) != "unknown" else "unknown"


def _quoted(value: str) -> str:
    if TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def joined(headers: Iterable[tuple[str, str]], wanted: str) -> str:
    """The values of a list-valued header as one (RFC 9110 5.3)."""
    return ", ".join(value.strip() for name, value in headers if name.lower() == wanted and value.strip())


def _only(upload: Upload, wanted: str) -> str:
    """The value of a header that has one; of several that differ none (rule 3)."""
    values = {value.strip().lower() for value in joined(upload.headers, wanted).split(",")}
    return values.pop() if len(values) == 1 else ""


def appended(existing: str, more: str) -> str:
    """The value of a list-valued header with one more at its end."""
    return f"{existing}, {more}" if existing and more else existing or more
