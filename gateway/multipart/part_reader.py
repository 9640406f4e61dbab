"""One part of a multipart body as aiohttp gives it, made to stream."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import BodyPartReader, hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.model import Part, text
from gateway.multipart.codec import Event, Kind
from gateway.multipart.transfer_encoding import CUTTABLE, decodable, padding_apart

__all__ = ["PartSource", "StreamingBodyPartReader"]

_PATIENCE_BYTES = 8192
"""In so much that is encoded there is something to decode, but for who sends nothing but white space."""


class PartSource(Protocol):
    """What a part is of: the reader that makes it, and what it has from the stock class."""

    _boundary: bytes
    _content: Any
    _client_max_size: int
    _default_charset: str | None
    _is_form_data: bool
    _max_size_error_cls: type[Exception]

    async def _next_event(self) -> Event | None: ...

    def _ends_here(self) -> bool: ...


class StreamingBodyPartReader(BodyPartReader):
    """One part. All of aiohttp's BodyPartReader; `read_chunk()` gives chunks as they came."""

    chunk_size = 0

    def __init__(self, reader: PartSource, event: Event) -> None:
        assert event.part is not None
        self.part: Part = event.part
        headers = CIMultiDict((text(name).title(), text(value)) for name, value in self.part.headers)
        super().__init__(
            reader._boundary,
            CIMultiDictProxy(headers),
            reader._content,
            subtype="form-data",  # so that a Content-Length of the part is not looked at (RFC 7578 4.8)
            default_charset=reader._default_charset,
            client_max_size=reader._client_max_size,
            max_size_error_cls=reader._max_size_error_cls,
        )
        self._is_form_data = reader._is_form_data
        self._reader = reader
        self._ended = event.kind is Kind.WHOLE
        self._chunk = event.data
        self._taken = 0  # of the chunk; an offset, for slicing what is left off would be quadratic
        mechanism = headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "").strip().lower()
        self._mechanism = mechanism if mechanism in CUTTABLE else None

    @property
    def name(self) -> str | None:
        """The name of the form's field; of other types what the stock class finds."""
        return self.part.name if self._is_form_data else super().name

    @property
    def filename(self) -> str | None:
        """The file name, as the client meant it; None if it gave none."""
        return self.part.filename if self._is_form_data else super().filename

    async def read_chunk(self, size: int = 0) -> bytes:
        """The next bytes of the part: as they came, or at most `size` of them; b"" at its end.

        Where the part is encoded (base64, quoted-printable) each chunk can be decoded alone, and is a little longer if
        `size` is too little for that. Raises Truncated if the body ends first.
        """
        if self._mechanism is None:
            return await self._read_piece(size)
        data = await self._read_piece(size)
        while not self._at_eof:
            if cut := decodable(self._mechanism, data):
                self._put_back(data[cut:])
                return data[:cut]
            if len(data) >= (size or _PATIENCE_BYTES):
                padding, rest = padding_apart(self._mechanism, data)
                if padding:
                    self._put_back(rest)
                    return padding
            data += await self._read_piece(max(1, size - len(data)) if size else 0)
        return data

    async def readany(self) -> bytes:
        """The next bytes as they came, so that a reader can read what is nested in this part; b"" at its end."""
        return await self._read_piece(0)

    async def _read_piece(self, size: int) -> bytes:
        if self._at_eof:
            return b""
        chunk = await self._buffered()
        start = self._taken
        end = len(chunk) if not size else min(start + size, len(chunk))
        return self._take(end, chunk if (start, end) == (0, len(chunk)) else chunk[start:end])

    async def readline(self) -> bytes:
        """A line of the part with its end; b"" at the end of the part. Raises Truncated."""
        if self._at_eof:
            return b""
        pieces: list[bytes] = []
        while True:
            chunk = await self._buffered()
            end = chunk.find(b"\n", self._taken) + 1 or len(chunk)
            pieces.append(self._take(end, chunk[self._taken : end]))
            if not pieces[-1] or pieces[-1].endswith(b"\n"):
                return b"".join(pieces)

    async def _buffered(self) -> bytes:
        """The chunk that is being given out, another one if it was given out; b"" at the end of the part."""
        if self._taken == len(self._chunk) and not self._ended:
            event = await self._reader._next_event()
            assert event is not None  # the decoder ends every part, or raises
            self._ended = event.kind is Kind.END
            self._chunk, self._taken = event.data, 0
        return self._chunk

    def _take(self, end: int, data: bytes) -> bytes:
        self._taken = end
        if end == len(self._chunk):
            self._ended = self._ended or self._reader._ends_here()
            self._at_eof = self._ended
        return data

    def _put_back(self, data: bytes) -> None:
        """Bytes that were read last, to be read again."""
        start = self._taken - len(data)
        if start >= 0 and self._chunk.startswith(data, start):
            self._taken = start
        else:
            self._chunk, self._taken = data + self._chunk[self._taken :], 0

    async def release(self) -> None:
        """Read what is left of the part, and drop it. Raises Truncated."""
        while await self.readany():
            pass
