"""What the longest head of a part can cost: no reader of it may share bytes out in more ways than there are bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from gateway.digests import declared_digests
from gateway.errors import GatewayError
from gateway.model import Limits, Part
from gateway.multipart.content_type import boundary_of
from gateway.multipart.filenames import safe_name
from gateway.multipart.headers import filename_of, is_file, media_type, parameters

BYTES = Limits().max_header_bytes
SECONDS = 0.25
"""Of the processor's time. What is linear takes a few thousandths; what is not took seconds, or for ever."""

READERS: dict[str, Callable[[bytes], object]] = {
    "Content-Encoding": lambda value: Part(0, b"", None, None, [(b"content-encoding", value)]).encodings,
    "Content-Digest": lambda value: declared_digests([(b"content-digest", value)]),
    "Content-MD5": lambda value: declared_digests([(b"content-md5", value)]),
    "Content-Disposition": lambda value: (parameters(value), filename_of(value)),
    "a boundary": boundary_of,
    "a media type": lambda value: (media_type(value), is_file(b"a", None, value)),
    "a file name": lambda value: safe_name(value.decode()),
}
PIECES = [
    b",  ",
    b" ",
    b"; ",
    b"a=",
    b"a=;",
    b'a="\\',
    b'a="x" ',
    b"7bit ",
    b"a,",
    b"a=;a",
    b"\\a",
    b"%2",
    b"+json ",
    b".gz",
]


STARTS = [b"", b"a=", b'form-data; name="', b"sha-256=:", b"text/plain"]
AROUND = [*((start, b"x") for start in STARTS), (b"", b""), (STARTS[2], b'"')]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("piece", PIECES)
def test_no_reader_takes_long_for_a_repeated_piece(reader: str, piece: bytes) -> None:
    for start, end in AROUND:
        value = (start + piece * BYTES)[: BYTES - len(end)].strip() + end
        began = time.thread_time()
        with suppress(GatewayError):
            READERS[reader](value)
        assert time.thread_time() - began < SECONDS, (start, end)
