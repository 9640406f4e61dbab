"""Heads of requests: what has one reading is taken, by both of aiohttp's parsers alike; no refusal quotes anything."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import GatewayError, HeadTooLarge, Malformed, TargetTooLong, UnsupportedTransferCoding
from gateway.http.request_heads import _METHODS, MAX_FIELDS, CheckedHead, checked_head, end_of_head

SECRET = "s3cret"
LIMIT = 65536
C, PYTHON = http_parser.HttpRequestParser, http_parser.HttpRequestParserPy


def _head(*fields: str | bytes, line: str | bytes = "POST /a HTTP/1.1", host: str = "Host: a") -> bytes:
    lines = [part if isinstance(part, bytes) else part.encode() for part in (line, host, *fields) if part]
    return b"".join(part + b"\r\n" for part in lines) + b"\r\n"


def _parsed(parser: Any, data: bytes) -> tuple[Any, ...] | None:
    """What one of aiohttp's makes of it, as a connection of ours has it. None: refused."""
    loop = asyncio.new_event_loop()
    try:
        limits = {"max_line_size": LIMIT, "max_field_size": LIMIT, "max_headers": MAX_FIELDS + 2}
        made = parser(BaseProtocol(loop), loop, 1 << 16, response_with_body=False, auto_decompress=False, **limits)
        ((message, _),), _, _ = made.feed_data(data)
    except (HttpProcessingError, ValueError, LookupError):
        return None
    finally:
        loop.close()
    return tuple(getattr(message, name) for name in http_parser.RawRequestMessagePy._fields)


def test_the_two_parsers_are_two() -> None:
    assert C is not PYTHON


class TestTaken:
    @pytest.mark.parametrize(
        ("fields", "length"),
        [
            ([], 0),
            (["Content-Length: 0"], 0),
            (["content-length:  17 \t"], 17),
            (["Transfer-Encoding: chunked"], None),
            (["transfer-encoding:CHUNKED\t"], None),
            (["X-Content-Length: 5", "X: Transfer-Encoding: gzip"], 0),
        ],
    )
    def test_the_length_of_the_body_is_told(self, fields: list[str], length: int | None) -> None:
        assert checked_head(_head(*fields)) == CheckedHead(_head(*fields), length, False)

    @pytest.mark.parametrize("line", ["Upgrade: h2c", "upgrade:websocket", "UPGRADE: \t", "Upgrade: a/1, b"])
    def test_a_wish_for_another_protocol_is_left_out(self, line: str) -> None:
        asking = _head("Connection: Upgrade, HTTP2-Settings", line, "HTTP2-Settings: x", "Content-Length: 3")
        without = _head("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: x", "Content-Length: 3")
        assert checked_head(asking) == CheckedHead(without, 3, True)

    @pytest.mark.parametrize("method", sorted(_METHODS))
    def test_each_method_is_known_to_both_parsers(self, method: bytes) -> None:
        data = checked_head(_head(line=method + b" /a HTTP/1.1")).data
        found = _parsed(C, data)
        assert found is not None
        assert found[0] == method.decode()
        assert found == _parsed(PYTHON, data)

    @pytest.mark.parametrize("line", ["GET /a HTTP/1.0", "OPTIONS * HTTP/1.1", "GET http://b/c?d HTTP/1.1"])
    def test_other_forms_of_a_request_line_are_taken(self, line: str) -> None:
        data = checked_head(_head(line=line)).data
        assert _parsed(C, data) == _parsed(PYTHON, data) != None  # noqa: E711

    def test_as_many_and_as_large_fields_as_are_allowed_are_taken_by_both_parsers(self) -> None:
        many = _head(*[f"X-{number}: 1" for number in range(MAX_FIELDS - 1)])
        large = _head("X: " + "a" * (LIMIT - 200), line="GET /" + "a" * 100 + " HTTP/1.1")
        for data in (many, large):
            assert end_of_head(data, 0, max_bytes=LIMIT) == len(data)
            assert _parsed(C, checked_head(data).data) == _parsed(PYTHON, data) != None  # noqa: E711

    def test_obs_text_in_a_value_stays(self) -> None:
        data = _head(b"X: \x80\xff\xc3\xa9")
        assert checked_head(data).data == data
        assert _parsed(C, data) == _parsed(PYTHON, data) != None  # noqa: E711


