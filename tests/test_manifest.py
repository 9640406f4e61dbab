"""The manifest of an upload as JSON, as it is answered: which members, in which order."""

from __future__ import annotations

import hashlib
import json

import pytest

from gateway.manifest import BETWEEN, ManifestText
from gateway.model import Entry, Manifest, Part, Receipt
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, ask, file, form, head


async def test_the_members_of_a_manifest_come_in_the_documented_order(start_gateway: StartGateway) -> None:
    route = {"path": "/upload", "digests": ["sha256", "md5", "crc32"], "parts": [{"sinks": ["disk", "none"]}]}
    gateway = await start_gateway(routes=[route])
    field = b'--b0undary\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s'
    body = form(file(b"abc", "\u00fc.bin"), field % (b"note", b"hello"), field % (b"raw", b"\xff"))
    answer = await ask(gateway.port, "/upload", "POST", body)
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    manifest = answer.json()
    assert answer.headers["location"] == f"/uploads/{manifest['upload']}"
    assert list(manifest) == ["upload", "parts"]
    uploaded, note, raw = manifest["parts"]
    members = ["index", "name", "filename", "content_type", "size", "sha256"]
    assert list(uploaded) == [*members, "digests", "receipts"]
    assert list(note) == list(raw) == [*members, "value", "digests", "receipts"]
    assert "\u00fc.bin".encode() in answer.body
    assert uploaded["filename"] == "\u00fc.bin"
    assert uploaded["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert list(uploaded["digests"].items()) == [("md5", hashlib.md5(b"abc").hexdigest()), ("crc32", "352441c2")]
    assert [list(receipt) for receipt in uploaded["receipts"]] == [["sink", "location"], ["sink", "location"]]
    assert {"sink": "none", "location": None} in uploaded["receipts"]
    assert (note["filename"], note["content_type"], note["value"], note["receipts"]) == (None, None, "hello", [])
    assert (raw["value"], raw["size"]) == (None, 1)


def test_a_receipt_of_a_destination_has_its_status_before_its_location() -> None:
    entry = Entry(Part(0, b"f", b"", None, is_file=True), receipts=[Receipt(0, "api", status=201)])
    document = json.loads(ManifestText(Manifest("x", [entry]), sinks=["api"], limit=0).finish())
    assert list(document["parts"][0]["receipts"][0].items()) == [("sink", "api"), ("status", 201), ("location", None)]
    assert document["parts"][0]["sha256"] is None


async def test_a_manifest_that_no_disk_keeps_has_no_location(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=[{"path": "/drop", "digests": [], "parts": [{"sinks": ["none"]}]}])
    answer = await ask(gateway.port, "/drop", "POST", form(file(b"abc")))
    assert answer.status == 201
    assert "location" not in answer.headers
    assert answer.json()["parts"][0]["sha256"] is None


# -- how much of a field it says, and how much it may be


FIELD = b'--b0undary\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s'


@pytest.mark.parametrize("limit", range(1, 13))
async def test_a_long_value_is_cut_between_characters_and_said_to_be(start_gateway: StartGateway, limit: int) -> None:
    text = "a\u00e4\u20ac\U0001f600z"
    gateway = await start_gateway(limits={"max_value_bytes": limit})
    answer = await ask(gateway.port, "/upload", "POST", form(FIELD % (b"f", text.encode())))
    (field,) = answer.json()["parts"]
    whole = len(text.encode())
    assert field["value"] == text.encode()[:limit].decode(errors="ignore")
    assert field.get("value_truncated") == (True if limit < whole else None)
    assert field["size"] == whole
    assert (await ask(gateway.port, answer.headers["location"])).body == answer.body


async def test_what_is_no_text_is_null_however_long_it_is(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"max_value_bytes": 4})
    answer = await ask(gateway.port, "/upload", "POST", form(FIELD % (b"f", b"abcdefgh\xff")))
    (field,) = answer.json()["parts"]
    assert (field["value"], "value_truncated" in field) == (None, False)


@pytest.mark.parametrize("path", ["/upload", "/both", "/dropped", "/convert"])
@pytest.mark.parametrize("kind", ["values", "names", "parts"])
async def test_an_upload_with_too_large_a_manifest_is_refused_and_nothing_is_kept_or_sent(
    start_gateway: StartGateway, start_destination: StartDestination, path: str, kind: str
) -> None:
    destination = await start_destination()
    routes = [
        {"path": "/upload", "parts": [{"sinks": ["disk"]}]},
        {"path": "/both", "parts": [{"sinks": ["disk", "api"]}]},
        {"path": "/dropped", "parts": [{"sinks": ["none"]}]},
        {"path": "/convert", "kind": "convert", "parts": [{"sinks": ["disk"]}]},
    ]
    limit = 60_000
    gateway = await start_gateway(api=destination.url + "/upload", routes=routes, limits={"max_manifest_bytes": limit})
    parts = {
        "values": [FIELD % (b"f", b"\x01" * 11_000)],
        "names": [file(b"x", "n" * 12_000) for _ in range(6)],
        "parts": [file(b"x", "a") for _ in range(300)],
    }[kind]
    answer = await ask(gateway.port, path, "POST", form(*parts, file(b"abc")))
    assert (answer.status, answer.json()["limit"]) == (413, limit)
    assert not gateway.stored()
    assert (await ask(destination.port, "/seen")).json()["completed"] == 0
    assert (await ask(gateway.port, path, "POST", form(file(b"abc")))).status in (200, 201)


async def test_the_manifest_of_many_parts_has_one_line_and_a_tab_before_each_of_them(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    names = ["a b", "c%22d", "e\u2028f", "\U0001f600"] * 100
    answer = await ask(gateway.port, "/upload", "POST", form(*(file(b"x", name) for name in names)))
    start, *parts = answer.body.split(BETWEEN)
    assert (start[-1:], answer.body[-3:], answer.body.count(b"\n")) == (b"[", b"]}\n", 1)
    parts[-1] = parts[-1][:-3] + b","
    assert [json.loads(part.removesuffix(b",")) for part in parts] == answer.json()["parts"]


HEADER = b'--b0undary\r\nX-Note: %s\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx'
TYPE = b'--b0undary\r\nContent-Disposition: form-data; name="f"; filename="a"\r\nContent-Type: a/%s\r\n\r\nx'


@pytest.mark.parametrize(
    "part",
    [file(b"x", "n" * 12_000), HEADER % (b"n" * 12_000), TYPE % (b"n" * 12_000), FIELD % (b"f", b"n" * 12_000)],
    ids=["names", "headers", "types", "values"],
)
@pytest.mark.parametrize("path", ["/upload", "/proxy"])
async def test_what_is_held_of_parts_for_the_manifest_is_bounded_while_the_body_comes(
    start_gateway: StartGateway, start_destination: StartDestination, path: str, part: bytes
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url + "/upload", limits={"max_manifest_bytes": 60_000})
    async with Client(gateway.port) as client:
        await client.send(head(path, content_length=1 << 30) + (part + b"\r\n") * 5)  # one more than fits is on its way
        await client.send((part + b"\r\n") * 2)
        answer = await client.answer()
    assert (answer.status, answer.json()["limit"]) == (413, 60_000)
    assert not gateway.stored()
    assert (await ask(gateway.port, path, "POST", form(file(b"abc")))).status in (200, 201)
