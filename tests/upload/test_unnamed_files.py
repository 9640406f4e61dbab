"""A file need not have a name (RFC 7578 4.2): what its type says is no text is a file, and is lost nowhere."""

from __future__ import annotations

import pytest

from tests.conftest import StartGateway
from tests.support.clients import BOUNDARY, Answer, ask, file, form, random_bytes
from tests.support.doubles import HonestUpstream

FILES = ["application/octet-stream", "image/png", "Application/PDF; x=y", "application/xml", "message/rfc822", "a/b"]
FIELDS = [
    None,
    "",
    "text/plain",
    "Text/Html; charset=utf-8",
    "application/json",
    "application/JSON;charset=utf-8",
    "application/problem+json",
    "application/vnd.api+json ; v=1",
    "application/x-www-form-urlencoded",
    "image",
    "/",
]


def part(data: bytes, content_type: str | None, name: str = "file") -> bytes:
    """A part of a form without a file name."""
    kind = "" if content_type is None else f"\r\nContent-Type: {content_type}"
    disposition = f'Content-Disposition: form-data; name="{name}"'
    return b"--%s\r\n%s\r\n\r\n%s" % (BOUNDARY, (disposition + kind).encode(), data)


async def upload(port: int, *parts: bytes, to: str = "/upload") -> Answer:
    return await ask(port, to, "POST", form(*parts))


@pytest.mark.parametrize("size", [0, 256, 2_000_000])
@pytest.mark.parametrize("content_type", FILES)
async def test_a_part_of_another_type_than_text_is_stored(
    start_gateway: StartGateway, content_type: str, size: int
) -> None:
    data = random_bytes(size)
    gateway = await start_gateway()
    answer = await upload(gateway.port, part(data, content_type))
    assert answer.status == 201
    (stored,) = answer.json()["parts"]
    assert (stored["filename"], stored["content_type"], "value" in stored) == (None, content_type, False)
    location = stored["receipts"][0]["location"]
    assert location.endswith("/0/file")
    assert (await ask(gateway.port, location)).body == data


@pytest.mark.parametrize("content_type", FIELDS)
async def test_text_stays_a_field(start_gateway: StartGateway, content_type: str | None) -> None:
    gateway = await start_gateway()
    (field,) = (await upload(gateway.port, part(b"{}", content_type))).json()["parts"]
    assert (field["value"], field["receipts"]) == ("{}", [])
    assert gateway.stored() == [] or not any(path.name == "0" for path in gateway.stored())


async def test_the_charset_of_a_form_stays_a_field_whatever_its_type(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    (field,) = (await upload(gateway.port, part(b"utf-8", "application/octet-stream", "_charset_"))).json()["parts"]
    assert field["value"] == "utf-8"


@pytest.mark.parametrize("length", ["chunked", "spool"])
@pytest.mark.parametrize("size", [256, 2_000_000])
async def test_it_goes_on_to_a_destination_as_it_came_and_under_the_limits_of_files(
    start_gateway: StartGateway, size: int, length: str
) -> None:
    data = random_bytes(size)
    async with HonestUpstream(200, b"{}") as upstream:
        sinks = {"each": {"type": "relay", "url": upstream.url, "per": "part"}}
        routes = [
            {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]},
            {"path": "/each", "keep": "each", "parts": [{"sinks": ["each"]}]},
        ]
        gateway = await start_gateway(
            sinks={"api": {"url": upstream.url, "length": length}, **sinks},
            routes=routes,
            limits={"max_field_bytes": 9},
        )
        for to in ("/proxy", "/each"):
            assert (await upload(gateway.port, part(data, "image/png"), to=to)).status in (200, 201)
            head, _, rest = bytes(upstream.exchanges[-1].body).partition(b"\r\n\r\n")
            assert head.split(b"\r\n")[1:] == [
                b'Content-Disposition: form-data; name="file"',
                b"Content-Type: image/png",
            ]
            assert rest[:size] == data


async def test_what_is_added_after_a_file_without_a_name_names_none(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(sinks={"api": {"url": upstream.url, "add_after": {"name": "<{filename}>"}}})
        assert (await upload(gateway.port, part(b"x", "a/b"), to="/proxy")).status == 200
        assert bytes(upstream.exchanges[0].body).count(b'name="name"\r\n\r\n<>\r\n') == 1
        raw = await ask(gateway.port, "/proxy", "POST", b"x", content_type="a/b")
        assert raw.status == 200
        assert b'name="name"\r\n\r\n<file>\r\n' in bytes(upstream.exchanges[1].body)


async def test_it_wants_a_rule_as_any_file_does(start_gateway: StartGateway) -> None:
    rules = [{"match": {"filename": "*.png"}, "sinks": ["disk"]}, {"match": {"content_type": "a/*"}, "sinks": ["disk"]}]
    gateway = await start_gateway(routes=[{"path": "/upload", "parts": rules}])
    answer = await upload(gateway.port, file(b"x", "a.png"), part(b"x", "image/png"))
    assert (answer.status, answer.json()["type"], answer.json()["part"]) == (422, "/problems/no-route", 1)
    assert gateway.stored() == []
    assert (await upload(gateway.port, part(b"x", "a/b"))).status == 201


async def test_it_is_limited_as_a_file_is(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"max_file_bytes": 1000, "max_fields_bytes": 10})
    assert (await upload(gateway.port, part(b"x" * 1000, "a/b"))).status == 201
    answer = await upload(gateway.port, part(b"x" * 1001, "a/b"))
    assert (answer.status, answer.json()["limit"], answer.json()["part"]) == (413, 1000, 0)


async def test_flows_get_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    answer = await upload(gateway.port, part(b"%PDF-1.4 x", "application/pdf"), to="/convert")
    (result,) = answer.json()
    assert result["input"]["filename"] is None
    assert result["output"]["size"]


async def test_several_files_in_one_part_as_curl_sends_them_are_one_stored_file(start_gateway: StartGateway) -> None:
    inner = b'--i\r\nContent-Disposition: attachment; filename="a"\r\n\r\n1\r\n--i--\r\n'
    gateway = await start_gateway()
    (stored,) = (await upload(gateway.port, part(inner, "multipart/mixed; boundary=i"))).json()["parts"]
    assert stored["content_type"] == "multipart/mixed; boundary=i"
    assert (await ask(gateway.port, stored["receipts"][0]["location"])).body == inner