REFUSED: dict[str, tuple[bytes, type[GatewayError]]] = {
    "no request line": (_head(line=SECRET), Malformed),
    "no form of a target": (_head(line=f"GET a{SECRET}/b HTTP/1.1"), Malformed),
    "credentials in the target": (_head(line=f"GET http://user:{SECRET}@a/b HTTP/1.1"), Malformed),
    "another scheme": (_head(line=f"GET ftp://{SECRET}/b HTTP/1.1"), Malformed),
    "HTTP/0.9": (_head(line=f"GET /{SECRET}"), Malformed),
    "HTTP/2.0": (_head(line=f"GET /{SECRET} HTTP/2.0"), Malformed),
    "a method in lower case": (_head(line=f"get /{SECRET} HTTP/1.1"), Malformed),
    "a method that nobody knows": (_head(line=f"BREW /{SECRET} HTTP/1.1"), Malformed),
    "CONNECT": (_head(line=f"CONNECT {SECRET}:1 HTTP/1.1"), Malformed),
    "UTF-8 in the target": (_head(line=f"GET /{SECRET}/ü HTTP/1.1"), Malformed),
    "Latin-1 in the target": (_head(line=b"GET /%b?\xe9 HTTP/1.1" % SECRET.encode()), Malformed),
    "a space in the target": (_head(line=f"GET /{SECRET} a HTTP/1.1"), Malformed),
    "two spaces": (_head(line=f"GET  /{SECRET} HTTP/1.1"), Malformed),
    "a control character in the target": (_head(line=f"GET /{SECRET}\x01 HTTP/1.1"), Malformed),
    "a name with a space": (_head(f"X {SECRET}: 1"), Malformed),
    "a space before the colon": (_head(f"Authorization : {SECRET}"), Malformed),
    "no colon": (_head(f"Authorization {SECRET}"), Malformed),
    "no name": (_head(f": {SECRET}"), Malformed),
    "a name that is not ASCII": (_head(f"Ä: {SECRET}"), Malformed),
    "a folded value": (_head("X: a", f"  {SECRET}"), Malformed),
    "NUL in a value": (_head(f"Cookie: {SECRET}\x00"), Malformed),
    "CR in a value": (_head(f"Cookie: {SECRET}\rX: 1"), Malformed),
    "LF in a value": (_head(f"Cookie: {SECRET}\nX: 1"), Malformed),
    "DEL in a value": (_head(f"Cookie: {SECRET}\x7f"), Malformed),
    "LF before the empty line": (_head(f"Cookie: {SECRET}")[:-4] + b"\n\r\n\r\n", Malformed),
    "no Host": (_head(f"Cookie: {SECRET}", host=""), Malformed),
    "two Hosts": (_head(f"Host: {SECRET}"), Malformed),
    "two lengths": (_head("Content-Length: 1", "Content-Length: 1", f"Cookie: {SECRET}"), Malformed),
    "a list of lengths": (_head("Content-Length: 1, 1", f"Cookie: {SECRET}"), Malformed),
    "a length that is none": (_head(f"Content-Length: {SECRET}"), Malformed),
    "a negative length": (_head("Content-Length: -1"), Malformed),
    "an empty length": (_head("Content-Length: "), Malformed),
    "a length of other digits": (_head("Content-Length: ٣"), Malformed),
    "an endless length": (_head("Content-Length: " + "9" * 19), Malformed),
    "a length and chunks": (_head("Content-Length: 1", "Transfer-Encoding: chunked"), Malformed),
    "chunks of HTTP/1.0": (_head("Transfer-Encoding: chunked", line="POST /a HTTP/1.0"), Malformed),
    "another coding of HTTP/1.0": (_head(f"Transfer-Encoding: {SECRET}", line="POST /a HTTP/1.0"), Malformed),
    "another coding": (_head(f"Transfer-Encoding: {SECRET}"), UnsupportedTransferCoding),
    "another coding and chunked": (_head(f"Transfer-Encoding: {SECRET}, chunked"), UnsupportedTransferCoding),
    "chunked twice": (_head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), UnsupportedTransferCoding),
    "identity": (_head("Transfer-Encoding: identity"), UnsupportedTransferCoding),
    "no coding": (_head("Transfer-Encoding:"), UnsupportedTransferCoding),
    "too many fields": (_head(*[f"X-{number}: {SECRET}" for number in range(MAX_FIELDS)]), HeadTooLarge),
    "too many bytes": (_head(*[f"X: {SECRET * 1000}"] * 12), HeadTooLarge),
    "too long a field": (_head(f"Cookie: {SECRET * 12000}"), HeadTooLarge),
    "too long a target": (_head(line=f"GET /{SECRET * 12000} HTTP/1.1"), TargetTooLong),
}


