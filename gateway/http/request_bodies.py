"""Where the body of a request ends (RFC 9112 6, 7.1). Pure: bytes in, those of the body out.

aiohttp's parsers read bodies, too. Here they do not: they know only for themselves where a body ends, what they refuse
they quote, and the one in C does not tell anybody of broken chunks.

Chunk extensions and trailers mean nothing here, and go no further. They are bounded, and have to be well-formed: lines
end with CRLF, for others find another end where one does not.
"""

from __future__ import annotations

import re
from typing import Protocol

from gateway.errors import Malformed
from gateway.http.request_heads import FIELDS

__all__ = ["Body", "ChunkedBody", "LengthBody"]

_MAX_TRAILERS_BYTES = 8 << 10
"""A digest or a signature; who has more to say says it in the head, or in the body."""

_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]{0,4096})?\r\n")
"""With the end of the chunk before. 15 digits are more than anybody sends."""
_SIZE_BEGUN = re.compile(rb"\r(?:\Z|\n(?:\Z|[0-9A-Fa-f]{1,15}(?:\Z|(?:;[\t\x20-\x7e\x80-\xff]{0,4096})?(?:\Z|\r\Z))))")
_SIZE_BYTES = 4 + 15 + 1 + 4096
_TRAILERS = re.compile(rb"\r\n" + FIELDS + rb"\r\n")
"""With the end of the last chunk's size."""


_CHUNK_BYTES, _FREE_BYTES = 64, 256 << 10
"""A chunk costs as much as hundreds of bytes: they have so many on average, once so much of the body has come. That is
milliseconds, and clients that write byte by byte are mostly tests, of some ten KiB.
"""


class Body(Protocol):
    """What is left of a body."""

    ended: bool
    """Whether all of it has been taken."""

    def take(self, data: bytes) -> tuple[bytes, int]:
        """(what of it is in these bytes, how many of them are the body's). Raises Malformed, and is of no use then."""


class LengthBody:
    """One that says how long it is."""

    __slots__ = ("_left", "ended")

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = not length

    def take(self, data: bytes) -> tuple[bytes, int]:
        """As Body. What is all the body's is not copied."""
        content = data[: self._left]
        self._left -= len(content)
        self.ended = not self._left
        return content, len(content)


class ChunkedBody:
    """One that comes in chunks."""

    __slots__ = ("_bytes", "_chunks", "_in_trailers", "_left", "_line", "ended")

    def __init__(self) -> None:
        self._left = 0
        """Of the chunk."""
        self._line = b"\r\n"
        """What has come of the line between two chunks, as if there were one before the first; or of the trailers."""
        self._in_trailers = False
        self._chunks = self._bytes = 0
        self.ended = False

    def take(self, data: bytes) -> tuple[bytes, int]:
        """As Body."""
        pieces: list[bytes] = []
        place, size = 0, len(data)
        while place < size and not self.ended:
            if self._left:
                piece = data[place : place + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                place += len(piece)
            elif self._in_trailers:
                place += self._take_trailers(data, place)
            else:
                place += self._take_size(data, place)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), place

    def _take_size(self, data: bytes, place: int) -> int:
        """How many bytes were of a chunk's size."""
        known = len(self._line)
        text, start = (self._line + data[place : place + _SIZE_BYTES], 0) if known else (data, place)
        match = _SIZE.match(text, start)
        if match is not None:
            self._left = int(match[1], 16)
            self._chunks += 1
            self._bytes += self._left
            if self._chunks * _CHUNK_BYTES > self._bytes > _FREE_BYTES:
                raise Malformed(f"the chunks of the body have less than {_CHUNK_BYTES} bytes on average")
            self._line = b"" if self._left else b"\r\n"
            self._in_trailers = not self._left
            return match.end() - start - known
        begun = text[start : start + _SIZE_BYTES]
        if not _SIZE_BEGUN.fullmatch(begun):
            raise Malformed("a chunk of the body has no size, or does not end where its size says (RFC 9112 7.1)")
        self._line = begun
        return len(begun) - known

    def _take_trailers(self, data: bytes, place: int) -> int:
        """How many bytes were of the trailers."""
        known = len(self._line)
        text = self._line + data[place : place + _MAX_TRAILERS_BYTES]
        end = text.find(b"\r\n\r\n") + 4
        if (end if end >= 4 else len(text)) > _MAX_TRAILERS_BYTES:
            raise Malformed(f"the trailers have more than {_MAX_TRAILERS_BYTES} bytes")
        if end < 4:
            self._line = text
            return len(text) - known
        if not _TRAILERS.fullmatch(text, 0, end):
            raise Malformed("a trailer is no field, or its line does not end with CRLF (RFC 9112 7.1.2)")
        self.ended = True
        return end - known
