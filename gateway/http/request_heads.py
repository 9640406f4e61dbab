"""The head of a request: whether it has come, and whether it has one reading. Pure.

It is looked at here before aiohttp's parser gets it, because that one is two: what the one in C takes, the one in
Python may refuse, and both quote what they refuse. Nothing of a head is ever in an error of this room.

1. *Limits*: the bytes of a head, all lines together, and MAX_FIELDS.
2. *Grammar* (RFC 9112 2.2, 3, 5): lines end with CRLF, a target is visible ASCII and has no fragment, a name is a token
   right before its colon, a value has no control characters and is not folded. Bytes from 0x80 on are obs-text in
   values, and nowhere else.
3. *Framing* (RFC 9112 6): a Content-Length that is one number, or the coding `chunked`, and that not on HTTP/1.0. What
   else there is makes two servers disagree where the next request begins.
4. Nobody here speaks another protocol, so a request that asks for one (`Upgrade`) is taken as if it did not (RFC 9110
   7.8). Its sender may take up the other protocol behind it all the same: it is the last one of its connection.
   CONNECT, whose body is a tunnel, is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.errors import GatewayError, HeadTooLarge, Malformed, TargetTooLong, UnsupportedTransferCoding

__all__ = [
    "ENOUGH_BYTES",
    "FIELDS",
    "MAX_FIELDS",
    "RECEIVE_BYTES",
    "CheckedHead",
    "checked_head",
    "end_of_head",
    "memory_shares",
]

MAX_FIELDS = 256
"""Browsers send some twenty, proxies add a dozen; Go's and Node's servers count to a thousand and more."""

ENOUGH_BYTES = 32 << 10
"""Of what waits behind a request that is not answered: then nothing more is received."""
RECEIVE_BYTES = 64 << 10
"""In one call while no body is received, where the transport can be told; uvloop's cannot, and takes up to 250 KiB."""
_HELD = 8
"""How often the bytes of a head are held until its request is answered: as bytes, as text that one character makes four
bytes each, and in what is made of it. Measured, two to seven times.
"""

_METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS "
    b"PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SUBSCRIBE TRACE UNBIND UNLINK UNLOCK "
    b"UNSUBSCRIBE".split()
)
"""That both of aiohttp's parsers know. Which of them a path takes is told by its 405."""

FIELDS = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*"
"""The pattern of field lines."""
_AUTHORITY = rb"[Hh][Tt]{2}[Pp][Ss]?://[0-9A-Za-z._~:\[\]-]+(?=[/? ])"
_REQUEST_LINE = re.compile(rb"([A-Z-]+) (?:/|\*(?= )|" + _AUTHORITY + rb")[\x21\x22\x24-\x7e]* HTTP/1\.([01])\r\n")
_HEAD = re.compile(_REQUEST_LINE.pattern + FIELDS + rb"\r\n")
_BEGINNING = re.compile(rb"[A-Z-]{1,32}(?:\Z| [\x21-\x7e]*(?:\Z| [HTP/1.0]{0,8}(?:\Z|\r(?:\Z|\n))))")
_END = b"\r\n\r\n"
_END_BYTES = 3
"""So much of the end of a head may have come without the rest."""
_LENGTH = re.compile(rb"\r\ncontent-length:[\t ]*([0-9]{1,18})[\t ]*\r\n")
_CODING = re.compile(rb"\r\ntransfer-encoding:[\t ]*chunked[\t ]*\r\n")
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)


class CheckedHead(NamedTuple):
    """A head that can be given to aiohttp's parser."""

    data: bytes
    """Its bytes, with the empty line; without Upgrade."""
    length: int | None
    """Of the body, 0 where there is none; None where it comes in chunks."""
    asked_for_upgrade: bool


def memory_shares(max_head_bytes: int) -> dict[str, int]:
    """What a request holds at most of its head, and of those behind it, by what."""
    return {"the request's head": _HELD * max_head_bytes, "further requests": ENOUGH_BYTES + RECEIVE_BYTES}


