"""Heads of answers, without an event loop: what goes, what stays, what is refused."""

from __future__ import annotations

import pytest

from gateway.http.answer_heads import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    BadHead,
    end_of_head,
    parse_head,
)


def rendered(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return parse_head(b"\r\n".join([first, *lines, b"", b""])).data


def same(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


# -- where it ends


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_the_end_of_a_head_is_found_wherever_it_is_cut(end: bytes) -> None:
    received = b"HTTP/1.1 200 OK\r\nA: b" + end + b"body\r\n\r\n"
    whole = received.index(b"body")
    for cut in range(len(received) + 1):
        assert end_of_head(received[:cut]) == (whole if cut >= whole else None)
        if cut < whole:
            assert end_of_head(received, max(0, cut - 3)) == whole


def test_a_head_that_does_not_end_is_refused_before_it_is_more_than_the_limit() -> None:
    assert end_of_head(b"x" * MAX_HEAD_BYTES) is None
    with pytest.raises(BadHead):
        end_of_head(b"x" * (MAX_HEAD_BYTES + 1))
    with pytest.raises(BadHead):
        end_of_head(b"x" * MAX_HEAD_BYTES + b"\r\n\r\n")


# -- what stays


@pytest.mark.parametrize(
    "line",
    [
        b"X-A: b",
        b"X-A: tab\tin it",
        b"X-Empty: ",
        b'Content-Disposition: attachment; filename="caf\xe9.pdf"',
        'X-A: "Schrödinger €"'.encode(),
        b"X-A: \x80\xff",
        b"X-A: " + b"a" * (MAX_FIELD_BYTES - 5),
        b"Set-Cookie: a=b; Path=/",
        b"!#$%&'*+-.^_`|~09Az: odd but a token",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: Chunked",
        b"Content-Length: 5",
    ],
)
def test_what_can_be_sent_on_stays_as_it_is(line: bytes) -> None:
    head = parse_head(same(line))
    assert (head.status, head.data, head.has_no_body, head.is_whole) == (200, same(line), False, True)


def test_as_many_fields_as_are_allowed_stay() -> None:
    lines = [b"X-%d: 1" % number for number in range(MAX_FIELDS)]
    assert rendered(*lines) == same(*lines)


@pytest.mark.parametrize("first", [b"HTTP/1.1 599 caf\xe9", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 ", b"HTTP/1.1 299 a  b"])
def test_status_lines_stay(first: bytes) -> None:
    assert rendered(first=first) == same(first=first)


def test_lines_that_end_with_a_line_feed_alone_are_lines() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\nA: b\nC: d\n\n").data == same(b"A: b", b"C: d")


def test_white_space_around_a_value_and_before_a_colon_goes() -> None:
    assert rendered(b"A :  b \t", b"C:d") == same(b"A: b", b"C: d")


def test_a_folded_value_is_unfolded() -> None:
    assert rendered(b"A: b", b"  c", b"\td", b"E: f") == same(b"A: b c d", b"E: f")


def test_a_status_without_a_reason_needs_none() -> None:
    assert rendered(first=b"HTTP/1.1 200") == same(first=b"HTTP/1.1 200 ")


# -- what goes

CONTROLS = [*range(9), *range(11, 13), *range(14, 32), 127]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_field_with_a_control_character_goes_and_the_answer_stays(control: int) -> None:
    head = parse_head(same(b"A: b", b"X-A: a" + bytes([control]) + b"b", b"C: d"))
    assert head.data == same(b"A: b", b"C: d")
    assert not head.is_whole


@pytest.mark.parametrize(
    "line",
    [b"X Bad: 1", b": no name", b"X-\xe9: 1", b"X-A: a\rContent-Length: 5", b"X\x00: 1", b"X-A: a\rb"],
)
def test_a_field_without_a_proper_name_goes(line: bytes) -> None:
    head = parse_head(same(line, b"C: d"))
    assert (head.data, head.is_whole) == (same(b"C: d"), False)


@pytest.mark.parametrize("reason", [b"caf\xe9 \x01x", b"a\rb", b"\x7f", b"O\x00K"])
def test_a_reason_with_control_characters_goes(reason: bytes) -> None:
    assert rendered(b"A: b", first=b"HTTP/1.1 201 " + reason) == same(b"A: b", first=b"HTTP/1.1 201 ")


@pytest.mark.parametrize("status", [100, 103, 199, 204])
@pytest.mark.parametrize("line", [b"Transfer-Encoding: chunked", b"content-length: 2", b"Transfer-Encoding: gzip"])
def test_what_has_no_body_has_no_framing(status: int, line: bytes) -> None:
    first = b"HTTP/1.1 %d X" % status
    head = parse_head(same(line, b"A: b", first=first))
    assert (head.data, head.has_no_body, head.is_whole) == (same(b"A: b", first=first), True, False)


def test_a_304_keeps_the_length_of_what_it_is_about() -> None:
    first = b"HTTP/1.1 304 Not Modified"
    head = parse_head(same(b"Content-Length: 500", b"Transfer-Encoding: chunked", first=first))
    assert (head.data, head.has_no_body) == (same(b"Content-Length: 500", first=first), True)


def test_equal_lengths_are_one() -> None:
    assert rendered(b"Content-Length: 2", b"A: b", b"content-length: 2") == same(b"A: b", b"Content-Length: 2")


def test_equal_lengths_in_one_field_are_one() -> None:
    assert rendered(b"Content-Length: 2, 2", b"A: b") == same(b"A: b", b"Content-Length: 2")


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([b"Transfer-Encoding: identity"], []),
        ([b"Transfer-Encoding: "], []),
        ([b"Transfer-Encoding: chunked,"], [b"Transfer-Encoding: chunked"]),
        ([b"Transfer-Encoding: Identity, Chunked"], [b"Transfer-Encoding: chunked"]),
        ([b"Transfer-Encoding: identity", b"Content-Length: 2"], [b"Content-Length: 2"]),
    ],
)
def test_what_means_no_coding_goes(lines: list[bytes], left: list[bytes]) -> None:
    assert rendered(*lines) == same(*left)


# -- what is refused


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 099 Odd",
        b"HTTP/1.1 600 Odd",
        b"HTTP/1.1 999 Request denied",
        b"HTTP/1.1 000 x",
        b"HTTP/1.1 20 x",
        b"HTTP/1.1 2000 x",
        b"HTTP/1.1 -20 x",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200OK",
        b"ICY 200 OK",
        b"220 mail.example ESMTP",
        b"",
    ],
)
def test_what_is_no_status_line_is_refused(first: bytes) -> None:
    with pytest.raises(BadHead):
        rendered(first=first)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: gzip"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"],
        [b"Transfer-Encoding: chunked;q=1"],
        [b"Transfer-Encoding: gzip, identity"],
    ],
)
def test_a_transfer_coding_that_is_not_just_chunked_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(BadHead):
        rendered(*lines)


@pytest.mark.parametrize("line", [b"Content-Length: 2\x01", b"Transfer-Encoding: chun\x00ked", b"content-length: 2\r3"])
def test_framing_that_nobody_can_read_is_refused(line: bytes) -> None:
    with pytest.raises(BadHead):
        rendered(line)


def test_a_line_that_is_no_field_is_refused() -> None:
    with pytest.raises(BadHead):
        rendered(b"A: b", b"bad header")


def test_one_byte_or_one_field_too_many_is_refused() -> None:
    with pytest.raises(BadHead):
        rendered(b"X-A: " + b"a" * (MAX_FIELD_BYTES - 4))
    with pytest.raises(BadHead):
        rendered(*[b"X-%d: 1" % number for number in range(MAX_FIELDS + 1)])
