"""What headers go along, both ways. Pure: a request's headers in, those of another request or answer out.

1. Framing is never copied, only made anew (Host, Content-*, Transfer-Encoding): whoever makes the message
   does that. Hop-by-hop headers, and those that Connection names, end here in both directions (RFC 9110 7.6.1).
2. *Who came from where* (Forwarded, RFC 7239; X-Forwarded-*) is only worth what its sender is. `believed` keeps it
   where the connecting peer lies in a trusted network, and drops it elsewhere; then this hop is added.
   Destinations get both forms, and they tell the same: where a trusted proxy sent one of them, the other is made of it.
3. Cookie and Authorization are credentials for the gateway's origin: a destination gets those that its rules allow.
4. What a destination is to get in any case (`headers`) goes before what the client sent under the same name.
5. `Incremental: ?1` (draft-ietf-httpbis-incremental) asks proxies on the way not to hold the body back.
6. Via, X-Request-ID and Proxy-Status (RFC 9209) say that this gateway was there, and what it met.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from gateway.errors import GatewayError, SinkRefused, SinkTimeout
from gateway.model import Upload

__all__ = [
    "REQUEST_ID",
    "TOKEN",
    "HeaderRules",
    "TrustedNetworks",
    "answer_headers",
    "believed",
    "check_static_header",
    "end_to_end",
    "outbound_headers",
    "proxy_status",
    "request_id",
]

REQUEST_ID = "X-Request-ID"
PSEUDONYM = "gateway"
"""In Via and Proxy-Status: the host name of a gateway is nobody's business (RFC 9110 7.6.3)."""

_HOP_BY_HOP = frozenset(
    # RFC 9110 7.6.1, and what HTTP/1.1 grew before it
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ]
)
_OF_THIS_HOP = frozenset(["host", "expect", "accept-encoding"])
_OF_THE_BODY = frozenset(["digest", "repr-digest"])
"""About the bytes of the body, with all of Content-*: no longer true where it is framed anew."""
_MADE_HERE = frozenset(["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via", "x-request-id"])
_NOT_STATIC = _HOP_BY_HOP | {"host", "expect", "content-length", "digest", "repr-digest"}

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PAIR = re.compile(r'([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)=("(?:[^"\\]|\\.)*"|[!#$%&\'*+\-.^_`|~0-9A-Za-z]+)')
_WITH_PORT = re.compile(r"\[?([0-9A-Fa-f.:]+?)\]?:([0-9]{1,5})")
_STATIC_VALUE = re.compile(r"[\x20-\x7e]*")

_CLOCKS = {
    "connect": "connection_timeout",
    "write": "connection_write_timeout",
    "read": "connection_read_timeout",
    "first_byte": "http_response_timeout",
    "total": "http_response_timeout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRules:
    """What one destination gets beside the client's ordinary headers."""

    forward_cookies: bool | Sequence[str] = False
    """All, none, or those of these names."""
    forward_authorization: bool | Sequence[str] = False
    """Always, never, or where its scheme is one of these."""
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    """To be sent in any case. The values are secrets."""


class TrustedNetworks:
    """`peer in networks`: may this address tell us who it speaks for? Raises ValueError for what is no network."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = []
        for text in networks:
            try:
                self._networks.append(ip_network(text))
            except ValueError as error:
                raise ValueError(f"{text} is not a range of addresses such as 10.1.0.0/16: {error}") from error

    def __contains__(self, peer: str) -> bool:
        if not self._networks:
            return False
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


# -- what came in


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without the hop-by-hop ones, those that Connection names among them."""
    headers = list(headers)
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    drop = _HOP_BY_HOP | named
    return [(name, value) for name, value in headers if name.lower() not in drop]


def believed(headers: Iterable[tuple[str, str]], *, trusted: bool) -> list[tuple[str, str]]:
    """The client's end-to-end headers; what it says about where it comes from only if it is trusted."""
    return [(name, value) for name, value in end_to_end(headers) if trusted or not _claims_origin(name.lower())]


def _claims_origin(name: str) -> bool:
    return name in ("forwarded", "x-real-ip") or name.startswith("x-forwarded-")


def request_id(headers: Iterable[tuple[str, str]], made: str) -> str:
    """The client's X-Request-ID if there is one that is 1 to 128 visible ASCII characters, else `made`."""
    values = [value for name, value in headers if name.lower() == "x-request-id"]
    return values[0] if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]) else made


# -- on to a destination


def outbound_headers(upload: Upload, rules: HeaderRules, *, unchanged: bool = False) -> list[tuple[str, str]]:
    """All headers of a request to a destination but those of its framing, which the request itself makes.

    `unchanged`: the body goes on byte for byte, so that what the client says of it stays true.
    """
    always = {name.lower() for name, _ in rules.headers}
    kept = []
    for name, value in upload.headers:
        lower = name.lower()
        if lower in _OF_THIS_HOP or lower in _MADE_HERE or lower in ("content-length", "content-type"):
            continue
        if not unchanged and (lower in _OF_THE_BODY or lower.startswith("content-")):
            continue
        allowed: str | None = value
        if lower == "cookie":
            allowed = _cookies(value, rules.forward_cookies)
        elif lower == "authorization":
            allowed = _authorization(value, rules.forward_authorization)
        if allowed is not None:
            kept.append((name, allowed))
    made = [*_origin(upload), ("Via", _via(upload.headers, upload.protocol))]
    if upload.request_id:
        made.append((REQUEST_ID, upload.request_id))
    if not any(name.lower() == "incremental" for name, _ in kept):
        made.append(("Incremental", "?1"))
    return [(name, value) for name, value in [*kept, *made] if name.lower() not in always] + list(rules.headers)