def _looked_at(data: bytes, *, step: int) -> bytes:
    """As it comes in by steps of that size; the head."""
    received, known = b"", 0
    for start in range(0, len(data), step):
        received += data[start : start + step]
        end = end_of_head(received, known, max_bytes=LIMIT)
        if end is not None:
            return checked_head(received[:end]).data
        known = len(received)
    raise AssertionError("it has no end")


class TestRefused:
    @pytest.mark.parametrize(("data", "error"), REFUSED.values(), ids=REFUSED)
    def test_it_is_told_what_is_wrong_and_nothing_is_quoted(self, data: bytes, error: type[GatewayError]) -> None:
        for step in (len(data), len(data) + 3, 1000, 1 if len(data) < 1000 else 4099):
            with pytest.raises(GatewayError) as caught:
                _looked_at(data + b"abc", step=step)
            assert type(caught.value) is error
            assert caught.value.detail
            assert SECRET not in f"{caught.value.detail} {caught.value.members}".lower()

    def test_a_target_that_is_not_ascii_is_told_to_be_encoded(self) -> None:
        for name in ("UTF-8 in the target", "Latin-1 in the target"):
            with pytest.raises(Malformed, match="percent-encode"):
                checked_head(REFUSED[name][0])

    def test_the_field_that_is_none_is_told_by_its_number(self) -> None:
        with pytest.raises(Malformed, match="header field 3 is no field"):
            checked_head(_head("A: 1", "B : 2", "C: 3"))

    @pytest.mark.parametrize(
        "beginning",
        [
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(60),
            b"\x00",
            b"get /",
            b"GET /\r\n",
            b"GET /\xc3\xbc",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"A" * 33,
        ],
    )
    def test_what_begins_no_request_is_refused_before_its_end(self, beginning: bytes) -> None:
        with pytest.raises(Malformed):
            end_of_head(beginning, 0, max_bytes=LIMIT)

    def test_a_head_without_an_end_is_refused_when_its_limit_has_come(self) -> None:
        received = b"GET / HTTP/1.1\r\nX: " + b"a" * LIMIT
        assert end_of_head(received[:LIMIT], 0, max_bytes=LIMIT) is None
        with pytest.raises(HeadTooLarge):
            end_of_head(received[: LIMIT + 1], LIMIT, max_bytes=LIMIT)


def test_the_end_is_found_at_every_cut() -> None:
    data = _head("Cookie: a=b", "Content-Length: 3")
    for cut in range(1, len(data)):
        assert end_of_head(data[:cut], 0, max_bytes=LIMIT) is None
        for tail in (b"", b"abc", b"\r\n\r\n", _head()):
            assert end_of_head(data + tail, cut, max_bytes=LIMIT) == len(data)


TARGETS = (
    b"/|/a|/a?b=c|/%zz|//|/[|/@?[]|*|http://h/p|http://h|http:///|http://|HTTPS://[::1]:80/|http://h:x/|a|/a#b?c"
).split(b"|")
FIELDS = (
    b"Content-Length: 3|Content-Length: +3|Transfer-Encoding: chunked|Transfer-Encoding: gzip|Connection: close|"
    b"Connection: upgrade|Upgrade: h2c|Upgrade: websocket|Content-Type: a/b|Content-Encoding: br|Host: b|X: \xff|"
    b"X:|X:  a \t|Expect: 100-continue|Sec-WebSocket-Key1: x|User-Agent: x|Server: y|ETag: z|Connection: x"
).split(b"|")
NOISE = b" |\r|\n|\r\n|\0|\x7f|\xc3\xbc|\t|:|/|?|#|[|]|@|%|A|0".split(b"|")


def test_what_is_taken_is_the_same_to_both_parsers() -> None:
    """20,000 heads, half of them with something put into it anywhere."""
    chance = random.Random(12)
    taken = refused = 0
    for _ in range(20_000):
        method, version = chance.choice([b"GET", b"OPTIONS"]), chance.choice([b"0", b"1", b"1"])
        line = b"%b %b HTTP/1.%b" % (method, chance.choice(TARGETS), version)
        data = _head(*chance.choices(FIELDS, k=chance.randrange(4)), line=line)
        if chance.random() < 0.5:
            place = chance.randrange(len(data) - 4)
            data = data[:place] + chance.choice(NOISE) + data[place:]
        try:
            checked = checked_head(data)
        except GatewayError:
            refused += 1
            continue
        found = [_parsed(parser, checked.data) for parser in (C, PYTHON)]
        assert found[0] == found[1], checked.data
        if found[0] is not None:
            taken += 1
            assert found[0][8] == (checked.length is None)
            assert not found[0][7], "another protocol is asked for"
    assert taken > 4000
    assert refused > 4000
