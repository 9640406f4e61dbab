"""The demo destination over real sockets: what it says about good bodies, and each of its misbehaviours."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from gateway.server.demo_destination import _SEEN, receiver_app

pytestmark = pytest.mark.sockets

Client = TestClient[web.Request, web.Application]

FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Misbehaviour is no reason for a traceback; and aiohttp warns where it drops `handler_args`."""
    caplog.set_level(logging.INFO)
    yield
    loud = [r.getMessage() for r in caplog.get_records("call") if r.levelno > logging.INFO or r.exc_info]
    assert loud == []


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(receiver_app())


def _form(*parts: tuple[str, bytes]) -> bytes:
    """A body of form-data: (the Content-Disposition's parameters and what headers follow, data) each."""
    heads = [(f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode(), data) for head, data in parts]
    return b"".join(head + data + b"\r\n" for head, data in heads) + b"--b--\r\n"


async def _seen(client: Client) -> dict[str, Any]:
    async with client.get("/seen") as response:
        assert response.status == 200
        seen: dict[str, Any] = await response.json()
        return seen


async def _eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - the other side is a server that signals nothing
            await asyncio.sleep(0.01)


async def _connect(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(client.host, client.port)


def _head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: receiver", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, Any]:
    """The head, and the JSON behind it, of an answer after which the connection is closed."""
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return head, json.loads(body)


# -- what came in


async def test_multipart_is_answered_with_its_manifest(client: Client) -> None:
    data = bytes(range(256)) * 2048
    body = _form(
        ('name="file"; filename="a.bin"\r\nContent-Type: application/octet-stream', data),
        ('name="note"', "grüße".encode()),
        ('name="odd"', b"\xff"),
        ('name="empty"; filename=""', b""),
    )
    async with client.post("/any/path?x=1&y=%C3%A9", data=body, headers=FORM) as response:
        assert response.status == 200
        manifest = await response.json()
    assert list(manifest) == ["upload", "parts", "headers", "query"]
    assert manifest["upload"] is None
    assert manifest["query"] == "x=1&y=%C3%A9"
    assert ["Content-Type", FORM["Content-Type"]] in manifest["headers"]
    file, note, odd, empty = manifest["parts"]
    assert file == {
        "index": 0,
        "name": "file",
        "filename": "a.bin",
        "content_type": "application/octet-stream",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "receipts": [],
    }
    assert list(note) == ["index", "name", "filename", "content_type", "size", "sha256", "value", "receipts"]
    assert (note["index"], note["filename"], note["size"], note["value"]) == (1, None, 7, "grüße")
    assert "value" not in odd
    assert (empty["filename"], empty["size"]) == ("", 0)


async def test_a_field_has_a_value_up_to_64_kib(client: Client) -> None:
    body = _form(('name="short"', b"x" * 65536), ('name="long"', b"x" * 65537))
    async with client.post("/", data=body, headers=FORM) as response:
        short, long = (await response.json())["parts"]
    assert short["value"] == "x" * 65536
    assert "value" not in long
    assert long["sha256"] == hashlib.sha256(b"x" * 65537).hexdigest()


async def test_a_form_of_aiohttp_with_many_parts(client: Client) -> None:
    form = FormData(quote_fields=False, default_to_multipart=True)
    for number in range(3000):
        form.add_field(f"n{number}", str(number))
    async with client.put("/", data=form) as response:
        parts = (await response.json())["parts"]
    assert [part["value"] for part in parts] == [str(number) for number in range(3000)]


async def test_a_form_without_parts(client: Client) -> None:
    async with client.post("/", data=b"--b--\r\n", headers=FORM) as response:
        assert (await response.json())["parts"] == []


async def test_multipart_of_another_subtype(client: Client) -> None:
    body = b"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b--"
    async with client.post("/", data=body, headers={"Content-Type": "multipart/related; boundary=b"}) as response:
        (part,) = (await response.json())["parts"]
    assert (part["content_type"], part["size"]) == ("text/plain", 5)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_any_other_body_is_one_raw_file(client: Client, method: str) -> None:
    headers = {"Content-Type": "text/plain", "Content-Disposition": 'attachment; filename="a.txt"'}
    async with client.request(method, "/seen", data=b"abc", headers=headers) as response:
        assert response.status == 200
        (part,) = (await response.json())["parts"]
    assert part == {
        "index": 0,
        "name": "file",
        "filename": "a.txt",
        "content_type": "text/plain",
        "size": 3,
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "receipts": [],
    }


async def test_a_compressed_body_is_taken_as_it_is(client: Client) -> None:
    async with client.post("/", data=b"not gzip", headers={"Content-Encoding": "gzip"}) as response:
        assert (await response.json())["parts"][0]["size"] == 8


async def test_an_empty_body_is_an_empty_file(client: Client) -> None:
    async with client.post("/") as response:
        (part,) = (await response.json())["parts"]
    assert (part["size"], part["filename"]) == (0, None)


async def test_expect_100_continue(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/", 3, "Expect: 100-continue", "Connection: close"))
    async with asyncio.timeout(30):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    head, manifest = await _answer(reader)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert manifest["parts"][0]["size"] == 3
    writer.close()


async def test_a_large_body_is_not_held(client: Client) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(512):
            yield chunk

    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        async with client.post("/", data=body()) as response:
            assert (await response.json())["parts"][0]["size"] == 32 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# -- bodies that are not whole


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(FORM["Content-Type"], _form(('name="a"', b"x"))[:-8], id="no closing delimiter"),
        pytest.param(FORM["Content-Type"], b"", id="nothing"),
        pytest.param(FORM["Content-Type"], b"--b\r\nno header\r\n\r\nx\r\n--b--", id="bad part header"),
        pytest.param("multipart/form-data", _form(('name="a"', b"x")), id="no boundary"),
    ],
)
async def test_a_malformed_body_is_400_and_aborted(client: Client, content_type: str, body: bytes) -> None:
    async with client.post("/", data=body, headers={"Content-Type": content_type}) as response:
        assert response.status == 400
        assert (await response.json())["detail"]
    assert await _seen(client) == {"started": 1, "completed": 0, "aborted": 1, "last": None}


