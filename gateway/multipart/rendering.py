"""Part headers on their way out. Pure.

A form knows one way of writing a name only, the WHATWG one: raw bytes, never `filename*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.errors import Malformed
from gateway.model import Part
from gateway.multipart.headers import TOKEN, parameters, reads_in_two_ways

__all__ = ["quote", "render_head", "render_headers", "render_parameter"]

_UNUSUAL = re.compile(rb'[\\"\r\n]')


def quote(value: bytes) -> bytes:
    """A name for a quoted parameter, the WHATWG way: bytes as they are, `"`, CR and LF escaped.

    Raises Malformed for what readers would not agree about: a backslash that looks like an escape (headers, rule 5).
    """
    if not _UNUSUAL.search(value):
        return value
    if reads_in_two_ways(value):
        raise Malformed("a name has a backslash that other readers would take for an escape")
    return value.replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")


def render_head(
    name: bytes,
    filename: bytes | None,
    content_type: bytes | None,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """The header block of a part of a form in its one canonical form, blank line included."""
    head = b'Content-Disposition: form-data; name="' + quote(name) + b'"'
    if filename is not None:
        head += b'; filename="' + quote(filename) + b'"'
    if content_type is not None:
        head += b"\r\nContent-Type: " + content_type
    for key, value in extra:
        head += b"\r\n" + key + b": " + value
    return head + b"\r\n\r\n"


def render_headers(part: Part) -> bytes:
    """The header block of a part that is none of a form: its headers as they came, in order, blank line included.

    Its Content-Disposition goes in the one canonical form (RFC 2183, quoted as in forms), and what flows made of its
    type and file name in their places. Raises Malformed as `quote` does.
    """
    head, names = b"", {name for name, _ in part.headers}
    headers = list(part.headers)
    if part.raw_filename is not None and b"content-disposition" not in names:
        headers.append((b"content-disposition", b"attachment"))
    if part.content_type is not None and b"content-type" not in names:
        headers.append((b"content-type", part.content_type))
    for name, value in headers:
        if name == b"content-type" and part.content_type is not None:
            value = part.content_type
        elif name == b"content-disposition":
            value = _disposition(value, part.raw_filename)
        head += name.title() + b": " + value + b"\r\n"
    return head + b"\r\n"


def _disposition(value: bytes, filename: bytes | None) -> bytes:
    """In its canonical form, with this file name."""
    kind, given = parameters(value)
    given.pop(b"filename*", None)
    given = {name: content for name, content in given.items() if name != b"filename" or filename is not None}
    if filename is not None:
        given[b"filename"] = filename
        kind = kind or b"attachment"
    return kind + b"".join([b"; " + name + b'="' + quote(content) + b'"' for name, content in given.items()])


def render_parameter(name: bytes, value: bytes) -> bytes:
    """`; name=value`, as a quoted-string where it is no token (RFC 2045 5.1)."""
    if not re.fullmatch(TOKEN, value):
        value = b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return b"; " + name + b"=" + value
