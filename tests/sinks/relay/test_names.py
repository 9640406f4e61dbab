"""Names on their way out have one reading, or are refused: what a destination reads is what was decided on."""

from __future__ import annotations

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import BOUNDARY, Answer, ask, form
from tests.support.doubles import HonestUpstream

KEPT_NOT_SENT = [rb"..\..\a.txt", rb"a\\\"b", rb"x\.y"]
"""As they stand on the wire, in quotes."""
REFUSED = [b"a\\\\", rb"C:\dir\\", rb"a\;b", rb"a\ b", rb"a\/b", rb"a\(b", rb"\\\\server\share"]
TAKEN = [rb"C:\x\y.txt", rb"C:\\x\\y.txt", rb"back\slash", "a\\ä".encode()]


def part(quoted: bytes, *, as_name: bool = False) -> bytes:
    names = (quoted, b"a") if as_name else (b"file", quoted)
    return b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\nx' % (BOUNDARY, *names)


async def upload(gateway: RunningGateway, to: str, *parts: bytes) -> Answer:
    return await ask(gateway.port, to, "POST", form(*parts))


async def started(start_gateway: StartGateway, url: str) -> RunningGateway:
    each = {"type": "relay", "url": url, "per": "part", "length": "spool"}
    wire = {"type": "relay", "url": url, "length": "passthrough"}
    routes = [
        {"path": "/upload", "parts": [{"sinks": ["disk"]}]},
        {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]},
        {"path": "/wire", "kind": "relay", "parts": [{"sinks": ["wire"]}]},
        {"path": "/part", "parts": [{"sinks": ["each"]}]},
        {"path": "/each", "keep": "each", "parts": [{"sinks": ["each"]}]},
    ]
    return await start_gateway(api=url, sinks={"each": each, "wire": wire}, routes=routes)


@pytest.mark.parametrize("as_name", [False, True])
@pytest.mark.parametrize("quoted", REFUSED)
async def test_a_backslash_that_looks_like_an_escape_is_refused_everywhere(
    start_gateway: StartGateway, quoted: bytes, as_name: bool
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        for to in ("/upload", "/proxy", "/wire", "/part", "/each"):
            answer = await upload(gateway, to, part(b"good"), part(quoted, as_name=as_name))
            assert (answer.status, answer.json()["type"], answer.json()["part"]) == (400, "/problems/malformed", 1)
        assert gateway.stored() == []
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("quoted", KEPT_NOT_SENT)
async def test_before_a_dot_or_a_quote_it_is_kept_but_not_sent_on(start_gateway: StartGateway, quoted: bytes) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        assert (await upload(gateway, "/upload", part(quoted))).status == 201
        for to in ("/proxy", "/part"):
            answer = await upload(gateway, to, part(b"good"), part(quoted))
            assert (answer.status, answer.json()["part"]) == (400, 1), to
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("quoted", TAKEN)
async def test_before_a_letter_it_goes_on_as_it_is(start_gateway: StartGateway, quoted: bytes) -> None:
    meant = quoted.replace(b"\\\\", b"\\")
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        for to in ("/upload", "/proxy", "/part", "/each"):
            answer = await upload(gateway, to, part(quoted))
            assert answer.status in (200, 201), to
            if to == "/upload":
                assert answer.json()["parts"][0]["filename"] == meant.decode()
            else:
                assert b'; filename="%b"\r\n' % meant in bytes(upstream.exchanges[-1].body)
        assert (await upload(gateway, "/wire", part(quoted))).status == 200
        assert bytes(upstream.exchanges[-1].body) == form(part(quoted))


@pytest.mark.parametrize("name", ["a%5C", "a%5C%3Bb"])
async def test_the_name_of_a_raw_body_is_held_to_the_same(start_gateway: StartGateway, name: str) -> None:
    gateway = await start_gateway()
    assert (await ask(gateway.port, f"/upload/{name}", "PUT", b"x", content_type="a/b")).status == 400
    disposition = f"attachment; filename*=UTF-8''{name}"
    answer = await ask(gateway.port, "/upload", "POST", b"x", content_type="a/b", content_disposition=disposition)
    assert answer.status == 400
    assert gateway.stored() == []


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="a"; filename="a"; filename*=UTF-8\'\'b',
        'form-data; name="a"; filename*0="a"',
        'form-data; name="a"; filename=a b',
        'form-data;\r\n name="a"; filename="b"',
    ],
)
async def test_bytes_that_go_on_as_they_came_may_have_nothing_that_is_read_in_two_ways(
    start_gateway: StartGateway, disposition: str
) -> None:
    odd = b"--%b\r\nContent-Disposition: %b\r\n\r\nx" % (BOUNDARY, disposition.encode())
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        answer = await upload(gateway, "/wire", part(b"good"), odd)
        assert (answer.status, answer.json()["part"]) == (400, 1)
        assert not upstream.saw_a_whole_body
        assert (await upload(gateway, "/proxy", odd)).status == 200  # in a form of our own it has one reading
