"""The manifest of an upload as JSON, as it is answered: which members, in which order."""

from __future__ import annotations

import hashlib
import json

from gateway.manifest import manifest_json
from gateway.model import Entry, Manifest, Part, Receipt
from tests.conftest import StartGateway
from tests.support.clients import ask, file, form


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
    document = json.loads(manifest_json(Manifest("x", [entry])))
    assert list(document["parts"][0]["receipts"][0].items()) == [("sink", "api"), ("status", 201), ("location", None)]
    assert document["parts"][0]["sha256"] is None


async def test_a_manifest_that_no_disk_keeps_has_no_location(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=[{"path": "/drop", "digests": [], "parts": [{"sinks": ["none"]}]}])
    answer = await ask(gateway.port, "/drop", "POST", form(file(b"abc")))
    assert answer.status == 201
    assert "location" not in answer.headers
    assert answer.json()["parts"][0]["sha256"] is None
