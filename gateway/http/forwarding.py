"""What headers go along, both ways. Pure: a request's headers in, those of another request or answer out.

1. Framing is never copied, only made anew (Host, Content-*, Transfer-Encoding): whoever makes the message
   does that. Hop-by-hop headers, and those that Connection names, end here in both directions (RFC 9110 7.6.1).
2. Who a request comes from is told by headers that are believed, or made here: origin.py.
3. To a CGI, and to what is called like one (PHP, WSGI, Rack), `X-Api-Key`, `X_Api_Key` and `x.api.key` are one
   variable, and `Proxy` is the proxy of its environment (httpoxy). Only names of letters, digits and `-` go on, and
   `Proxy` never.
4. Cookie and Authorization are credentials for the gateway's origin: a destination gets those that its rules allow.
   Of the other headers it gets all, or those that its rules name.
5. What a destination is to get in any case (`headers`) goes in the place of all that a CGI reads as the same.
6. `Incremental: ?1` (draft-ietf-httpbis-incremental) asks proxies on the way not to hold the body back.
7. Via, X-Request-ID and Proxy-Status (RFC 9209) say that this gateway was there, and what it met. A request whose Via
   says so already is in a loop (RFC 9110 7.6.3); the name in it is this instance's own, for two gateways may well be in
   a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gateway.errors import GatewayError, LoopDetected, SinkRefused, SinkTimeout
from gateway.http.origin import TOKEN, Family, appended, is_believed, joined, names_origin, origin_headers
from gateway.model import Upload

__all__ = [
    "REQUEST_ID",
    "TRACEPARENT",
    "HeaderRules",
    "answer_headers",
    "believed",
    "cgi_name",
    "check_forwarded_header",
    "check_loop",
    "check_static_header",
    "end_to_end",
    "outbound_headers",
    "proxy_status",
    "request_id",
    "via",
]

REQUEST_ID = "X-Request-ID"
TRACEPARENT = "traceparent"
"""W3C Trace Context: the client's goes on as any header does, but where this gateway makes traces itself."""
PSEUDONYM = "gateway"
"""In Proxy-Status: the host name of a gateway is nobody's business (RFC 9110 7.6.3)."""

_HOP_BY_HOP = frozenset(
    # RFC 9110 7.6.1, and what HTTP/1.1 grew before it
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "x-upload-id",  # of an upload here: two requests to one destination may not have the same
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
_NOT_FORWARDED = _OF_THIS_HOP | _MADE_HERE | {"content-length", "content-type"}
"""Of the client's end-to-end headers those that are made anew, or not at all, in lower case."""
_NOT_STATIC = _HOP_BY_HOP | {"host", "expect", "via", "content-length", "digest", "repr-digest"}

_CGI_SAFE = re.compile(r"[a-z0-9-]+")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
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
    forward_headers: Sequence[str] | None = None
    """Of the client's other headers those of these names, in lower case; None: all."""
    forward_query: bool | Sequence[str] = True
    """Of the client's query all, nothing, or the parameters of these names: query.py."""
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    """To be sent in any case. The values are secrets."""


# -- what came in


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without the hop-by-hop ones, those that Connection names among them.

    What a proxy says of its client is not among them, whatever Connection says: it is there to be passed on, and its
    client may have written Connection.
    """
    return [(name, value) for _, name, value in _lowered(headers)]


def _lowered(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """The same, each behind its name in lower case."""
    lowered = [(name.lower(), name, value) for name, value in headers]
    named = {
        token.strip().lower() for lower, _, value in lowered if lower == "connection" for token in value.split(",")
    }
    drop = _HOP_BY_HOP | {name for name in named if not names_origin(name)} if named else _HOP_BY_HOP
    return [header for header in lowered if header[0] not in drop]


def believed(
    headers: Iterable[tuple[str, str]], *, trusted: bool, family: Family = "x-forwarded"
) -> list[tuple[str, str]]:
    """The client's end-to-end headers whose names have one reading (rule 3).

    Of what they say about where the request comes from, what a trusted proxy of that family writes; else nothing.
    """
    return [
        (name, value)
        for lower, name, value in _lowered(headers)
        if lower != "proxy"
        and _CGI_SAFE.fullmatch(lower)
        and (not names_origin(lower) or (trusted and is_believed(lower, family)))
    ]


def cgi_name(name: str) -> str:
    """What a header's name is to a CGI, or to what is laxer than RFC 3875 4.1.18: two that are equal are one there."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def request_id(values: Sequence[str], made: str) -> str:
    """The client's X-Request-ID if there is one that is 1 to 128 visible ASCII characters, else `made`."""
    return values[0] if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]) else made


# -- where it has been


