"""multipart/mixed and multipart/related on routes of kind relay: the same parts, in a wrapping of ours."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import Malformed
from gateway.model import Part
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.content_type import boundary_of, other_parameters
from gateway.multipart.encoder import Encoder
from gateway.multipart.rendering import render_headers
from tests.conftest import RunningGateway, StartGateway
from tests.contract import nothing_left_running
from tests.support.clients import Answer, ask, random_bytes
from tests.support.doubles import HonestUpstream, Upstream

Headers = list[tuple[bytes, bytes]]

RELATED = 'multipart/related; boundary=b; type="text/html"; start="<a\\"%22@x>"; start-info="-o ps"; Action=urn:x'
PARTS: list[tuple[Headers, bytes]] = [
    ([(b"content-type", b"text/html; charset=utf-8"), (b"content-id", b'<a"%22@x>')], b"<img src=cid:b>"),
    (
        [
            (b"content-id", b"<b@x>"),
            (b"content-transfer-encoding", b"binary"),
            (b"content-type", b"image/png"),
            (b"content-location", b"http://x/a.png"),
            (b"x-own", b"1"),
            (b"x-own", b"\xe4"),
            (b"content-disposition", b'inline; filename="a.png"; size="3"'),
        ],
        b"png",
    ),
    ([], b""),
]


def body(*parts: tuple[Headers, bytes]) -> bytes:
    encoded = b""
    for headers, data in parts:
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        encoded += b"--b\r\n" + head + b"\r\n" + data + b"\r\n"
    return encoded + b"--b--\r\n"


def parsed(content_type: bytes, wire: bytes) -> list[tuple[Headers, bytes]]:
    decoder = Decoder(boundary_of(content_type), form=False)
    parts: list[tuple[Headers, bytes]] = []
    for event in decoder.receive(wire):
        if event.part is not None:
            parts.append((list(event.part.headers), b""))
        if event.data:
            parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
    decoder.finish()
    return parts


def arrived(upstream: Upstream, place: int = 0) -> tuple[str, list[tuple[Headers, bytes]]]:
    exchange = upstream.exchanges[place]
    content_type = dict(exchange.headers)["content-type"]
    return content_type, parsed(content_type.encode(), bytes(exchange.body))


async def post(gateway: RunningGateway, content_type: str, *parts: tuple[Headers, bytes], to: str = "/proxy") -> Answer:
    return await ask(gateway.port, to, "POST", body(*parts), content_type=content_type)


class TestRelayed:
    async def test_parts_keep_all_of_their_headers_in_order(self, start_gateway: StartGateway) -> None:
        parts = [*PARTS, ([(b"content-type", b"a/b")], random_bytes(3_000_000))]
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url)
            assert (await post(gateway, "multipart/mixed; boundary=b", *parts)).status == 200
        content_type, got = arrived(upstream)
        assert got == parts
        assert content_type.startswith("multipart/mixed; boundary=")
        assert boundary_of(content_type.encode()) != b"b"

    async def test_the_parameters_of_related_go_on(self, start_gateway: StartGateway) -> None:
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url)
            assert (await post(gateway, RELATED, *PARTS)).status == 200
        content_type, got = arrived(upstream)
        assert got == PARTS
        assert content_type.startswith("multipart/related; type=")
        assert other_parameters(content_type.encode()) == [
            (b"type", b"text/html"),
            (b"start", b'<a"%22@x>'),
            (b"start-info", b"-o ps"),
            (b"action", b"urn:x"),
        ]

    async def test_every_part_is_a_file_for_the_rules(self, start_gateway: StartGateway) -> None:
        parts = [{"match": {"name": "", "filename": "*.png", "content_type": "image/*"}, "sinks": ["api", "disk"]}]
        rules = [*parts, {"match": {"filename": ""}, "sinks": ["api"]}]
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url, routes=[{"path": "/r", "kind": "relay", "parts": rules}])
            assert (await post(gateway, RELATED, *PARTS, to="/r")).status == 200
            assert (
                await post(gateway, RELATED, ([(b"content-disposition", b"x; filename=a")], b""), to="/r")
            ).status == 422
        assert arrived(upstream)[1] == PARTS
        assert len([path for path in gateway.stored() if path.is_file()]) == 2  # the picture, and its manifest

    async def test_what_a_flow_makes_of_a_part_stands_in_its_headers(self, start_gateway: StartGateway) -> None:
        rules = [{"flows": ["gzip"], "sinks": ["api"]}]
        headers: Headers = [
            (b"content-length", b"3"),
            (b"content-md5", b"rL0Y20zC+Fzt72VPzMSk2A=="),
            (b"content-disposition", b'inline; filename="f.txt"'),
            (b"content-type", b"text/plain"),
            (b"content-id", b"<x>"),
        ]
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url, routes=[{"path": "/r", "kind": "relay", "parts": rules}])
            assert (await post(gateway, RELATED, (headers, b"foo"), to="/r")).status == 200
        ((got, data),) = arrived(upstream)[1]
        assert got == [
            (b"content-disposition", b'inline; filename="f.txt.gz"'),
            (b"content-type", b"application/gzip"),
            (b"content-id", b"<x>"),
        ]
        assert data[:2] == b"\x1f\x8b"

    @pytest.mark.parametrize("cut", [1, 5, 200])
    async def test_one_that_breaks_off_is_never_whole(self, start_gateway: StartGateway, cut: int) -> None:
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url)
            async with nothing_left_running():
                answer = await ask(gateway.port, "/proxy", "POST", body(*PARTS)[: -2 - cut], content_type=RELATED)
            assert (answer.status, answer.json()["type"]) == (400, "/problems/truncated")
            assert not upstream.saw_a_whole_body


class TestRefused:
    @pytest.mark.parametrize("subtype", ["mixed", "related"])
    @pytest.mark.parametrize("to", ["/upload", "/convert"])
    async def test_other_routes_take_none(self, start_gateway: StartGateway, subtype: str, to: str) -> None:
        answer = await post(await start_gateway(), f"multipart/{subtype}; boundary=b", *PARTS, to=to)
        assert (answer.status, answer.json()["type"]) == (415, "/problems/not-multipart")

    @pytest.mark.parametrize("subtype", ["alternative", "digest", "byteranges", "x-mixed-replace"])
    async def test_no_route_takes_other_subtypes(self, start_gateway: StartGateway, subtype: str) -> None:
        assert (await post(await start_gateway(), f"multipart/{subtype}; boundary=b", *PARTS)).status == 415

    @pytest.mark.parametrize(
        "parameters", ['start="\\', 'type="a', 'start="\xe4"', "start=a; start=b", 'type="a\x01"', 'type=a"b"']
    )
    async def test_parameters_that_cannot_go_on_are_refused(self, start_gateway: StartGateway, parameters: str) -> None:
        answer = await post(await start_gateway(), f"multipart/related; boundary=b; {parameters}", *PARTS)
        assert answer.status == 400

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"content-type", b"a/b"), (b"content-type", b"a/c")],
            [(b"content-disposition", b"inline"), (b"content-disposition", b"attachment")],
            [(b"content-disposition", b'inline; filename="a"; filename="b"')],
            [(b"content-disposition", b'inline; filename="a')],
            [(b"content-disposition", b"inline; filename=a; filename*=UTF-8''b")],
            [(b"content-disposition", b"inline; filename*0=a; filename*1=b")],
            [(b"content-disposition", b'inline; filename="a\\\\"')],
        ],
    )
    async def test_headers_that_two_readers_take_for_different_things_are_refused(
        self, start_gateway: StartGateway, headers: Headers
    ) -> None:
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url)
            answer = await post(gateway, RELATED, PARTS[0], (headers, b"x"))
            assert (answer.status, answer.json()["part"]) == (400, 1)
            assert not upstream.saw_a_whole_body


# -- without a socket


@pytest.mark.parametrize(
    ("part", "head"),
    [
        (Part(0, b"", None, None), b"\r\n"),
        (
            Part(0, b"", b'a"b', b"a/b"),
            b'Content-Disposition: attachment; filename="a%22b"\r\nContent-Type: a/b\r\n\r\n',
        ),
        (
            Part(0, b"", None, b"a/b", [(b"content-disposition", b"inline; filename=x"), (b"content-type", b"c/d")]),
            b"Content-Disposition: inline\r\nContent-Type: a/b\r\n\r\n",
        ),
        (
            Part(0, b"", b"a", None, [(b"content-disposition", b'INLINE ;filename*=UTF-8\'\'a; size=3;x="b\\"c"')]),
            b'Content-Disposition: inline; size="3"; x="b%22c"; filename="a"\r\n\r\n',
        ),
        (
            Part(0, b"", None, None, [(b"content-disposition", b"")]),
            b"Content-Disposition: \r\n\r\n",
        ),
    ],
)
def test_what_is_known_of_a_part_goes_before_what_its_headers_said(part: Part, head: bytes) -> None:
    assert render_headers(part) == head


@pytest.mark.parametrize(
    ("content_type", "like"),
    [
        (b"multipart/form-data; boundary=b; charset=x", "multipart/form-data; boundary="),
        (b"Multipart/Mixed; boundary=b", "multipart/mixed; boundary="),
        (b"multipart/related; type=a/b; boundary=b", 'multipart/related; type="a/b"; boundary='),
        (b"", "multipart/form-data; boundary="),
    ],
)
def test_an_encoder_is_made_after_the_body_that_came_in(content_type: bytes, like: str) -> None:
    encoder = Encoder.like(content_type)
    assert encoder.content_type == like + encoder.boundary.decode()


@pytest.mark.parametrize("parameters", [b"; a", b'; a="b', b"; a=b c", b'; a="\x7f"', b"; a=\xff"])
def test_parameters_are_read_strictly(parameters: bytes) -> None:
    with pytest.raises(Malformed):
        other_parameters(b"multipart/related" + parameters)


def test_a_decoder_finds_the_file_name_in_parts_that_are_none_of_a_form() -> None:
    decoder = Decoder(b"b", form=False)
    events: list[Any] = [event for event in decoder.receive(body(*PARTS)) if event.kind is Kind.WHOLE]
    assert [(event.part.raw_name, event.part.raw_filename, event.part.is_file) for event in events] == [
        (b"", None, True),
        (b"", b"a.png", True),
        (b"", None, True),
    ]
