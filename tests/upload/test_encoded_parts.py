"""Parts that say that their bytes are encoded: who gets those bytes is told, and no flow is shown them."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.clients import Answer, Client, ask, file, form
from tests.support.doubles import HonestUpstream

DATA = bytes(range(256)) * 9
BASE64 = base64.encodebytes(DATA).replace(b"\n", b"\r\n")
GZIP = gzip.compress(DATA)
ENCODED = [
    ("Content-Transfer-Encoding: base64", BASE64),
    ("content-transfer-encoding: BASE64", BASE64),
    ("Content-Transfer-Encoding: quoted-printable", b"caf=C3=A9"),
    ("Content-Transfer-Encoding: x-uuencode", b"x"),
    ("Content-Encoding: gzip", GZIP),
    ("Content-Encoding: deflate, gzip", GZIP),
    ("Content-Encoding: identity, gzip", GZIP),
    ("Content-Encoding: caf\xe9", b"x"),
]
PLAIN = [
    *(f"Content-Transfer-Encoding: {mechanism}" for mechanism in ("7bit", "8BIT", "binary", "")),
    *(f"Content-Encoding: {coding}" for coding in ("identity", "Identity, identity", ",", "binary")),
]


def encoded(line: str, data: bytes, filename: str = "a.png") -> bytes:
    """A file part with one more header line."""
    return file(data, filename).replace(b"\r\n\r\n", b"\r\n" + line.encode("latin-1") + b"\r\n\r\n", 1)


def member_of(line: str) -> tuple[str, str]:
    """A header line as the manifest has it."""
    name, value = line.split(": ")
    return name.lower().replace("-", "_"), value


def labels_in(part: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in part.items() if name.endswith("_encoding")}


async def upload(port: int, *parts: bytes, to: str = "/upload") -> Answer:
    return await ask(port, to, "POST", form(*parts))


@pytest.mark.parametrize(("line", "data"), ENCODED)
async def test_a_destination_gets_the_label_with_the_bytes(start_gateway: StartGateway, line: str, data: bytes) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        sinks = {"each": {"type": "relay", "url": upstream.url, "per": "part"}}
        routes = [
            {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]},
            {"path": "/each", "keep": "each", "parts": [{"sinks": ["each"]}]},
        ]
        gateway = await start_gateway(api=upstream.url, sinks=sinks, routes=routes)
        for to in ("/proxy", "/each"):
            assert (await upload(gateway.port, encoded(line, data), to=to)).status in (200, 201)
            name, value = line.encode("latin-1").split(b": ")
            head, _, body = bytes(upstream.exchanges[-1].body).partition(b"\r\n\r\n")
            assert b"\r\n" + name.title() + b": " + value in head
            assert body.startswith(data + b"\r\n--")


@pytest.mark.parametrize("line", PLAIN)
async def test_what_changes_no_byte_is_told_nobody(start_gateway: StartGateway, line: str) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        assert (await upload(gateway.port, encoded(line, DATA), to="/proxy")).status == 200
        assert b"encoding" not in bytes(upstream.exchanges[0].body).lower()
        (part,) = (await upload(gateway.port, encoded(line, DATA))).json()["parts"]
        assert labels_in(part) == {}
        assert (await upload(gateway.port, encoded(line, DATA), to="/convert")).status == 200


@pytest.mark.parametrize(("line", "data"), ENCODED)
async def test_the_manifest_says_how_a_stored_file_is_encoded(
    start_gateway: StartGateway, line: str, data: bytes
) -> None:
    gateway = await start_gateway()
    answer = await upload(gateway.port, encoded(line, data), file(DATA))
    labelled, plain = answer.json()["parts"]
    assert (labels_in(labelled), labels_in(plain)) == (dict([member_of(line)]), {})
    assert labelled["size"] == len(data)
    again = await ask(gateway.port, answer.headers["location"])
    assert again.body == answer.body


async def test_a_field_says_so_too_and_its_value_stays_as_it_came(start_gateway: StartGateway) -> None:
    field = b'--b0undary\r\nContent-Disposition: form-data; name="n"\r\nContent-Transfer-Encoding: base64\r\n\r\nw6Q='
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        (part,) = (await upload(gateway.port, field)).json()["parts"]
        assert (part["value"], part["content_transfer_encoding"]) == ("w6Q=", "base64")
        assert (await upload(gateway.port, field, to="/proxy")).status == 200
        assert b"Content-Transfer-Encoding: base64\r\n\r\nw6Q=\r\n" in bytes(upstream.exchanges[0].body)


@pytest.mark.parametrize(
    ("line", "coding"),
    [
        ("Content-Encoding: gzip", "gzip"),
        ("Content-Encoding: deflate, gzip", "deflate, gzip"),
        ("Content-Encoding: gzip,", "gzip"),
        ("Content-Encoding: , deflate ,,gzip", "deflate, gzip"),
        ("Content-Encoding: a b", None),
        ("Content-Encoding: caf\xe9", None),
        ("Content-Encoding: identity", None),
        ("Content-Transfer-Encoding: base64", None),
    ],
)
async def test_a_stored_file_is_answered_with_its_content_encoding(
    start_gateway: StartGateway, line: str, coding: str | None
) -> None:
    gateway = await start_gateway()
    manifest = (await upload(gateway.port, encoded(line, GZIP))).json()
    location = manifest["parts"][0]["receipts"][0]["location"]
    for method in ("GET", "HEAD"):
        answer = await ask(gateway.port, location, method)
        assert answer.headers.get("content-encoding") == coding
        assert answer.headers["content-length"] == str(len(GZIP))
    part = await ask(gateway.port, location, range="bytes=1-3")
    assert (part.status, part.body, part.headers.get("content-encoding")) == (206, GZIP[1:4], coding)
    archive = await ask(gateway.port, f"/uploads/{manifest['upload']}/archive.zip")
    assert zipfile.ZipFile(io.BytesIO(archive.body)).read("a.png") == GZIP


@pytest.mark.parametrize("line", ["Content-Transfer-Encoding: base64", "Content-Transfer-Encoding: x-uuencode"])
async def test_an_encoded_raw_body_is_refused_before_it_is_asked_for_where_there_are_flows(
    start_gateway: StartGateway, line: str
) -> None:
    gateway = await start_gateway()
    lines = f"Content-Type: image/png\r\n{line}\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    async with Client(gateway.port) as client:
        await client.send(f"POST /convert HTTP/1.1\r\nHost: a\r\n{lines}".encode())
        answer = await client.answer()
    assert (answer.status, answer.json()["type"]) == (415, "/problems/not-multipart")


@pytest.mark.parametrize("size", [10, 2_000_000])
@pytest.mark.parametrize("line", ["Content-Transfer-Encoding: base64", "Content-Encoding: br"])
async def test_flows_are_never_given_encoded_bytes(start_gateway: StartGateway, line: str, size: int) -> None:
    gateway = await start_gateway()
    answer = await upload(gateway.port, file(DATA), encoded(line, b"A" * size), to="/convert")
    problem = answer.json()
    assert (answer.status, problem["type"], problem["part"]) == (415, "/problems/not-multipart", 1)
    assert line in problem["detail"]
    assert gateway.stored() == []


async def test_where_each_part_is_kept_for_itself_the_others_are(start_gateway: StartGateway) -> None:
    parts = [{"flows": ["sniff"], "sinks": ["disk"]}]
    gateway = await start_gateway(routes=[{"path": "/upload", "keep": "each", "parts": parts}])
    bad = [encoded("Content-Encoding: gzip", GZIP * repeated) for repeated in (1, 20_000)]
    answer = await upload(gateway.port, file(DATA, "0"), bad[0], file(DATA, "2"), bad[1], file(DATA, "4"))
    assert answer.status == 207
    parts_told = answer.json()["parts"]
    assert [part.get("problem", {}).get("status") for part in parts_told] == [None, 415, None, 415, None]
    assert [bool(part["receipts"]) for part in parts_told] == [True, False, True, False, True]


@pytest.mark.parametrize("name", ["Content-Transfer-Encoding", "Content-Encoding"])
async def test_two_labels_of_a_kind_are_refused(start_gateway: StartGateway, name: str) -> None:
    gateway = await start_gateway()
    answer = await upload(gateway.port, file(DATA), encoded(f"{name}: gzip\r\n{name}: base64", DATA))
    assert (answer.status, answer.json()["part"]) == (400, 1)


async def test_a_label_on_a_raw_body_is_kept_as_well(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        label = {"content_type": "image/png", "content_transfer_encoding": "base64"}
        (part,) = (await ask(gateway.port, "/upload/a.png", "PUT", BASE64, **label)).json()["parts"]
        assert part["content_transfer_encoding"] == "base64"
        assert (await ask(gateway.port, "/convert/a.png", "PUT", BASE64, **label)).status == 415
        assert (await ask(gateway.port, "/proxy", "POST", BASE64, **label)).status == 200
        assert b"\r\nContent-Transfer-Encoding: base64\r\n\r\n" in bytes(upstream.exchanges[0].body)
