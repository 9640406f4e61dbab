"""Body -> parts: `StreamingMultipartReader`, an aiohttp.MultipartReader over our own codec; raw bodies as one part.

Alone, in any aiohttp handler:

    async def upload(request: web.Request) -> web.Response:
        async for part in StreamingMultipartReader(request.headers, request.content):
            async with aiofiles.open(my_own_name_for(part), "wb") as file:
                while chunk := await part.read_chunk():
                    await file.write(chunk)
        return web.Response(text="every part was whole")

What differs from the stock reader:
- a body that ends early raises `Truncated` from the very read that met the end; the stock one ends the
  part cleanly, and a corrupt file is kept;
- a chunk is what was received, not a slice of 8 KiB of it: hardly ever a copy, and no hold-back;
- bad input raises `gateway.errors.Malformed`, `TooLarge` or `TooManyParts`, never an AssertionError;
- headers, their number and the number of parts are limited; nested multiparts are parts like others;
- names and file names are decoded from every dialect that real clients speak (headers.py).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import BodyPartReader, MultipartReader, hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.errors import Malformed
from gateway.model import Part, text
from gateway.multipart.codec import Decoder, Event, Kind
from gateway.multipart.content_type import boundary_of
from gateway.multipart.headers import media_type

__all__ = ["ByteSource", "StreamingBodyPartReader", "StreamingMultipartReader", "memory_shares", "raw_body_events"]


class ByteSource(Protocol):
    """What a reader reads: aiohttp's StreamReader, and the gateway's own `Intake`."""

    async def readany(self) -> bytes:
        """The next bytes, as they came; b"" at the end."""
        ...


def memory_shares(*, max_header_bytes: int) -> dict[str, int]:
    """What is held of one body at most, in bytes, beside the chunk that was read: a part's head, raw and parsed."""
    return {"headers of a part": 2 * max_header_bytes}


class StreamingMultipartReader(MultipartReader):
    """The parts of a multipart body, one after the other, as streams. Any subtype.

    `max_header_bytes` and `max_headers` are per part; 0 = unlimited, for `max_parts` too.
    Raises Malformed at once if the Content-Type is no multipart type with a usable boundary.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        content: ByteSource,
        *,
        client_max_size: int = sys.maxsize,
        max_field_size: int = 8190,
        max_headers: int = 64,
        max_size_error_cls: type[Exception] = ValueError,
        max_header_bytes: int = 16384,
        max_parts: int = 0,
        keep_raw: bool = False,
        one_reading: bool = False,
    ) -> None:
        content_type = headers.get(hdrs.CONTENT_TYPE, "").encode("utf-8", "surrogateescape")
        kind = media_type(content_type)
        if not kind.startswith(b"multipart/"):
            raise Malformed("the body is not multipart")
        boundary = boundary_of(content_type)
        safe = CIMultiDict(headers)
        # The stock class parses the type again, less carefully: give it one that it cannot trip over.
        safe[hdrs.CONTENT_TYPE] = f'{text(kind)}; boundary="{boundary.decode().translate(_ESCAPES)}"'
        super().__init__(
            safe,
            content,  # type: ignore[arg-type]
            client_max_size=client_max_size,
            max_field_size=max_field_size,
            max_headers=max_headers,
            max_size_error_cls=max_size_error_cls,
        )
        self.headers = headers
        self._source = content
        self._is_form_data = kind == b"multipart/form-data"
        self._decoder = Decoder(
            boundary,
            form=self._is_form_data,
            max_parts=max_parts,
            max_header_bytes=max_header_bytes,
            max_headers=max_headers,
            keep_raw=keep_raw,
            one_reading=one_reading,
        )
        self._events: list[Event] = []
        self._current: StreamingBodyPartReader | None = None

    # -- the gateway's own way: a batch of events per received buffer, so that one wake-up serves many parts

    async def events(self) -> AsyncIterator[list[Event]]:
        """Batches of events until the end of the body; raises Truncated if that comes before the closing delimiter."""
        while batch := await self._receive():
            yield batch

    async def _receive(self) -> list[Event]:
        """The next events, at least one; none at the end of the body."""
        while data := await self._source.readany():
            if batch := self._decoder.receive(data):
                return batch
        self._decoder.finish()
        return []

    # -- aiohttp's way

    async def next(self) -> StreamingBodyPartReader | None:
        """The next part, or None after the last. What is left of the part before is read and dropped."""
        if self._current is not None:
            await self._current.release()
            self._current = None
        while not self._at_eof:
            event = await self._next_event()
            if event is None:
                self._at_eof = True
            elif event.kind is Kind.BEGIN or event.kind is Kind.WHOLE:
                assert event.part is not None
                self._current = StreamingBodyPartReader(self, event)
                return self._current
        return None

    async def fetch_next_part(self) -> StreamingBodyPartReader:
        part = await self.next()
        if part is None:
            raise EOFError("there are no more parts")
        return part

    async def _next_event(self) -> Event | None:
        """The next event. Behind the closing delimiter the epilogue is read and dropped: then None."""
        if not self._events:
            batch = await self._receive()
            batch.reverse()
            self._events = batch
        return self._events.pop() if self._events else None


class StreamingBodyPartReader(BodyPartReader):
    """One part. All of aiohttp's BodyPartReader; `read_chunk()` gives chunks as they came."""

    chunk_size = 0

    def __init__(self, reader: StreamingMultipartReader, event: Event) -> None:
        assert event.part is not None
        self.part: Part = event.part
        headers = CIMultiDict((text(name).title(), text(value)) for name, value in self.part.headers)
        super().__init__(
            reader._boundary,
            CIMultiDictProxy(headers),
            reader._content,
            subtype="form-data",  # so that a Content-Length of the part is not looked at (RFC 7578 4.8)
            client_max_size=reader._client_max_size,
            max_size_error_cls=reader._max_size_error_cls,
        )
        self._is_form_data = reader._is_form_data
        self._reader = reader
        self._ended = event.kind is Kind.WHOLE
        self._chunk = event.data
        self._taken = 0  # of the chunk; an offset, for slicing what is left off would be quadratic

    @property
    def name(self) -> str | None:
        return self.part.name if self._is_form_data else super().name

    @property
    def filename(self) -> str | None:
        return self.part.filename if self._is_form_data else super().filename

    async def read_chunk(self, size: int = 0) -> bytes:
        """The next bytes of the part: as they came, or at most `size` of them; b"" at its end.

        Raises Truncated if the body ends first.
        """
        chunk = await self._buffered()
        start = self._taken
        end = len(chunk) if not size else min(start + size, len(chunk))
        return self._take(end, chunk if (start, end) == (0, len(chunk)) else chunk[start:end])

    async def readline(self) -> bytes:
        """A line of the part with its end; b"" at the end of the part."""
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
        self._at_eof = self._ended and end == len(self._chunk)
        return data

    async def release(self) -> None:
        """Read what is left of the part, and drop it."""
        while await self.read_chunk():
            pass


_ESCAPES: dict[int, Any] = str.maketrans({'"': '\\"', "\\": "\\\\"})


async def raw_body_events(
    source: ByteSource,
    *,
    filename: bytes | None,
    content_type: bytes | None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    keep_raw: bool = False,
) -> AsyncIterator[list[Event]]:
    """A body that is not multipart, as the events of a form with one file part, named `file`."""
    yield [Event(Kind.BEGIN, Part(0, b"file", filename, content_type, headers, is_file=True))]
    while data := await source.readany():
        yield [Event(Kind.DATA, None, data, data if keep_raw else b"")]
    yield [Event(Kind.END), Event(Kind.CLOSE)]
