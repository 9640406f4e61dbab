"""Body -> parts: `StreamingMultipartReader`, an aiohttp.MultipartReader over our own codec; raw bodies as one part.

Alone, in any aiohttp handler:

    async def upload(request: web.Request) -> web.Response:
        async for part in StreamingMultipartReader(request.headers, request.content):
            async with aiofiles.open(my_own_name_for(part), "wb") as file:
                while chunk := await part.read_chunk():
                    await file.write(chunk)
        return web.Response(text="every part was whole")

What differs from the stock reader (docs/library.md has a table, with aiohttp's own tests for each):
- a body that ends early raises `Truncated` from the very read that met the end; the stock one ends the
  part cleanly, and a corrupt file is kept;
- a chunk is what was received, not a slice of 8 KiB of it: hardly ever a copy, and no hold-back;
- bad input raises `gateway.errors.Malformed`, `TooLarge` or `TooManyParts`, never an AssertionError;
- headers, their number and the number of parts are limited;
- a nested multipart is a part like others: `StreamingMultipartReader(part.headers, part)` reads it;
- names and file names are decoded from every dialect that real clients speak (headers.py).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Generic, NoReturn, Protocol, TypeVar

from aiohttp import MultipartReader, hdrs
from multidict import CIMultiDict

from gateway.errors import Malformed, TooLarge
from gateway.model import Part, text
from gateway.multipart.codec import Decoder, Event, Kind
from gateway.multipart.content_type import boundary_of
from gateway.multipart.headers import media_type
from gateway.multipart.part_reader import StreamingBodyPartReader

__all__ = ["ByteSource", "StreamingMultipartReader", "decoded", "memory_shares", "raw_body_events"]


_MAX_CHARSET_BYTES = 31
"""The longest name of a charset has 19 (the WHATWG's Encoding standard)."""

T = TypeVar("T")


class ByteSource(Protocol):
    """What a reader reads: aiohttp's StreamReader, the gateway's own `Intake`, or a part, for what is nested in it."""

    async def readany(self) -> bytes:
        """The next bytes, as they came; b"" at the end."""
        ...


def memory_shares(*, max_header_bytes: int) -> dict[str, int]:
    """What is held of one body at most, in bytes, beside the chunk that was read: a part's head, raw and parsed."""
    return {"headers of a part": 2 * max_header_bytes}


class _Fixed(Generic[T]):
    """An attribute that stock classes have for others to set, and these cannot do without."""

    def __init__(self, value: T) -> None:
        self._value = value

    def __get__(self, instance: object, owner: type | None = None) -> T:
        return self._value

    def __set__(self, instance: object, value: object) -> NoReturn:
        raise TypeError("a StreamingMultipartReader makes its own parts")


class StreamingMultipartReader(MultipartReader):
    """The parts of a multipart body, one after the other, as streams. Any subtype.

    `max_header_bytes` and `max_headers` are per part, `max_field_size` is of one header of a part, in bytes; 0 =
    unlimited, for `max_parts` too. `client_max_size` is, as in the stock class, of what `read` and its kin join.
    Raises Malformed at once if the Content-Type is no multipart type with a usable boundary. A subclass, or whoever
    sets `part_reader_cls` or `multipart_reader_cls`, gets a TypeError: the parts are made here.
    """

    def __init_subclass__(cls) -> None:
        if {"part_reader_cls", "multipart_reader_cls"} & vars(cls).keys():
            raise TypeError("a StreamingMultipartReader makes its own parts")

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
        boundary = boundary_of(content_type, one_reading=one_reading)
        safe = CIMultiDict(headers)
        # The stock class parses the type again, and less carefully: it is given one that it cannot trip over.
        safe[hdrs.CONTENT_TYPE] = f"{text(kind)}; boundary=b"
        super().__init__(
            safe,
            content,  # type: ignore[arg-type]
            client_max_size=client_max_size,
            max_field_size=max_field_size,
            max_headers=max_headers,
            max_size_error_cls=max_size_error_cls,
        )
        self.headers = headers
        self._boundary = b"--" + boundary
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

    def events(self) -> AsyncIterator[list[Event]]:
        """Batches of events until the end of the body; raises Truncated if that comes before the closing delimiter."""
        return decoded(self._source, self._decoder)

    async def _receive(self) -> list[Event]:
        """The next events, at least one; none at the end of the body."""
        while data := await self._source.readany():
            if batch := self._decoder.receive(data):
                return batch
        self._decoder.finish()
        return []

    # -- aiohttp's way

    async def __anext__(self) -> StreamingBodyPartReader:
        if (part := await self.next()) is None:
            raise StopAsyncIteration
        return part

    async def next(self) -> StreamingBodyPartReader | None:
        """The next part, or None after the last. What is left of the part before is read and dropped.

        In a form the field `_charset_` is no part, but the charset of the texts that follow (RFC 7578 4.6).
        Raises Malformed, TooLarge, TooManyParts, Truncated.
        """
        while (part := await self._next_part()) is not None:
            if not self._is_form_data or part.part.is_file or part.part.raw_name != b"_charset_":
                return part
            self._default_charset = await _charset_in(part)
        return None

    async def _next_part(self) -> StreamingBodyPartReader | None:
        if self._current is not None:
            await self._current.release()
            self._current = None
        while not self._at_eof:
            event = await self._next_event()
            if event is None:
                self._at_eof = True
            elif event.kind is Kind.BEGIN or event.kind is Kind.WHOLE:
                assert event.part is not None
                self._check_sizes(event.part)
                self._current = StreamingBodyPartReader(self, event)
                return self._current
        return None

    def _check_sizes(self, part: Part) -> None:
        limit = self._max_field_size
        if limit and any(len(name) + 2 + len(value) > limit for name, value in part.headers):
            raise TooLarge(f"a part has a header of more than {limit} bytes", limit=limit, part=part.index)

    async def fetch_next_part(self) -> StreamingBodyPartReader:
        """The next part. Raises EOFError after the last."""
        part = await self.next()
        if part is None:
            raise EOFError("there are no more parts")
        return part

    def _ends_here(self) -> bool:
        """Whether the next event is here, and is the end of the part; then it is taken."""
        if self._events and self._events[-1].kind is Kind.END:
            self._events.pop()
            return True
        return False

    async def _next_event(self) -> Event | None:
        """The next event. Behind the closing delimiter the epilogue is read and dropped: then None."""
        if not self._events:
            batch = await self._receive()
            batch.reverse()
            self._events = batch
        return self._events.pop() if self._events else None


async def _charset_in(part: StreamingBodyPartReader) -> str | None:
    """What a field `_charset_` says; None if it is empty. Raises Malformed for what names no charset."""
    name = b""
    while chunk := await part.readany():
        name += chunk
        if len(name) > _MAX_CHARSET_BYTES:
            raise Malformed("Invalid default charset: _charset_ is too long to be one", part=part.part.index)
    charset = text(name.strip())
    try:
        b"\0\0\0\0".decode(charset or "utf-8")
    except (LookupError, ValueError):
        raise Malformed("Invalid default charset: _charset_ names none that is known", part=part.part.index) from None
    return charset or None


StreamingMultipartReader.part_reader_cls = _Fixed(StreamingBodyPartReader)  # type: ignore[assignment]
StreamingMultipartReader.multipart_reader_cls = _Fixed(None)  # type: ignore[assignment]


def raw_part(filename: bytes | None, content_type: bytes | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> Part:
    """What a body that is not multipart is taken for: the one file of a form, named `file`."""
    return Part(0, b"file", filename, content_type, headers, is_file=True)


async def decoded(source: ByteSource, decoder: Decoder) -> AsyncIterator[list[Event]]:
    """Batches of events until the end of the body; raises Truncated if that comes before the closing delimiter."""
    while data := await source.readany():
        if batch := decoder.receive(data):
            yield batch
    decoder.finish()


async def raw_body_events(source: ByteSource, part: Part, *, keep_raw: bool = False) -> AsyncIterator[list[Event]]:
    """A body that is not multipart, as the events of a form with this one part."""
    yield [Event(Kind.BEGIN, part)]
    while data := await source.readany():
        yield [Event(Kind.DATA, None, data, data if keep_raw else b"")]
    yield [Event(Kind.END), Event(Kind.CLOSE)]
