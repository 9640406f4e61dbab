r"""Multipart bytes -> events: the one parser of this project. No I/O, no event loop.

The theory. A body (RFC 2046 5.1.1, RFC 7578) is

    [preamble CRLF] --boundary *LWSP CRLF part *(CRLF --boundary *LWSP CRLF part) CRLF --boundary-- [epilogue]

1. The *delimiter* is CRLF `--` boundary. Its CRLF belongs to it, not to the data before it. At the
   very start of a body there is none, so the decoder starts as if a CRLF had just been read.
2. A delimiter is followed by `--` (the closing one), or by white space and CRLF (the next part).
   Followed by anything else it is no delimiter but data that looks like one. One exception: followed
   by a bare LF it is refused, because lenient readers would take it for a delimiter, and two readers
   must never disagree about where a part ends. Likewise bare-LF bodies as a whole: their first
   delimiter is refused.
3. A part is headers, a blank line, data. Only the delimiter ends a part: a part's own Content-Length
   or Content-Transfer-Encoding is not looked at (RFC 7578 4.7, 4.8), nested multiparts are data.
   An empty part may lack its second CRLF: `\r\n\r\n--b` (RFC 2046 allows the blank line's CRLF to be
   the delimiter's).
4. After the closing delimiter come only ignored bytes. A body that ends before it is Truncated: an
   end is never clean merely because bytes stopped coming. Text before a closing delimiter that no part
   came before is no preamble, but parts with the wrong delimiters: refused, or they would be lost
   without a word.
5. Liberal: a preamble and an epilogue up to a cap, no CRLF at the end, white space after a delimiter,
   folded headers, any printable boundary. Strict: all that `headers.py` refuses, and rule 2's LF.

How it stays fast. `bytes.find` runs at several GB/s on ordinary data, so the delimiter is looked for
in the received buffer as it is. Only where the last bytes could begin a delimiter (there is a CR in
them, and what follows matches) are they held back and joined with the next buffer; nearly every
buffer that lies within a part's data passes as the very object that came in. A part that begins and
ends within one buffer is a single event.

Events are tuples `(kind, part, data, raw)`. With `keep_raw`, the `raw`s of all events, joined, are the
bytes fed in (for a relay that passes the wire bytes on); else `raw` is empty.
"""

from __future__ import annotations

import re
import sys
from enum import Enum, auto
from typing import NamedTuple

from gateway.errors import GatewayError, Malformed, TooLarge, TooManyParts, Truncated
from gateway.model import ENCODING_HEADERS, Part
from gateway.multipart.content_type import check_nested
from gateway.multipart.delimiters import DelimiterCheck
from gateway.multipart.headers import (
    USUAL_HEAD,
    form_fields,
    has_one_reading,
    is_file,
    mixed_fields,
    only,
    parse_header_block,
)

__all__ = ["Decoder", "Event", "Kind"]

_CR, _LF, _SPACE, _TAB = b"\r\n \t"
_new_tuple = tuple.__new__  # what a NamedTuple's own constructor comes down to, at a third of its price
_NEAR_BYTES = 2000
"""`bytes.find` prepares itself for a long search, and that takes longer than to look through so little."""
_MAX_PADDING_BYTES = 256
"""White space after a delimiter: RFC 2046 allows it without bound; nobody sends more than one line's worth."""
_MAX_IGNORED_BYTES = 65536
"""Preamble and epilogue, each: text for people with old mail readers. More of it is an attack."""


class Kind(Enum):
    BEGIN = auto()
    """A part begins; `part` has its headers."""
    DATA = auto()
    """Bytes of the part that began last, never empty."""
    END = auto()
    """The part ends: its delimiter was seen."""
    WHOLE = auto()
    """BEGIN, DATA and END in one: the part lay whole in the buffer."""
    CLOSE = auto()
    """The closing delimiter."""
    IGNORED = auto()
    """Preamble or epilogue; only with `keep_raw`."""


