"""Multipart events -> bytes: what stands before, between and after the data of parts. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from gateway.errors import Malformed
from gateway.model import Part
from gateway.multipart.content_type import MIXED_TYPES, other_parameters
from gateway.multipart.headers import media_type
from gateway.multipart.rendering import render_head, render_headers, render_parameter

__all__ = ["Encoder"]


class Encoder:
    """The way out: what to write before, between and after the parts' data. The data itself goes as it is.

    The boundary is random (128 bits), so that no data can hold it. A body ends in CRLF, which some
    receivers insist on.
    """

    def __init__(
        self,
        boundary: bytes | None = None,
        *,
        subtype: bytes = b"form-data",
        parameters: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.boundary = secrets.token_hex(16).encode() if boundary is None else boundary
        self._separator = b"--" + self.boundary + b"\r\n"
        self._subtype = subtype
        self._parameters = parameters

    @classmethod
    def like(cls, content_type: bytes) -> Encoder:
        """For a body of the same subtype: multipart/mixed or /related with its parameters, else a form."""
        kind = media_type(content_type)
        if kind not in MIXED_TYPES:
            return cls()
        return cls(subtype=kind.partition(b"/")[2], parameters=other_parameters(content_type))

    @property
    def content_type(self) -> str:
        parameters = [render_parameter(name, value) for name, value in self._parameters]
        return b"".join([b"multipart/", self._subtype, *parameters, b"; boundary=", self.boundary]).decode()

    def begin(self, head: bytes) -> bytes:
        """The delimiter and header block that begin a part; `head` ends in its blank line."""
        separator, self._separator = self._separator, b"\r\n--" + self.boundary + b"\r\n"
        return separator + head

    def begin_form_part(self, part: Part) -> bytes:
        """The same for a part of a form. Of its other headers those go on that say how its bytes are encoded."""
        encodings = [(name.title(), value) for name, value in part.encodings] if part.own_headers else ()
        return self.begin(render_head(part.raw_name, part.raw_filename, part.content_type, encodings))

    def begin_part(self, part: Part) -> bytes:
        """The same for a part of whatever this body is. Raises Malformed for a name that has two readings."""
        try:
            return self.begin_form_part(part) if self._subtype == b"form-data" else self.begin(render_headers(part))
        except Malformed as error:
            error.members["part"] = part.index
            raise

    def close(self) -> bytes:
        """The closing delimiter."""
        return self._separator[:-2] + b"--\r\n"
