"""The path below which a proxy in front has us, such as /gw: ahead of the addresses in answers, and of nothing else.

1. In here, and in what is stored, addresses are paths of ours, from `/uploads/` or `/files/` on. The prefix is put
   before them as an answer goes out, so that an upload can be read through any proxy, and without one.
2. A prefix has one reading: segments of unreserved characters (RFC 3986 2.3) or percent-encoded UTF-8, no `.` or `..`
   among them, each behind one slash. What a proxy says otherwise, or says differently twice, says nothing.
3. Documents need not be parsed for that, nor be in memory. An address of ours is the value of one of three members,
   and what that looks like stands in no text of a client's, since a quote in a text is escaped. No comma is in it, so
   behind any comma a document can be cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from aiohttp import web

__all__ = ["PREFIX", "cut", "forwarded_prefix", "is_prefix", "prefixed", "prefixed_bytes", "without_base"]

PREFIX = web.RequestKey("prefix", str)
"""Of the client that sent a request; empty for none."""

_MOST_CHARACTERS = 128
"""It is told once for each file of a manifest."""
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))(?:[A-Za-z0-9._~-]|%[89A-Fa-f][0-9A-Fa-f])+)*")
_ADDRESSES = [(b'"location": "', b"/files/"), (b'"instance": "', b"/uploads/"), (b'"type": "', b"/problems/")]
"""As manifests, results and problems have them."""
_CUT_BYTES = 64 << 10
_TO_PATH = rb"[A-Z-]+ (?:[A-Za-z][A-Za-z0-9+.-]*://[^/?# ]*)?"
"""A request line up to the path, whatever the form of its target (RFC 9112 3.2)."""


def is_prefix(text: str) -> bool:
    """Whether it may be put before an address: empty, or `/gw` and the like (rule 2)."""
    return len(text) <= _MOST_CHARACTERS and _PREFIX.fullmatch(text) is not None


def forwarded_prefix(values: Iterable[str]) -> str | None:
    """What the values of X-Forwarded-Prefix say; None for nothing. A slash at the end is none of it."""
    found = {one.strip().removesuffix("/") for value in values for one in value.split(",")}
    prefix = found.pop() if len(found) == 1 else None
    return prefix if prefix is not None and is_prefix(prefix) else None


def without_base(head: bytes, base_path: str) -> bytes:
    """A request's head as if a proxy in front had taken that path off its target, where it has not."""
    match = re.match(rb"(%b)%b/" % (_TO_PATH, re.escape(base_path.encode())), head)
    return head if match is None else match[1] + head[match.end() - 1 :]


def prefixed(document: bytes, prefix: str) -> bytes:
    """A document as JSON, or a piece of one that was cut, with the prefix before its addresses (rule 3)."""
    if prefix:
        for member, path in _ADDRESSES:
            document = document.replace(member + path, member + prefix.encode() + path)
    return document


def cut(document: bytes) -> Iterator[bytes]:
    """A document in pieces of some 64 KiB, as `prefixed` takes them."""
    start = 0
    while start < len(document):
        end = start + _CUT_BYTES
        if end < len(document):
            end = document.rfind(b",", start, end) + 1 or document.find(b",", end) + 1
        piece = document[start : end or None]
        yield piece
        start += len(piece)


def prefixed_bytes(document: bytes, prefix: str) -> int:
    """How long it is with the prefix. For a thread, if it is long."""
    return sum(len(prefixed(piece, prefix)) for piece in cut(document)) if prefix else len(document)
