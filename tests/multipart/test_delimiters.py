"""Bytes that go on as they came hold no line that some readers take for a delimiter, and some do not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.errors import GatewayError, Malformed
from gateway.multipart.codec import Decoder
from gateway.multipart.delimiters import DelimiterCheck
from tests.support.readers import READERS, Body, Reader

HEAD = b'Content-Disposition: form-data; name="%b"'
A, B = HEAD % b"a", HEAD % b"b"
BODIES = 20_000

GOOD = [
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--",
    b"--b\r\n" + A + b"\r\n\r\n\r\n--b\r\n" + B + b"\r\n\r\n\r\n\r\n--b--\r\n",
    b"\r\n--b\r\n" + A + b"\r\n\r\nx--b\r\n--c\r\n--b--",
    b"text\r\n--b\r\n" + A + b"\r\n\r\nx\r\n--b--\r\nmore -- b\n--c",
    b"--b--\r\n",
]
BAD = [
    b"--b\r\n" + A + b"\r\n\r\nx\n--b\r\n" + B + b"\r\n\r\ny\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r--b\r\n" + B + b"\r\n\r\ny\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\n--b--\r\n" + B + b"\r\n\r\ny\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--bc\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b \r\n" + B + b"\r\n\r\ny\r\n--b--\r\n",
    b"--b \r\n" + A + b"\r\n\r\nx\r\n--b--\r\n",
    b"text--b\r\n--b\r\n" + A + b"\r\n\r\nx\r\n--b--\r\n",
    b"\n--b\r\n" + A + b"\r\n\r\nx\r\n--b--\r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--\r\n--b\r\n" + B + b"\r\n\r\ny\r\n--b--",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--\n--b--",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--x",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b-- \r\n",
    b"--b\r\n" + A + b"\r\n\r\nx\r\n--b--\rx",
    b"--b\r\n" + A + b"\r\n\r\n--b\r\n" + B + b"\r\n\r\ny\r\n--b--\r\n",
]


def takes(pieces: Sequence[bytes]) -> bool:
    decoder = Decoder(b"b", keep_raw=True, one_reading=True)
    try:
        for piece in pieces:
            decoder.receive(piece)
        decoder.finish()
    except Malformed:
        return False
    return True


def ways_to_cut(body: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and in two at every offset."""
    in_two = [[body[:at], body[at:]] for at in range(1, len(body))]
    return [[body], [body[at : at + 1] for at in range(len(body))], *in_two]


@pytest.mark.parametrize("body", GOOD)
def test_a_body_by_the_book_is_taken_however_it_is_cut(body: bytes) -> None:
    assert all(takes(pieces) for pieces in ways_to_cut(body))


@pytest.mark.parametrize("body", BAD)
def test_a_line_that_may_be_a_delimiter_is_refused_however_the_body_is_cut(body: bytes) -> None:
    assert not any(takes(pieces) for pieces in ways_to_cut(body))


def test_what_is_no_line_of_its_own_may_stand_in_a_part() -> None:
    check = DelimiterCheck(b"b")
    for piece in (b"--b\r\n" + A + b"\r\n\r\n", b"x--b\r\n", b" --b--", b"\r\n-", b"-b--"):
        check.receive(piece)
    check.receive(b"", last=True)


PIECES = [
    *(b"\r\n", b"\r\n", b"\n", b"\r", b"--b", b"\r\n--b", b"\n--b", b"\r--b", b"--b--", b"\r\n--b--", b"\n--b--", b" "),
    *(b"\t", b"--", b"-", b"x", b"\r\n\r\n", b"\n\n", b"--b \r\n", b"--b\r\n", b"\x0c", b"\x00", b"--bb", b"--b-- "),
    *(b"--b--x", b"--b--\r\n--b\r\n", B, B + b"\r\n\r\n"),
]


def generated(seeded: random.Random) -> bytes:
    def odd(likely: float) -> bytes:
        return b"".join(seeded.choices(PIECES, k=seeded.randint(1, 3))) if seeded.random() < likely else b""

    body = odd(0.1) + seeded.choice([b"", b"", b"\r\n"])
    for name in (b"p", b"q", b"r")[: seeded.randint(1, 3)]:
        blank = seeded.choice([b"\r\n\r\n"] * 12 + [b"\n\n", b"\r\n\n", b"\n\r\n"])
        body += b"--b" + odd(0.05) + b"\r\n" + HEAD % name + blank + odd(0.4) + b"d" + odd(0.3)
        body += seeded.choice([b"\r\n"] * 12 + [b"\n", b"\r", b""])
    return body + b"--b--" + seeded.choice([b"\r\n", b""]) + odd(0.2)


def names_here(body: bytes) -> list[bytes] | None:
    decoder = Decoder(b"b", keep_raw=True, one_reading=True)
    try:
        names = [event.part.raw_name for event in decoder.receive(body) if event.part is not None]
        decoder.finish()
    except GatewayError:
        return None
    return names


@pytest.mark.sockets
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_sees_the_same_parts_or_none(reader: Reader, tmp_path: Path) -> None:
    seeded = random.Random("delimiters")
    bodies = [generated(seeded) for _ in range(BODIES)]
    meant = [(body, names) for body in bodies if (names := names_here(body)) is not None]
    assert len(meant) > BODIES / 10
    given = [Body("multipart/form-data; boundary=b", body) for body, _ in meant]
    read = zip(meant, reader.read(given, tmp_path), strict=True)
    seen = [(body, names, [part.name for part in parts]) for (body, names), (_, parts) in read if parts is not None]
    assert [one for one in seen if one[1] != one[2]][:5] == []
    assert len(seen) > len(meant) * 0.9
