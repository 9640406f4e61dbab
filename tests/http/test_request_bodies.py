"""Where bodies end: fed whole, byte by byte, cut at every place, and with a tail."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from gateway.errors import Malformed
from gateway.http.request_bodies import Body, ChunkedBody, LengthBody

TAIL = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def _taken(body: Body, pieces: Iterable[bytes]) -> tuple[bytes, bytes]:
    """(the body, what is behind it)"""
    content, behind = b"", b""
    for piece in pieces:
        size = 0
        if not body.ended:
            found, size = body.take(piece)
            content += found
        assert body.ended or size == len(piece)
        behind += piece[size:]
    assert body.ended
    return content, behind


def _each_way(data: bytes) -> Iterable[list[bytes]]:
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


CHUNKED = {
    "one chunk": (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "several": (b"1\r\na\r\n2\r\nbc\r\nA\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
    "none": (b"0\r\n\r\n", b""),
    "zeros": (b"003\r\nabc\r\n000\r\n\r\n", b"abc"),
    "either case": (b"b\r\n01234567890\r\nB\r\n01234567890\r\n0\r\n\r\n", b"01234567890" * 2),
    "line ends as data": (b"4\r\n\r\n\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n0\r\n\r\n"),
    "extensions": (b'3;a=b;c="d;e"\r\nabc\r\n0;x\r\n\r\n', b"abc"),
    "trailers": (b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nContent-Length: 99\r\n\r\n", b"abc"),
}


@pytest.mark.parametrize(("wire", "content"), CHUNKED.values(), ids=CHUNKED)
@pytest.mark.parametrize("tail", [b"", b"\r\n", TAIL])
def test_chunks_end_where_they_say(wire: bytes, content: bytes, tail: bytes) -> None:
    for pieces in _each_way(wire + tail):
        assert _taken(ChunkedBody(), pieces) == (content, tail)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_a_length_is_kept_to(size: int) -> None:
    content = b"0123456789abcdefg"[:size]
    for pieces in _each_way(content + TAIL):
        assert _taken(LengthBody(size), pieces) == (content, TAIL)


BROKEN = {
    "no size": b"3\r\nabc\r\nzz\r\n",
    "an empty size": b"\r\nabc",
    "no size at all": b";x\r\nabc\r\n",
    "a sign": b"+3\r\nabc\r\n",
    "a prefix": b"0x3\r\nabc\r\n",
    "a space behind": b"3 \r\nabc\r\n",
    "a space ahead": b" 3\r\nabc\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n",
    "other digits": "٣\r\nabc\r\n".encode(),
    "LF behind the size": b"3\nabc\r\n",
    "CR behind the size": b"3\rabc\r\n",
    "LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "more data than size": b"3\r\nabcd\r\n0\r\n\r\n",
    "less data than size": b"3\r\nab\r\n0\r\n\r\n ",
    "a long size": b"0" * 15 + b"3\r\nabc\r\n",
    "a long extension": b"3;" + b"x" * 4097 + b"\r\nabc",
    "LF in an extension": b"3;a\nb\r\nabc",
    "CR in an extension": b"3;a\rb\r\nabc",
    "NUL in an extension": b"3;a\x00\r\nabc",
    "a trailer that is no field": b"0\r\nabc\r\n\r\n",
    "a trailer with a space": b"0\r\nX : a\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "LF behind a trailer": b"0\r\nX: a\nY: b\r\n\r\n",
    "long trailers": b"0\r\n" + b"X: a\r\n" * 1365 + b"X: abc\r\n\r\n",
    "endless trailers": b"0\r\nX: " + b"a" * 8200,
}


@pytest.mark.parametrize("wire", BROKEN.values(), ids=BROKEN)
def test_broken_chunks_are_refused_however_they_come(wire: bytes) -> None:
    ways = _each_way(wire) if len(wire) < 100 else ([wire[:cut], wire[cut:]] for cut in range(0, len(wire), 37))
    for pieces in ways:
        with pytest.raises(Malformed):
            _taken(ChunkedBody(), pieces)


def test_trailers_of_as_many_bytes_as_are_allowed_are_taken() -> None:
    trailers = b"X: " + b"a" * (8192 - 9) + b"\r\n"
    wire = b"0\r\n" + trailers + b"\r\n" + TAIL
    for cut in range(0, len(wire), 37):
        assert _taken(ChunkedBody(), [wire[:cut], wire[cut:]]) == (b"", TAIL)


def test_random_chunks_in_random_segments() -> None:
    chance = random.Random(9)
    for _ in range(300):
        chunks = [chance.randbytes(chance.choice([1, 2, 100, 5000])) for _ in range(chance.randrange(20))]
        wire = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), chance.choice([b"", b";a=b"]), chunk) for chunk in chunks)
        wire += b"0\r\n" + chance.choice([b"", b"A: b\r\n"]) + b"\r\n" + TAIL
        pieces, place = [], 0
        while place < len(wire):
            size = chance.choice([1, 3, 10, 4000])
            pieces.append(wire[place : place + size])
            place += size
        assert _taken(ChunkedBody(), pieces) == (b"".join(chunks), TAIL)


def test_what_is_all_the_bodys_is_not_copied() -> None:
    data = bytes(1000)
    assert LengthBody(5000).take(data)[0] is data
    body = ChunkedBody()
    body.take(b"ffff\r\n")
    assert body.take(data)[0] is data