def _cookies(value: str, allowed: bool | Sequence[str]) -> str | None:
    if isinstance(allowed, bool):
        return value if allowed else None
    pairs = [pair.strip() for pair in value.split(";")]
    return "; ".join(pair for pair in pairs if pair.partition("=")[0].strip() in allowed) or None


def _authorization(value: str, allowed: bool | Sequence[str]) -> str | None:
    if not isinstance(allowed, bool):
        scheme = value.strip().partition(" ")[0].lower()
        allowed = scheme in {one.lower() for one in allowed}
    return value if allowed else None


def _origin(upload: Upload) -> list[tuple[str, str]]:
    """Forwarded and X-Forwarded-*: what was believed, and this hop (rule 2)."""
    chain, addresses = _joined(upload.headers, "forwarded"), _joined(upload.headers, "x-forwarded-for")
    scheme, host = _joined(upload.headers, "x-forwarded-proto"), _joined(upload.headers, "x-forwarded-host")
    if chain and not addresses:
        pairs = [(name.lower(), _unquoted(value)) for name, value in _PAIR.findall(chain)]
        addresses = ", ".join(_bare(value) for name, value in pairs if name == "for")
        scheme = scheme or next((value for name, value in pairs if name == "proto"), "")
        host = host or next((value for name, value in pairs if name == "host"), "")
    elif addresses and not chain:
        nodes = [node.strip() for node in addresses.split(",") if node.strip()]
        said = [_element(node, scheme, host) if number == 0 else _element(node) for number, node in enumerate(nodes)]
        chain = ", ".join(said)
    peer = upload.peer.partition("%")[0]  # without the zone of a link-local address
    made = [
        ("Forwarded", _appended(chain, _element(peer, upload.scheme, upload.host))),
        ("X-Forwarded-For", _appended(addresses, peer)),
        ("X-Forwarded-Proto", scheme or upload.scheme),
        ("X-Forwarded-Host", host or upload.host),
    ]
    return [(name, value) for name, value in made if value]


def _element(node: str, scheme: str = "", host: str = "") -> str:
    """One forwarded-element (RFC 7239 4): `for="[2001:db8::1]";host="a:8080";proto=https`."""
    pairs = [f"for={_quoted(_node(node))}"]
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
    """The address in a node, as X-Forwarded-For has it: no brackets, no port."""
    match = re.fullmatch(r"\[([0-9A-Fa-f.:]+)\](?::.*)?|([0-9.]+):.*", node)
    return node if match is None else match[1] or match[2]


def _quoted(value: str) -> str:
    if TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


# -- back to a client


def answer_headers(headers: Iterable[tuple[str, str]], *, status: int, protocol: str) -> list[tuple[str, str]]:
    """The end-to-end headers of a destination's answer, and that it came through here.

    A Proxy-Status is added only where one is: then proxies keep a list, and it would lack us.
    """
    headers = end_to_end(headers)
    made = [("Via", _via(headers, protocol))]
    if statuses := _joined(headers, "proxy-status"):
        made.append(("Proxy-Status", f"{statuses}, {PSEUDONYM}; received-status={status}"))
    return [(name, value) for name, value in headers if name.lower() not in ("via", "proxy-status")] + made


def proxy_status(error: GatewayError) -> str:
    """What an error that a destination caused is in the words of RFC 9209, as a structured field."""
    members = error.members
    said = PSEUDONYM
    kind = members.get("reason")
    if kind is None and "clock" in members:
        kind = _CLOCKS.get(str(members["clock"]))
    received = members.get("sink_status")
    if kind is None and received is None:
        match error:
            case SinkTimeout():
                kind = "http_response_timeout"
            case SinkRefused():
                kind = "connection_terminated"
            case _:
                kind = "destination_unavailable"
    if kind is not None:
        said += f"; error={kind}"
    if received is not None:
        said += f"; received-status={received}"
    if sink := members.get("sink"):
        said += f"; next-hop={_string(str(sink))}"
    return f"{said}; details={_string(error.detail)}" if error.detail else said


def _string(text: str) -> str:
    """A structured field's String (RFC 8941 3.3.3): printable ASCII."""
    plain = re.sub(r"[^\x20-\x7e]", "?", text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- configuration


def check_static_header(name: str, value: str) -> None:
    """Raises ValueError for a header that no request may be given; it never tells the value."""
    if not TOKEN.fullmatch(name):
        raise ValueError("one of the names is no header name")
    if name.lower() in _NOT_STATIC or name.lower().startswith("content-"):
        raise ValueError(f"{name} is of the connection or of the body, and made by the gateway")
    if not _STATIC_VALUE.fullmatch(value) or value != value.strip():
        raise ValueError(f"the value of {name} is not printable ASCII, or has white space around it")


# -- helpers


def _via(headers: Iterable[tuple[str, str]], protocol: str) -> str:
    return _appended(_joined(headers, "via"), f"{protocol} {PSEUDONYM}")


def _joined(headers: Iterable[tuple[str, str]], wanted: str) -> str:
    """The values of a list-valued header as one (RFC 9110 5.3)."""
    return ", ".join(value.strip() for name, value in headers if name.lower() == wanted and value.strip())


def _appended(existing: str, more: str) -> str:
    return f"{existing}, {more}" if existing and more else existing or more