def via(headers: Iterable[tuple[str, str]], protocol: str, gateway: str) -> str:
    """The Via of a message that came by that protocol, with the name of this instance at its end."""
    return appended(joined(headers, "via"), f"{protocol} {gateway}")


def check_loop(headers: Iterable[tuple[str, str]], gateway: str) -> None:
    """Raises LoopDetected where the Via of a request says that it has come through this instance before."""
    hops = [hop.split() for hop in joined(headers, "via").split(",")]
    if any(len(hop) > 1 and hop[1] == gateway for hop in hops):
        raise LoopDetected("its Via names this gateway: a url leads back to it")


# -- on to a destination


def outbound_headers(upload: Upload, rules: HeaderRules, *, unchanged: bool = False) -> list[tuple[str, str]]:
    """All headers of a request to a destination but those of its framing, which the request itself makes.

    `unchanged`: the body goes on byte for byte, so that what the client says of it stays true.
    """
    always = {cgi_name(name) for name, _ in rules.headers}
    kept = []
    for name, value in upload.headers:
        allowed = _allowed(name.lower(), value, rules, unchanged=unchanged)
        if allowed is not None:
            kept.append((name, allowed))
    if upload.traceparent:
        kept = [(name, value) for name, value in kept if name.lower() != TRACEPARENT]
    made = [*origin_headers(upload), ("Via", via(upload.headers, upload.protocol, upload.gateway))]
    if upload.request_id:
        made.append((REQUEST_ID, upload.request_id))
    if upload.traceparent:
        made.append((TRACEPARENT, upload.traceparent))
    if not any(name.lower() == "incremental" for name, _ in kept):
        made.append(("Incremental", "?1"))
    if always:
        kept = [(name, value) for name, value in kept if cgi_name(name) not in always]
        made = [(name, value) for name, value in made if cgi_name(name) not in always]
    return [*kept, *made, *rules.headers]


def _allowed(name: str, value: str, rules: HeaderRules, *, unchanged: bool) -> str | None:
    """What goes on of a client's header, its name in lower case; None: nothing."""
    if name in _NOT_FORWARDED:
        return None
    if name in _OF_THE_BODY or name.startswith("content-"):
        return value if unchanged else None
    if name == "cookie":
        return _cookies(value, rules.forward_cookies)
    if name == "authorization":
        return _authorization(value, rules.forward_authorization)
    if rules.forward_headers is None or name in rules.forward_headers:
        return value
    return None


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


# -- back to a client


def answer_headers(
    headers: Iterable[tuple[str, str]], *, status: int, protocol: str, gateway: str
) -> list[tuple[str, str]]:
    """The end-to-end headers of a destination's answer, and that it came through here.

    A Proxy-Status is added only where one is: then proxies keep a list, and it would lack us.
    """
    headers = end_to_end(headers)
    made = [("Via", via(headers, protocol, gateway))]
    if statuses := joined(headers, "proxy-status"):
        made.append(("Proxy-Status", f"{statuses}, {PSEUDONYM}; received-status={status}"))
    return [(name, value) for name, value in headers if name.lower() not in ("via", "proxy-status")] + made


def proxy_status(error: GatewayError) -> str:
    """What an error that a destination caused is in the words of RFC 9209, as a structured field."""
    members = error.members
    said = PSEUDONYM
    kind = members.get("reason")
    if isinstance(error, LoopDetected):
        kind = "proxy_loop_detected"
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


def check_forwarded_header(name: str) -> None:
    """Raises ValueError for a name that `forward_headers` cannot let through."""
    lower = name.lower()
    if lower in ("cookie", "authorization"):
        key = "forward_cookies" if lower == "cookie" else "forward_authorization"
        raise ValueError(f"{name} is a credential, and has a key of its own: {key}")
    if lower == "proxy" or not _CGI_SAFE.fullmatch(lower):
        raise ValueError(f"{name} never goes on: a name has letters, digits and -, and is not Proxy")
    if lower in _HOP_BY_HOP or lower in _NOT_FORWARDED or lower.startswith("content-"):
        raise ValueError(f"{name} is of the connection or of the body, or made by the gateway")


def check_static_header(name: str, value: str) -> None:
    """Raises ValueError for a header that no request may be given; it never tells the value."""
    if not TOKEN.fullmatch(name):
        raise ValueError("one of the names is no header name")
    if name.lower() in _NOT_STATIC or name.lower().startswith("content-"):
        raise ValueError(f"{name} is of the connection or of the body, and made by the gateway")
    if not _STATIC_VALUE.fullmatch(value) or value != value.strip():
        raise ValueError(f"the value of {name} is not printable ASCII, or has white space around it")