async def test_a_body_that_is_malformed_early_is_answered_without_its_rest(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/", 1 << 30, f"Content-Type: {FORM['Content-Type']}") + b"--b\r\nno header\r\n\r\n")
    head, _ = await _answer(reader)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    writer.close()


@pytest.mark.parametrize("content_type", [FORM["Content-Type"], "text/plain"])
@pytest.mark.parametrize("linger", [None, 0], ids=["FIN", "RST"])
async def test_a_client_that_goes_away_is_counted_as_aborted(
    client: Client, content_type: str, linger: int | None
) -> None:
    body = _form(('name="f"; filename="f"', b"x" * 1000))
    _reader, writer = await _connect(client)
    writer.write(_head("/", len(body), f"Content-Type: {content_type}") + body[:500])
    await writer.drain()
    await _eventually(lambda: client.app[_SEEN].started == 1)
    if linger is not None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
    writer.transport.abort()
    await _eventually(lambda: client.app[_SEEN].aborted == 1)
    assert await _seen(client) == {"started": 1, "completed": 0, "aborted": 1, "last": None}


async def test_clients_that_go_away_at_once(client: Client) -> None:
    for _ in range(50):
        _reader, writer = await _connect(client)
        writer.write(_head("/", 1000) + b"x")
        writer.transport.abort()
    await asyncio.sleep(0.1)
    seen = client.app[_SEEN]
    await _eventually(lambda: seen.started == seen.aborted and not seen.connections)


# -- misbehaviour on request


async def test_status(client: Client) -> None:
    async with client.post("/?status=503", data=b"abc") as response:
        assert response.status == 503
        manifest = await response.json()
    assert manifest["parts"][0]["size"] == 3
    assert (await _seen(client))["last"] == manifest


async def test_status_without_a_body(client: Client) -> None:
    for _ in range(2):
        async with client.post("/?status=204", data=b"abc") as response:
            assert (response.status, await response.read()) == (204, b"")


async def test_delay_seconds(client: Client) -> None:
    start = time.monotonic()
    async with client.post("/?delay_seconds=0.5", data=b"abc") as response:
        assert response.status == 200
    assert time.monotonic() - start >= 0.5


async def test_delay_seconds_ends_when_the_client_goes_away(client: Client) -> None:
    _reader, writer = await _connect(client)
    writer.write(_head("/?delay_seconds=60", 3) + b"abc")
    await _eventually(lambda: client.app[_SEEN].completed == 1)
    writer.transport.abort()
    await _eventually(lambda: not client.app[_SEEN].connections)


async def test_rate_bytes(client: Client) -> None:
    start = time.monotonic()
    async with client.post("/?rate_bytes=200000", data=b"x" * 300_000) as response:
        assert (await response.json())["parts"][0]["size"] == 300_000
    assert 1 <= time.monotonic() - start < 10


async def test_rate_bytes_is_felt_by_the_sender(client: Client) -> None:
    _reader, writer = await _connect(client)
    writer.write(_head("/?rate_bytes=100000", 32 << 20) + b"x" * (32 << 20))
    await asyncio.sleep(0.5)
    assert writer.transport.get_write_buffer_size() > 16 << 20
    writer.transport.abort()


async def test_die_after_bytes_is_a_reset(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/?die_after_bytes=50000", 200_000) + b"x" * 100_000)
    async with asyncio.timeout(30):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()
    assert await _seen(client) == {"started": 1, "completed": 0, "aborted": 1, "last": None}


async def test_die_after_bytes_waits_for_the_bytes(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/?die_after_bytes=2", 3) + b"x")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read()
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_answer_after_bytes(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/?answer_after_bytes=50000&status=413", 32 << 20) + b"x" * (32 << 20))
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 413 ")
        assert b"connection: close" in head
        assert json.loads(await reader.readuntil(b"}")) == {"answered_after_bytes": 50000}
        assert writer.transport.get_write_buffer_size() > 16 << 20
        with pytest.raises(ConnectionError):
            await writer.drain()
    assert await _seen(client) == {"started": 1, "completed": 0, "aborted": 1, "last": None}


async def test_answer_after_bytes_without_status_is_200(client: Client) -> None:
    reader, writer = await _connect(client)
    writer.write(_head("/?answer_after_bytes=0", 1000))
    head, answer = await _answer(reader)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert answer == {"answered_after_bytes": 0}
    writer.close()


async def test_answer_after_more_bytes_than_there_are_is_no_misbehaviour(client: Client) -> None:
    async with client.post("/?answer_after_bytes=1000&die_after_bytes=4", data=b"abc") as response:
        assert (await response.json())["parts"][0]["size"] == 3
    assert (await _seen(client))["completed"] == 1


async def test_never_answer(client: Client) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), client.post("/?never_answer=1", data=b"abc"):
            pass
    assert (await _seen(client))["completed"] == 1
    await _eventually(lambda: not client.app[_SEEN].connections)


async def test_never_answer_does_not_outlive_the_server(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(receiver_app())
    reader, writer = await _connect(client)
    writer.write(_head("/?never_answer=1", 3) + b"abc")
    await _eventually(lambda: client.app[_SEEN].completed == 1)
    async with asyncio.timeout(30):
        await client.server.close()
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "query",
    [
        "status=ok",
        "status=100",
        "status=600",
        "status=",
        "delay_seconds=-1",
        "delay_seconds=nan",
        "delay_seconds=inf",
        "rate_bytes=0",
        "rate_bytes=1.5",
        "die_after_bytes=-1",
        "answer_after_bytes=x",
        "never_answer=yes",
    ],
)
async def test_invalid_parameters_are_400(client: Client, query: str) -> None:
    async with client.post(f"/?{query}", data=b"abc") as response:
        assert response.status == 400
        assert query.partition("=")[0] in (await response.json())["detail"]
    assert (await _seen(client))["started"] == 0


# -- what it says about itself


async def test_seen(client: Client) -> None:
    assert await _seen(client) == {"started": 0, "completed": 0, "aborted": 0, "last": None}
    async with client.post("/one", data=b"1"):
        pass
    async with client.post("/two", data=_form(('name="a"', b"2")), headers=FORM) as response:
        last = await response.json()
    async with client.post("/three", data=b"--b", headers=FORM) as response:
        assert response.status == 400
    assert await _seen(client) == {"started": 3, "completed": 2, "aborted": 1, "last": last}


async def test_a_running_request_is_started_only(client: Client) -> None:
    _reader, writer = await _connect(client)
    writer.write(_head("/", 3) + b"a")
    await _eventually(lambda: client.app[_SEEN].started == 1)
    assert await _seen(client) == {"started": 1, "completed": 0, "aborted": 0, "last": None}
    writer.transport.abort()


async def test_healthz(client: Client) -> None:
    async with client.get("/healthz") as response:
        assert response.status == 200
