"""The head of an answer, so that it can be relied on: what cannot be sent on goes, what nobody can frame is refused.

A destination has often done its work when its answer comes, and then a refusal of the answer has the client send all
of it again. So what is odd and harmless goes, and the answer stays. Pure.

1. *Limits*, for what is held of a peer that does not end: MAX_FIELD_BYTES, MAX_FIELDS, MAX_HEAD_BYTES.
2. A status is 100 to 599 (RFC 9110 15).
3. A field whose value has control characters goes, and so does one whose name is no token (RFC 9110 5.5, 5.1). Bytes
   from 0x80 on are obs-text, and stay as they are. A folded value is unfolded (RFC 9112 5.2).
4. A reason phrase with control characters goes: it means nothing (RFC 9112 4).
5. What has no body (1xx, 204, 304) has no Transfer-Encoding, and but for 304 no Content-Length (RFC 9110 8.6, RFC 9112
   6.1): they go, whatever follows on the connection.
6. A Transfer-Encoding other than `chunked` is refused: what the body means would be lost (RFC 9112 6.1, 7). So is one
   with a Content-Length, by aiohttp, and Content-Lengths that differ (6.3). `identity`, which was one once, and empty
   members of a list go (RFC 9110 5.6.1).
7. Who sent something that had to go may mean something else by it: nothing after that answer is to be relied on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MAX_FIELDS", "MAX_FIELD_BYTES", "MAX_HEAD_BYTES", "AnswerHead", "BadHead", "end_of_head", "parse_head"]

MAX_FIELD_BYTES = 64 << 10
"""Of one line. The longest that are meant are policies (Content-Security-Policy, Link) of some ten KiB; nginx and
Apache take 8 KiB from clients by default, and much more from those they are in front of.
"""
MAX_FIELDS = 512
"""Debugging and tracing proxies add fields by the hundred; Go's and Node's servers count no fewer."""
MAX_HEAD_BYTES = 256 << 10
"""All lines together: what curl takes is 300 KB."""

_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-5][0-9]{2})(?: (.*))?", re.DOTALL)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = (b"content-length", b"transfer-encoding")


class BadHead(ValueError):
    """This is no answer that could be passed on."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """A head that can be relied on."""

    status: int
    data: bytes
    """Its bytes, with the empty line."""
    has_no_body: bool
    """Whatever it says, and whatever was asked (1xx, 204, 304)."""
    is_whole: bool
    """Whether nothing had to go (rule 7)."""


def end_of_head(received: bytes | bytearray, start: int = 0) -> int | None:
    """Behind the empty line, looked for from `start` on; None if it has not come. Raises BadHead if that is too far."""
    found = _END.search(received, start)
    if (len(received) if found is None else found.end()) > MAX_HEAD_BYTES:
        raise BadHead(f"the head of an answer is more than {MAX_HEAD_BYTES} bytes")
    return None if found is None else found.end()


def parse_head(head: bytes) -> AnswerHead:
    """The bytes of a head, up to the empty line. Raises BadHead."""
    first, *lines = [line.removesuffix(b"\r") for line in head.rstrip(b"\r\n").split(b"\n")]
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise BadHead("the first line is no status line with a status of 100 to 599")
    if len(lines) > MAX_FIELDS or any(len(line) > MAX_FIELD_BYTES for line in (first, *lines)):
        raise BadHead(f"there are more than {MAX_FIELDS} fields, or one is more than {MAX_FIELD_BYTES} bytes")
    status = int(match[1])
    has_no_body = status < 200 or status in (204, 304)
    fields = [_field(line) for line in _unfolded(lines)]
    kept = [field for field in fields if field is not None and not (has_no_body and _is_framing(field[0], status))]
    is_whole = len(kept) == len(fields)
    kept = _one_length(_one_coding(kept))
    start = first[: match.end(1)] + b" "
    if match[2] is not None and not _CONTROL.search(match[2]):
        start += match[2]
    data = b"\r\n".join([start, *(name + b": " + value for name, value in kept), b"", b""])
    return AnswerHead(status, data, has_no_body, is_whole)


def _unfolded(lines: list[bytes]) -> list[bytes]:
    unfolded: list[bytes] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and unfolded:
            unfolded[-1] += b" " + line.strip(b" \t")
        else:
            unfolded.append(line)
    return unfolded


def _field(line: bytes) -> tuple[bytes, bytes] | None:
    """(name, value).

    None for what goes (rule 3). Raises BadHead for what is no field, and for framing that is unreadable.
    """
    name, colon, value = line.partition(b":")
    name, value = name.rstrip(b" \t"), value.strip(b" \t")
    if not colon:
        raise BadHead("a line is no field")
    if not _TOKEN.fullmatch(name):
        return None
    if not _CONTROL.search(value):
        return name, value
    if name.lower() in _FRAMING:
        raise BadHead("what says where the body ends has control characters in it")
    return None


def _is_framing(name: bytes, status: int) -> bool:
    """Rule 5: of a 304 the length is that of what would have been sent."""
    return name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and status != 304)


def _members(fields: list[tuple[bytes, bytes]], field: bytes) -> list[bytes]:
    """Of a field that is a list, in lower case; empty ones do not count."""
    values = [value for name, value in fields if name.lower() == field]
    return [member.strip(b" \t").lower() for value in values for member in value.split(b",") if member.strip(b" \t")]


def _one_length(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """One Content-Length instead of several that are equal (RFC 9110 8.6); others are left to be refused."""
    lengths = _members(fields, b"content-length")
    if len(lengths) < 2 or len(set(lengths)) > 1:
        return fields
    others = [field for field in fields if field[0].lower() != b"content-length"]
    return [*others, (b"Content-Length", lengths[0])]


def _one_coding(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Rule 6. Raises BadHead."""
    written = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    if written in ([], [b"chunked"]):
        return fields
    codings = [coding for coding in _members(fields, b"transfer-encoding") if coding != b"identity"]
    if codings not in ([], [b"chunked"]):
        raise BadHead("the transfer coding is not just chunked")
    others = [field for field in fields if field[0].lower() != b"transfer-encoding"]
    return [*others, *((b"Transfer-Encoding", coding) for coding in codings)]
