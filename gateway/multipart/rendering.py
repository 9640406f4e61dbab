"""Part headers on their way out. Pure.

A form knows one way of writing a name only, the WHATWG one: raw bytes, never `filename*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.model import Part
from gateway.multipart.headers import TOKEN, filename_of, parameters

__all__ = ["quote", "render_head", "render_headers", "render_parameter"]


def quote(value: bytes) -> bytes:
    """A name for a quoted parameter, the WHATWG way: bytes as they are, `"`, CR and LF escaped."""
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

    What flows made of its type and file name goes in their places.
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
        elif name == b"content-disposition" and filename_of(value) != part.raw_filename:
            kind = parameters(value)[0]
            value = kind + (b'; filename="' + quote(part.raw_filename) + b'"' if part.raw_filename is not None else b"")
        head += name.title() + b": " + value + b"\r\n"
    return head + b"\r\n"


def render_parameter(name: bytes, value: bytes) -> bytes:
    """`; name=value`, as a quoted-string where it is no token (RFC 2045 5.1)."""
    if not re.fullmatch(TOKEN, value):
        value = b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return b"; " + name + b"=" + value