class Event(NamedTuple):
    kind: Kind
    part: Part | None = None
    data: bytes = b""
    raw: bytes = b""


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


class Decoder:
    """Feed it the body in any pieces; it answers with events. After an error it only repeats that error.

    `form` demands what RFC 7578 does of each part: a Content-Disposition of form-data with a name.
    `one_reading` refuses what others would read otherwise, for who gets the raw bytes (delimiters; headers, rule 7).
    Limits are in bytes or counts, 0 = unlimited; each is checked before what it limits is buffered.
    """

    def __init__(
        self,
        boundary: bytes,
        *,
        form: bool = True,
        max_parts: int = 0,
        max_header_bytes: int = 16384,
        max_headers: int = 64,
        keep_raw: bool = False,
        one_reading: bool = False,
    ) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._form = form
        self._max_parts = max_parts
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers
        self._keep_raw = keep_raw
        self._one_reading = DelimiterCheck(boundary) if one_reading else None
        self._state = _State.PREAMBLE
        self._error: GatewayError | None = None
        self._parts = 0
        self._ignored_bytes = 0
        self._preamble_is_blank = True
        self._unparsed = b"\r\n"  # bytes that may begin a delimiter, or an unfinished header block (rule 1)
        self._lead = 2  # how many of the unparsed bytes are not ours to give out: rule 1's CRLF, rule 3's
        self._block_at = 0  # HEADERS: where in the unparsed bytes the header block begins
        self._resume_at = 0  # HEADERS: up to where the unparsed bytes were searched for the blank line
        self._searched_to = 0  # up to where the quick way found that no delimiter begins in this buffer
        self._last_name = b""
        self._last_type: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether the closing delimiter was seen."""
        return self._state is _State.EPILOGUE

    def finish(self) -> None:
        """Say that the body has ended. Raises Truncated unless it was whole (rule 4), Malformed."""
        if self._error is not None:
            raise self._error
        if self._state is not _State.EPILOGUE:
            raise Truncated("the body ended before its closing delimiter")
        if self._one_reading is not None:
            self._one_reading.receive(b"", last=True)

    def receive(self, data: bytes) -> list[Event]:
        """The events in the next bytes of the body. Raises Malformed, TooLarge, TooManyParts."""
        if self._error is not None:
            raise self._error
        try:
            if self._one_reading is not None:
                self._one_reading.receive(data)
            return self._receive(data)
        except GatewayError as error:
            self._error = error
            raise

    def _receive(self, data: bytes) -> list[Event]:
        if self.complete:
            return self._ignore(data, "epilogue")
        buffer = self._unparsed + data if self._unparsed else data
        self._unparsed = b""
        events: list[Event] = []
        position = 0
        while True:
            if self._state is _State.HEADERS:
                if self._form and not self._keep_raw:
                    position = self._receive_small_parts(buffer, position, events)
                after = self._receive_headers(buffer, position, events)
            else:
                after = self._receive_data(buffer, position, None, b"", events)
            if after is None:
                return events
            position = after
            if self.complete:
                return events + self._ignore(buffer[position:], "epilogue")

    def _receive_small_parts(self, buffer: bytes, start: int, events: list[Event]) -> int:
        """The same as the two steps below, for parts of the most usual form that lie whole in the buffer.

        Whatever is unusual in any way is left to those: where this stops is returned. The parts of a form are much
        alike, so they share what they have in common: a manifest may have a hundred thousand of them.
        """
        block_at = start + self._block_at
        delimiter, max_header_bytes = self._delimiter, self._max_header_bytes or len(buffer)
        parts, max_parts = self._parts, self._max_parts or sys.maxsize
        if self._max_headers == 1:
            return start
        find, length, whole = buffer.find, len(delimiter), Kind.WHOLE
        last_name, last_type = self._last_name, self._last_type
        while parts < max_parts:
            end = find(b"\r\n\r\n", block_at)
            if end < 0 or end - block_at > max_header_bytes:
                break
            match = USUAL_HEAD.fullmatch(buffer, block_at, end)
            if match is None:
                break
            found = find(delimiter, end + 4, end + _NEAR_BYTES)
            if found < 0:
                found = find(delimiter, end + 4)
            after = found + length
            if buffer.startswith(delimiter, end + 2):
                break
            if found < 0:
                self._searched_to = len(buffer) - length + 1  # not to be looked through twice
                break
            if buffer[after : after + 2] != b"\r\n":
                break
            name, filename, content_type = match.groups()
            if name == last_name:
                name = last_name
            if content_type == last_type:
                content_type = last_type
            is_a_file = filename is not None or (content_type is not None and is_file(name, None, content_type))
            part = Part(parts, name, filename, content_type, None, is_a_file)
            events.append(_new_tuple(Event, (whole, part, buffer[end + 4 : found], b"")))
            parts += 1
            last_name, last_type, start, block_at = name, content_type, found, after + 2
        self._last_name, self._last_type = last_name, last_type
        self._parts = parts
        self._block_at = block_at - start
        self._resume_at = self._block_at - 2
        return start

    # Both return where the next step begins, or None when the buffer is used up.

    def _receive_headers(self, buffer: bytes, start: int, events: list[Event]) -> int | None:
        """`start` is where the delimiter line begins; the header block follows it."""
        block_at = start + self._block_at
        end = buffer.find(b"\r\n\r\n", start + self._resume_at)
        # what is not there yet of the blank line may already have begun: those 3 bytes are no header's
        size = (len(buffer) - 3 if end < 0 else end) - block_at
        if self._max_header_bytes and size > self._max_header_bytes:
            limit = self._max_header_bytes
            raise TooLarge(f"a part has more than {limit} bytes of headers", limit=limit, part=self._parts)
        if end < 0:
            self._resume_at = max(block_at - 2, len(buffer) - 3) - start
            self._unparsed = buffer[start:]
            return None
        if self._max_parts and self._parts >= self._max_parts:
            raise TooManyParts(f"the body has more than {self._max_parts} parts", limit=self._max_parts)
        part = self._part(buffer[block_at : max(end, block_at)])
        raw = buffer[start : end + 4] if self._keep_raw else b""
        self._state, self._lead = _State.BODY, 2
        return self._receive_data(buffer, end + 2, part, raw, events)

    def _part(self, block: bytes) -> Part:
        index, self._parts = self._parts, self._parts + 1
        if self._form and self._max_headers != 1 and (match := USUAL_HEAD.fullmatch(block)) is not None:
            name, filename, content_type = match.groups()
            return Part(index, name, filename, content_type, None, is_file(name, filename, content_type))
        try:
            headers = parse_header_block(block, max_headers=self._max_headers)
            for header in ENCODING_HEADERS:
                only(headers, header)
            if self._one_reading is not None and not has_one_reading(block, headers):
                raise Malformed("the headers of a part, which go on as they are, have more than one reading")
            if self._form:
                name, filename, content_type = form_fields(headers)
                is_a_file = is_file(name, filename, content_type)
            else:
                name, (filename, content_type), is_a_file = b"", mixed_fields(headers), True
            if content_type is not None and b"*" in content_type:
                check_nested(content_type)
            return Part(index, name, filename, content_type, headers, is_a_file)
        except (Malformed, TooLarge) as error:
            error.members["part"] = index
            raise

    def _receive_data(
        self, buffer: bytes, start: int, part: Part | None, raw: bytes, events: list[Event]
    ) -> int | None:
        """Data from `start`, less the lead, up to a delimiter. `part` has just begun, in this buffer, or is None."""
        found, after, closing = self._find_delimiter(buffer, start)
        data_at = start + self._lead
        if found < data_at:  # nothing but (perhaps) the delimiter whose CRLF is the lead
            data, raw_at = b"", data_at
            if self._one_reading is not None and after is not None and self._state is _State.BODY:
                raise Malformed("an empty part, which goes on as it is, has no line break of its own")
        else:
            data, raw_at = buffer[data_at:found], found  # the buffer itself where that is all of it
        self._lead = raw_at - found
        if self._state is _State.PREAMBLE:
            events += self._ignore(data, "preamble")
            self._preamble_is_blank = self._preamble_is_blank and not data.strip()
        elif after is None:
            if part is not None:
                events.append(Event(Kind.BEGIN, part, b"", raw))
            if data:
                events.append(Event(Kind.DATA, None, data, data if self._keep_raw else b""))
        elif part is not None:
            events.append(Event(Kind.WHOLE, part, data, raw + data if self._keep_raw else b""))
        else:
            if data:
                events.append(Event(Kind.DATA, None, data, data if self._keep_raw else b""))
            events.append(Event(Kind.END))
        if after is None:
            self._unparsed = buffer[found:]
            return None
        if closing:
            if not self._parts and not self._preamble_is_blank:
                raise Malformed("there is text, but no part, before the closing delimiter")
            events.append(Event(Kind.CLOSE, None, b"", buffer[raw_at:after] if self._keep_raw else b""))
            self._state, self._ignored_bytes = _State.EPILOGUE, 0
            return after
        self._state = _State.HEADERS
        self._block_at = after - raw_at
        self._resume_at = self._block_at - 2  # the delimiter line's CRLF may be the first of the blank line's two
        return raw_at

    def _next_real(self, buffer: bytes, start: int) -> int:
        """Where a delimiter begins that is none of a few bytes only; -1: nowhere."""
        pattern = re.escape(self._delimiter) + rb"(?:--?|[ \t]*+[\r\n]|[ \t]*+\Z|[ \t]{%d})" % (_MAX_PADDING_BYTES + 1)
        found = re.compile(pattern).search(buffer, start)
        return -1 if found is None else found.start()

    def _find_delimiter(self, buffer: bytes, start: int) -> tuple[int, int | None, bool]:
        """(where it begins, where what follows it begins, whether it closes), rule 2.

        With None in the middle: there is none yet, but one could begin at the first number.
        """
        delimiter, length = self._delimiter, len(buffer)
        search_at, self._searched_to = max(start, self._searched_to), 0
        while (found := buffer.find(delimiter, search_at)) >= 0:
            after = found + len(delimiter)
            mark = buffer[after : after + 2]
            if mark == b"\r\n":
                return found, after + 2, False
            if mark == b"--":
                return found, after + 2, True
            padded = after
            while padded < length and buffer[padded] in (_SPACE, _TAB):
                padded += 1
            if padded - after > _MAX_PADDING_BYTES:
                raise Malformed("too much white space after a delimiter")
            mark = buffer[padded : padded + 2]
            if mark == b"\r\n":
                return found, padded + 2, False
            if mark in (b"", b"\r") or (mark == b"-" and padded == after):
                return found, None, False
            if mark[0] == _LF:
                raise Malformed("a delimiter line ends in a bare LF")
            # A look-alike: there may be nothing else, so the next one that could be more is searched for in one call.
            other = self._next_real(buffer, after)
            if other < 0:
                search_at = after
                break
            search_at = other
        candidate = buffer.find(b"\r", max(search_at, length - len(delimiter) + 1))
        while candidate >= 0 and not delimiter.startswith(buffer[candidate:]):
            candidate = buffer.find(b"\r", candidate + 1)
        return length if candidate < 0 else candidate, None, False

    def _ignore(self, data: bytes, what: str) -> list[Event]:
        self._ignored_bytes = self._ignored_bytes + len(data)
        if self._ignored_bytes > _MAX_IGNORED_BYTES:
            raise TooLarge(f"more than {_MAX_IGNORED_BYTES} bytes of {what}", limit=_MAX_IGNORED_BYTES)
        return [Event(Kind.IGNORED, None, b"", data)] if data and self._keep_raw else []
