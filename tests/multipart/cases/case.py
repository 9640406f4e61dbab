"""What a case is, and short ways to write one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import GatewayError, Malformed

__all__ = [
    "BOUNDARY",
    "FORM",
    "MIXED",
    "Case",
    "Got",
    "body",
    "disposition",
    "field",
    "file",
    "named",
    "refused",
    "taken",
]

BOUNDARY = b"b0undary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
MIXED = b"multipart/mixed; boundary=" + BOUNDARY


class Got(NamedTuple):
    """A part as it has to come out of the decoder."""

    name: bytes
    filename: bytes | None
    content_type: bytes | None
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Case:
    """A body, and what has to come of it: parts in the order of the wire, or an error."""

    title: str
    source: str
    """The standard and its section, or the client that sent it."""
    content_type: bytes
    body: bytes
    parts: tuple[Got, ...] = ()
    error: type[GatewayError] | None = None

    def __str__(self) -> str:
        return self.title

    @property
    def is_form(self) -> bool:
        return self.content_type.lower().startswith(b"multipart/form-data")


def taken(
    title: str, source: str, text: bytes, *parts: tuple[bytes, bytes | None, bytes | None, bytes], as_: bytes = FORM
) -> Case:
    """A body that is read as these parts."""
    return Case(title=title, source=source, content_type=as_, body=text, parts=tuple(Got(*part) for part in parts))


def refused(title: str, source: str, text: bytes, error: type[GatewayError] = Malformed, *, as_: bytes = FORM) -> Case:
    """A body that is refused."""
    return Case(title=title, source=source, content_type=as_, body=text, error=error)


def body(*parts: bytes, boundary: bytes = BOUNDARY) -> bytes:
    """Parts, each with its headers, its blank line and its data, between delimiters."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + b"--%s--\r\n" % boundary


def disposition(value: bytes, data: bytes = b"x") -> bytes:
    """A body of one part with this Content-Disposition."""
    return body(b"Content-Disposition: %s\r\n\r\n%s" % (value, data))


def named(title: str, source: str, value: bytes, name: bytes, filename: bytes | None = None) -> Case:
    """A part with this Content-Disposition has that name, and that file name."""
    return taken(title, source, disposition(value), (name, filename, None, b"x"))


def field(data: bytes, name: bytes = b"a") -> bytes:
    """A field for `body`."""
    return b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name, data)


def file(data: bytes, filename: bytes = b"f.txt", name: bytes = b"a", content_type: bytes = b"text/plain") -> bytes:
    """A file for `body`."""
    head = b'Content-Disposition: form-data; name="%s"; filename="%s"' % (name, filename)
    return head + b"\r\nContent-Type: %s\r\n\r\n%s" % (content_type, data)