def end_of_head(received: bytes | bytearray, start: int, *, max_bytes: int) -> int | None:
    """Behind the empty line, looked for from `start` on (so many bytes have none); None if it has not come.

    Raises HeadTooLarge, TargetTooLong, and Malformed where what has come begins no request: others wait for an answer
    to their first bytes (TLS, protocols whose lines end otherwise).
    """
    end = received.find(_END, max(0, start - _END_BYTES)) + len(_END)
    has_come = end >= len(_END)
    if (end if has_come else len(received)) > max_bytes:
        if received.find(b"\n", 0, max_bytes) < 0:
            raise TargetTooLong(f"the request line has more than {max_bytes} bytes", limit=max_bytes)
        raise HeadTooLarge(f"the head of the request has more than {max_bytes} bytes", limit=max_bytes)
    if has_come:
        return end
    if not start and not _BEGINNING.match(received):
        raise _bad_request_line(received)
    if any(received.find(other, max(0, start - _END_BYTES)) >= 0 for other in (b"\n\n", b"\n\r\n")):
        raise Malformed("a line of the head does not end with CRLF (RFC 9112 2.2)")
    return None


def checked_head(head: bytes) -> CheckedHead:
    """The bytes of a head, with the empty line. Raises HeadTooLarge, Malformed, UnsupportedTransferCoding."""
    match = _HEAD.fullmatch(head)
    if match is None:
        raise _bad_grammar(head)
    if head.count(b"\n") - 2 > MAX_FIELDS:
        raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields", limit=MAX_FIELDS)
    method, minor = match.groups()
    if method not in _METHODS:
        raise Malformed("the method of the request is none of HTTP, or CONNECT")
    lower = head.lower()
    hosts = lower.count(b"\r\nhost:")
    if hosts > 1 or (minor == b"1" and not hosts):
        raise Malformed("a request of HTTP/1.1 has one Host (RFC 9112 3.2)")
    if b"\r\nupgrade:" in lower:
        return CheckedHead(_UPGRADE.sub(b"", head), _body_length(lower, minor), True)
    return CheckedHead(head, _body_length(lower, minor), False)


def _body_length(lower: bytes, minor: bytes) -> int | None:
    """Rule 3; `lower` is the head in lower case. None: chunked."""
    lengths, codings = lower.count(b"\r\ncontent-length:"), lower.count(b"\r\ntransfer-encoding:")
    if codings:
        if lengths:
            raise Malformed("a request has a Content-Length or a Transfer-Encoding, not both (RFC 9112 6.1)")
        if minor == b"0":
            raise Malformed("HTTP/1.0 has no Transfer-Encoding")
        if codings > 1 or not _CODING.match(lower, lower.index(b"\r\ntransfer-encoding:")):
            raise UnsupportedTransferCoding("the only Transfer-Encoding that is taken is chunked, by itself")
        return None
    if not lengths:
        return 0
    match = _LENGTH.match(lower, lower.index(b"\r\ncontent-length:"))
    if lengths > 1 or match is None:
        raise Malformed("a Content-Length is one number, and stands once (RFC 9110 8.6)")
    return int(match[1])


def _bad_grammar(head: bytes) -> GatewayError:
    """Which line is wrong; not what it says."""
    match = _REQUEST_LINE.match(head)
    if match is None:
        return _bad_request_line(head)
    good = re.compile(FIELDS).match(head, match.end())
    assert good is not None  # it matches nothing, too
    number = head.count(b"\n", match.end(), good.end()) + 1
    return Malformed(f"header field {number} is no field (RFC 9112 5), or its line does not end with CRLF")


def _bad_request_line(received: bytes | bytearray) -> GatewayError:
    line = received.partition(b"\n")[0]
    if line.startswith(b"\x16\x03"):
        return Malformed("this is TLS, and plain HTTP is spoken here")
    if not line.isascii() and re.match(rb"[A-Z-]+ ", line):
        return Malformed("a request target is ASCII: percent-encode all other characters (RFC 3986 2.1)")
    if b"#" in line.partition(b" HTTP/")[0]:
        return Malformed("a request target has no fragment (RFC 9112 3.2); # is written %23")
    return Malformed("this is no request line of HTTP/1.1 (RFC 9112 3)")
