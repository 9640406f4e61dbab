"""Half-close: a FIN behind a whole request is no hang-up, one within a body is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.server.connection import Connection
from gateway.server.record import log_untaken
from tests.conftest import Destination, RunningGateway, StartDestination, StartGateway
from tests.support.clients import (
    FORM_TYPE,
    Answer,
    Client,
    DribblingClient,
    ask,
    chunked,
    eventually,
    file,
    form,
    head,
    random_bytes,
)
from tests.support.processes import gateway_process

TEXT = "text/plain"
BODY = form(file(b"hello"))
BIG = random_bytes(5 << 20)
SOON = 20
"""Seconds: a busy machine may need some, and clocks of the gateway that could end a connection instead need 30."""
OPAQUE = [{"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]}]


def _raw(data: bytes, target: str = "/upload", method: str = "POST", **headers: str | int) -> bytes:
    return head(target, method, content_type=TEXT, content_length=len(data), **headers) + data


def _in_chunks(data: bytes, target: str = "/upload", *, size: int = 1 << 16, content_type: str = TEXT) -> bytes:
    return head(target, content_type=content_type, transfer_encoding="chunked") + chunked(data, size)


def _get(target: str, method: str = "GET") -> bytes:
    return head(target, method, content_type="")


UPGRADE = _get("/healthz")[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"


async def _answered(gateway: RunningGateway, request: bytes, *, answers: int = 1) -> list[Answer]:
    """What whole requests with a FIN behind them are answered, after which the connection is closed."""
    async with Client(gateway.port) as client:
        await client.send(request)
        client.finish()
        found = [await client.answer() for _ in range(answers)]
        assert await client.ended(SOON) == b""
    return found


async def _status(gateway: RunningGateway, request: bytes) -> int:
    return (await _answered(gateway, request))[0].status


def _kept(gateway: RunningGateway) -> list[Path]:
    return [path for path in gateway.stored() if path.name == "manifest.json"]


@pytest.fixture
async def slow_destination(start_destination: StartDestination) -> Destination:
    """Answers with the size of what it got, after a while."""

    async def take(request: web.Request) -> web.Response:
        size = 0
        async for data in request.content.iter_any():
            size += len(data)
        await asyncio.sleep(0.5)
        return web.json_response({"size": size}, status=201)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", take)
    return await start_destination(app)


@pytest.fixture
async def gateway(start_gateway: StartGateway, slow_destination: Destination) -> AsyncIterator[RunningGateway]:
    """With a route of each kind; afterwards no connection, request or slot of it may be left."""
    running = await start_gateway(
        api=f"{slow_destination.url}/in",
        routes=OPAQUE,
        download={"allow": [f"{slow_destination.url}/*"], "allow_private": ["127.0.0.0/8"]},
    )
    yield running
    server = running.runner.server
    if server is not None:  # it was not drained
        await eventually(lambda: not server.connections, 5)
    assert running.services.gate.in_flight == 0
    assert not running.services.requests


FORM = head(content_length=len(BODY)) + BODY
ANSWERED = {
    "a raw body": (_raw(b"hello"), 201),
    "an empty body": (_raw(b""), 201),
    "a raw body in chunks": (_in_chunks(b"hello", size=2), 201),
    "a large body": (_raw(BIG), 201),
    "a large body in chunks": (_in_chunks(BIG, size=5000), 201),
    "a form": (FORM, 201),
    "a form in chunks": (_in_chunks(BODY, size=7, content_type=FORM_TYPE), 201),
    "PUT": (_raw(b"hello", "/upload/a.txt", "PUT"), 201),
    "/convert": (FORM.replace(b"/upload", b"/convert"), 200),
    "PUT /convert": (_raw(b"hello", "/convert/a.txt", "PUT"), 200),
    "/proxy": (FORM.replace(b"/upload", b"/proxy"), 201),
    "a large body for a relay": (_raw(BIG, "/proxy"), 201),
    "opaque": (_raw(b"hello", "/raw"), 201),
    "a large opaque body": (_raw(BIG, "/raw"), 201),
    "PATCH on an opaque route": (_raw(b"hello", "/raw", "PATCH"), 201),
    "the page of the process": (_get("/healthz"), 200),
    "readiness": (_get("/readyz"), 200),
    "metrics": (_get("/metrics"), 200),
    "a self-test": (_raw(b"ab", "/selftest/buffering"), 200),
    "404": (_raw(b"hello", "/nowhere"), 404),
    "404 of an upload": (_get("/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV"), 404),
    "405": (_get("/upload"), 405),
    "415": (FORM.replace(b"form-data;", b"mixed;", 1), 415),
    "415 with a large body": (_raw(BIG, content_encoding="gzip"), 415),
    "400 of a form without an end": (head(content_length=len(BODY) - 20) + BODY[:-20], 400),
    "not HTTP": (b"hello\r\n\r\n", 400),
    "a download": (_get("/download/{destination}/a"), 201),
    "a download that is not allowed": (_get("/download/http://127.0.0.1:1/a"), 403),
    "HTTP/1.0": (_raw(b"hello").replace(b"HTTP/1.1", b"HTTP/1.0"), 201),
    "GET of HTTP/1.0": (_get("/healthz").replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "HTTP/1.0 that would be kept alive": (_raw(b"x", connection="keep-alive").replace(b"P/1.1", b"P/1.0"), 201),
    "Connection: close": (_raw(b"hello", connection="close"), 201),
    "an upgrade that nobody offers": (UPGRADE, 200),
}


class TestAWholeRequest:
    @pytest.mark.parametrize("what", ANSWERED)
    async def test_is_answered_and_then_the_connection_is_closed(
        self, gateway: RunningGateway, slow_destination: Destination, what: str
    ) -> None:
        request, status = ANSWERED[what]
        assert await _status(gateway, request.replace(b"{destination}", slow_destination.url.encode())) == status

    async def test_that_asks_for_what_is_stored_gets_it_whole(self, gateway: RunningGateway) -> None:
        (created,) = await _answered(gateway, _raw(BIG, "/upload/a.bin", "PUT"))
        manifest = created.json()
        location = manifest["parts"][0]["receipts"][0]["location"]
        for _ in range(3):
            (found,) = await _answered(gateway, _get(location))
            assert found.body == BIG
        (archive,) = await _answered(gateway, _get(f"/uploads/{manifest['upload']}/archive.zip"))
        assert len(archive.body) > len(BIG)
        (again,) = await _answered(gateway, _get(f"/uploads/{manifest['upload']}"))
        assert again.json() == manifest
        assert await _status(gateway, _get(f"/uploads/{manifest['upload']}", "DELETE")) == 204

    async def test_that_waits_for_100_continue_is_answered(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(BODY), expect="100-continue"))
            assert (await client.answer()).status == 100
            await client.send(BODY)
            client.finish()
            assert (await client.answer()).status == 201
            assert await client.ended(SOON) == b""

    async def test_is_answered_when_the_fin_comes_while_its_destination_thinks(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/raw"))
            await asyncio.sleep(0.2)
            client.finish()
            answer = await client.answer()
            assert (answer.status, answer.json()) == (201, {"size": 5})
            assert await client.ended(SOON) == b""

    async def test_is_answered_when_the_fin_comes_in_the_middle_of_its_answer(self, gateway: RunningGateway) -> None:
        (created,) = await _answered(gateway, _raw(BIG))
        location = created.json()["parts"][0]["receipts"][0]["location"]
        async with Client(gateway.port, receive_buffer_bytes=4096) as client:
            await client.send(_get(location))
            await asyncio.sleep(0.2)
            client.finish()
            await asyncio.sleep(0.2)
            assert (await client.answer()).body == BIG
            assert await client.ended(SOON) == b""

    async def test_for_a_download_gets_what_a_slow_server_still_sends(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        async def slow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = 4
            await response.prepare(request)
            for number in range(4):
                await asyncio.sleep(0.3)
                await response.write(b"%d" % number)
            return response

        app = web.Application()
        app.router.add_get("/a", slow)
        there = await start_destination(app)
        gateway = await start_gateway(download={"allow": [f"{there.url}/*"], "allow_private": ["127.0.0.0/8"]})
        (answer,) = await _answered(gateway, _get(f"/download/{there.url}/a"))
        assert answer.body == b"0123"

    async def test_is_answered_while_the_gateway_drains(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/raw"))
            client.finish()
            await asyncio.sleep(0.1)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(gateway.runner.cleanup())
                assert (await client.answer()).status == 201


class TestPipelined:
    async def test_requests_are_all_answered_in_their_order(self, gateway: RunningGateway) -> None:
        requests = _raw(b"hello") + _get("/healthz") + _raw(b"x", "/raw") + _raw(BIG) + _get("/nowhere")
        answers = await _answered(gateway, requests, answers=5)
        assert [answer.status for answer in answers] == [201, 200, 201, 201, 404]
        assert answers[-1].headers["connection"] == "close"
        assert len(_kept(gateway)) == 2

    @pytest.mark.parametrize("cut", [1, 20, -1], ids=["one byte", "half a head", "all but a byte"])
    @pytest.mark.parametrize(
        "last", [_raw(b"hello"), _in_chunks(BODY, content_type=FORM_TYPE)], ids=["length", "chunks"]
    )
    async def test_whole_requests_before_one_that_is_cut_off_are_answered(
        self, gateway: RunningGateway, last: bytes, cut: int
    ) -> None:
        answers = await _answered(gateway, _raw(b"x", "/raw") + _raw(b"hello") + last[:cut], answers=2)
        assert [answer.status for answer in answers] == [201, 201]
        assert len(_kept(gateway)) == 1

    @pytest.mark.parametrize("protocol", ["h2c", "tls/1.0, x", "websocket"])
    @pytest.mark.parametrize("cut", [0, -3, 5, 60])
    async def test_one_that_asks_for_another_protocol_is_the_last_of_its_connection(
        self, gateway: RunningGateway, protocol: str, cut: int
    ) -> None:
        asking = _raw(b"hello", "/upload", connection="Upgrade, HTTP2-Settings", upgrade=protocol)
        requests = asking + _raw(b"lost", "/upload")
        async with Client(gateway.port) as client:
            await client.send(requests[: len(asking) + cut])
            await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):  # it may be closed already
                await client.send(requests[len(asking) + cut :])
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert not (await client.ended(SOON)).startswith(b"HTTP")
        assert len(_kept(gateway)) == 1

    @pytest.mark.parametrize("count", [31, 32, 33, 200])
    async def test_more_requests_than_may_queue_are_answered(self, gateway: RunningGateway, count: int) -> None:
        async with Client(gateway.port) as client:
            await client.send(head(content_type=TEXT, content_length=1))
            await asyncio.sleep(0.05)  # so that its body comes alone
            await client.send(b"x")
            assert (await client.answer()).status == 201
            await client.send(_get("/healthz") * count)
            client.finish()
            for _ in range(count):
                assert (await client.answer()).status == 200
            assert await client.ended(SOON) == b""

    async def test_what_is_no_http_behind_a_whole_request_is_told_so(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/raw"))
            await asyncio.sleep(0.1)
            await client.send(b"hello\r\n\r\n")
            client.finish()
            assert [(await client.answer()).status for _ in range(2)] == [201, 400]
            assert await client.ended(SOON) == b""

    @pytest.mark.parametrize("client", [Client, DribblingClient])
    async def test_requests_are_answered_however_they_come(self, gateway: RunningGateway, client: type[Client]) -> None:
        requests = _raw(b"hello") + b"\r\n" + _in_chunks(BODY, size=7, content_type=FORM_TYPE) + _get("/healthz")
        async with client(gateway.port) as sender:
            await sender.send(requests + _get("/healthz", "BREW") + _get("/healthz"))
            assert [(await sender.answer()).status for _ in range(4)] == [201, 201, 200, 400]
            assert await sender.ended(SOON) == b""
        assert len(_kept(gateway)) == 2

    async def test_any_number_behind_a_body_in_the_same_segment_is_answered(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(_in_chunks(b"hello", "/raw") + _get("/healthz") * 100 + _raw(b"hello"))
            assert {(await client.answer()).status for _ in range(102)} == {200, 201}

    async def test_what_waits_behind_a_request_is_bounded(self, gateway: RunningGateway) -> None:
        server = gateway.runner.server
        assert server is not None
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/raw"))  # which takes half a second
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(client.send(_get("/healthz") * 200_000))
                await asyncio.sleep(0.3)
                (connection,) = server.connections
                assert isinstance(connection, Connection)
                assert 32 << 10 <= len(connection._received) <= 96 << 10
                assert [(await client.answer()).status for _ in range(3)] == [201, 200, 200]
                sending.cancel()


class TestHeads:
    """What of them is refused, and with what, is in tests/http/test_request_heads.py."""

    @pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"GET /"])
    async def test_one_without_an_end_is_cut_when_its_limit_has_come(
        self, gateway: RunningGateway, sent: bytes
    ) -> None:
        async with Client(gateway.port) as client:
            await client.send(sent + b"a" * (65536 - len(sent)))
            with pytest.raises(TimeoutError):
                await client.answer(0.2)
            with contextlib.suppress(ConnectionError):
                await client.send_for(3, bytes(1 << 16))
            answer = await client.answer()
            assert answer.status == (431 if b"Host" in sent else 414)
            assert answer.json()["limit"] == 65536
            await client.ended(SOON)

    async def test_a_smaller_limit_holds(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_head_bytes": 4096})
        start = _get("/healthz")[:-2] + b"X: "
        for size, status in ((4096, 200), (4097, 431)):
            assert await _status(gateway, start + b"a" * (size - len(start) - 4) + b"\r\n\r\n") == status

    async def test_a_large_one_is_taken_and_goes_on(self, gateway: RunningGateway) -> None:
        request = head("/raw", content_length=5, cookie="a" * 40_000, content_type=TEXT) + b"hello"
        assert await _status(gateway, request) == 201

    @pytest.mark.parametrize(
        "target", ["/healthz", "/uploads/x", "/files/x/0/a", "/download/http://h/", "/nowhere", "/upload"]
    )
    async def test_another_coding_is_refused_on_every_path(self, gateway: RunningGateway, target: str) -> None:
        for method in ("GET", "POST"):
            gzip = head(target, method, transfer_encoding="gzip, chunked")
            old = head(target, method, transfer_encoding="chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
            assert (await _status(gateway, gzip), await _status(gateway, old)) == (501, 400)

    async def test_what_is_no_http_is_told_so_at_once(self, gateway: RunningGateway) -> None:
        for sent in (bytes.fromhex("16030100c8010000c40303") + bytes(60), b"GET /\r\n", b"SSH-2.0-x\r\n"):
            async with Client(gateway.port) as client:
                await client.send(sent)
                answer = await client.answer(5)
                assert (answer.status, answer.headers["connection"]) == (400, "close")
                assert await client.ended(5) == b""

    async def test_a_refusal_can_be_read_by_who_is_still_sending(self, gateway: RunningGateway) -> None:
        for _ in range(5):
            async with Client(gateway.port) as client:
                with contextlib.suppress(ConnectionError):
                    await client.send(head(content_length=len(BIG), cookie="a" * 70_000) + BIG)
                assert (await client.answer()).status == 431

    @pytest.mark.tracebacks  # of the destination, which is broken off
    async def test_broken_chunks_are_told_so_at_once_on_every_kind_of_route(self, gateway: RunningGateway) -> None:
        for target in ("/upload", "/proxy", "/raw", "/selftest/buffering"):
            async with Client(gateway.port) as client:
                await client.send(head(target, transfer_encoding="chunked", content_type=TEXT) + b"3\r\nabc\r\n")
                await asyncio.sleep(0.05)
                await client.send(b"3\r\nabcd\r\n" + _get("/healthz"))
                answer = await client.answer(5)
                assert (answer.status, answer.headers["connection"]) == (400, "close"), target
                assert await client.ended(SOON) == b""


SECRET = "hunter2"
_SECRETIVE = f"Authorization: {SECRET}\r\nCookie: {SECRET}\r\n".encode()


def _chunks(wire: str) -> bytes:
    return head(f"/upload?{SECRET}", transfer_encoding="chunked", authorization=SECRET) + wire.encode()


REFUSED: dict[str, tuple[bytes, int]] = {
    "a long field": (b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + SECRET.encode() * 10_000 + b"\r\n\r\n", 431),
    "many fields": (b"GET / HTTP/1.1\r\nHost: a\r\n" + _SECRETIVE * 150 + b"\r\n", 431),
    "a long target": (b"GET /" + SECRET.encode() * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a broken field": (b"GET / HTTP/1.1\r\nHost: a\r\n" + _SECRETIVE.replace(b":", b" :") + b"\r\n", 400),
    "a control character": (b"GET / HTTP/1.1\r\nHost: a\r\n" + _SECRETIVE.replace(b": ", b": \0") + b"\r\n", 400),
    "a folded field": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n " + SECRET.encode() + b"\r\n\r\n", 400),
    "LF": (b"GET / HTTP/1.1\nHost: a\n" + _SECRETIVE.replace(b"\r", b"") + b"\n", 400),
    "a doubled field": (b"GET / HTTP/1.1\r\nHost: a\r\n" + f"User-Agent: {SECRET}\r\n".encode() * 2 + b"\r\n", 400),
    "two Hosts": (f"GET / HTTP/1.1\r\nHost: a\r\nHost: {SECRET}\r\n\r\n".encode(), 400),
    "a Host that is none": (f"GET / HTTP/1.1\r\nHost: {SECRET}@a\r\n\r\n".encode(), 400),
    "a length": (f"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET}\r\n\r\n".encode(), 400),
    "a coding": (head("/upload", transfer_encoding=SECRET), 501),
    "a coding of HTTP/1.0": (head("/upload", transfer_encoding=SECRET).replace(b"P/1.1", b"P/1.0"), 400),
    "UTF-8 in the target": (f"GET /ü?{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a fragment": (f"GET /a#{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "user info": (f"GET http://a:{SECRET}@h/ HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a target that is no URL": (f"GET http://[{SECRET}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a method": (f"{SECRET} / HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a method in capitals": (f"{SECRET.upper()} / HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "CONNECT": (f"CONNECT {SECRET}:1 HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a version": (f"GET / {SECRET}\r\nHost: a\r\n\r\n".encode(), 400),
    "no request line": (f"{SECRET}\r\n\r\n".encode(), 400),
    "behind another request": (_get("/healthz") + f"{SECRET} {SECRET}\r\n\r\n".encode(), 400),
    "a websocket of old": (f"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key1: {SECRET}\r\n\r\n".encode(), 400),
    "a chunk's size": (_chunks(f"{SECRET}\r\n"), 400),
    "a chunk's extension": (_chunks(f"3;{SECRET}\0\r\n"), 400),
    "a chunk's data": (_chunks(f"3\r\n{SECRET}\r\n0\r\n\r\n"), 400),
    "a trailer": (_chunks(f"0\r\n{SECRET}\r\n\r\n"), 400),
    "a trailer's value": (_chunks(f"0\r\nX: {SECRET}\0\r\n\r\n"), 400),
    "broken chunks that nobody reads": (_chunks(f"{SECRET}\r\n").replace(b"/upload", b"/nowhere"), 404),
}


@pytest.mark.sockets
@pytest.mark.parametrize("extensions", ["", "1"], ids=["parser in C", "parser in Python"])
async def test_no_refusal_tells_a_secret(tmp_path: Path, extensions: str) -> None:
    with gateway_process(tmp_path, AIOHTTP_NO_EXTENSIONS=extensions, PYTHONUTF8="1") as process:
        answers = {}
        for what, (request, status) in REFUSED.items():
            for cut in (len(request), len(request) - 3):
                async with Client(process.port) as client:
                    with contextlib.suppress(ConnectionError):
                        await client.send(request[:cut])
                        await asyncio.sleep(0.01)
                        await client.send(request[cut:])
                    answer = await client.answer()
                    if what == "behind another request":
                        answer = await client.answer()
                answers[what] = answer
                assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), what
                assert "x-request-id" in answer.headers or what in (
                    "a Host that is none",
                    "broken chunks that nobody reads",
                )
                assert SECRET not in f"{answer.headers} {answer.body!r}".lower(), what
        metrics = await ask(process.port, "/metrics")
        assert SECRET not in metrics.body.decode()
        log = process.log.read_text()
    assert SECRET not in log.lower()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    refused = {line["request_id"]: line for line in lines if line["message"] == "request refused"}
    assert answers["a long field"].headers["x-request-id"] in refused
    assert refused[answers["a long field"].headers["x-request-id"]]["outcome"] == "head-too-large"
    warned = {line.get("outcome") for line in lines if line["level"] != "INFO"}
    assert warned == {"unsupported-transfer-coding"}  # a 501
    assert not any("traceback" in line for line in lines)


class TestAFinWithinABody:
    """An abort (G3)."""

    @pytest.mark.parametrize("target", ["/upload", "/proxy", "/raw"])
    @pytest.mark.parametrize("kind", ["length", "chunks"])
    async def test_at_every_offset_keeps_nothing_and_is_no_success(
        self, gateway: RunningGateway, target: str, kind: str
    ) -> None:
        whole = FORM.replace(b"/upload", target.encode())
        request = whole if kind == "length" else _in_chunks(BODY, target, size=40, content_type=FORM_TYPE)

        async def cut(size: int) -> bytes:
            async with Client(gateway.port) as client:
                await client.send(request[:size])
                client.finish()
                return await client.ended(SOON)

        sizes = range(request.index(b"\r\n\r\n") + 4, len(request))
        for start in range(0, len(sizes), 20):
            for answer in await asyncio.gather(*map(cut, sizes[start : start + 20])):
                assert not answer.startswith(b"HTTP/1.1 2")
        await eventually(lambda: not gateway.stored())

    async def test_in_the_middle_of_a_large_one_is_a_hang_up(
        self, gateway: RunningGateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        for request in (_raw(BIG), _in_chunks(BIG)):
            async with Client(gateway.port) as client:
                await client.send(request[: 3 << 20])
                client.finish()
                assert await client.ended(SOON) == b""
        await eventually(lambda: not gateway.stored())

        def lines() -> list[tuple[int, str]]:
            return [(line.levelno, line.getMessage()) for line in caplog.records if line.name == "gateway.uploads"]

        await eventually(lambda: len(lines()) == 2)
        assert lines() == [(logging.INFO, "upload client-gone")] * 2

    async def test_behind_chunks_that_are_broken_leaves_time_for_the_answer(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(head(transfer_encoding="chunked") + b"3\r\nabc\r\n")
            await asyncio.sleep(0.1)
            await client.send(b"zz\r\n")
            client.finish()
            assert (await client.answer()).status == 400
            assert await client.ended(SOON) == b""
        await eventually(lambda: not gateway.stored())


class TestNothingToAnswer:
    @pytest.mark.parametrize("sent", [b"", b"\r\n", b"POST /upl", _raw(b"x")[:-3]])
    async def test_a_fin_closes_the_connection_at_once(self, gateway: RunningGateway, sent: bytes) -> None:
        async with Client(gateway.port) as client:
            await client.send(sent)
            await asyncio.sleep(0.05)
            client.finish()
            assert await client.ended(SOON) == b""

    async def test_a_fin_closes_an_idle_connection_at_once(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            for _ in range(2):
                await client.send(_raw(b"hello"))
                assert (await client.answer()).status == 201
            client.finish()
            assert await client.ended(SOON) == b""

    async def test_a_fin_closes_a_connection_that_lingers_after_an_early_answer(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(_raw(BIG, content_encoding="gzip")[:1000])
            assert (await client.answer()).status == 415
            client.finish()
            assert await client.ended(SOON) == b""


class TestAClientThatQuits:
    """After its last byte: from here it looks as if it waited for its answer."""

    @pytest.mark.parametrize("target", ["/upload", "/proxy", "/raw"])
    async def test_has_its_upload_completed_and_leaves_one_line(
        self, gateway: RunningGateway, target: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with Client(gateway.port) as client:
            await client.send(_raw(BIG, target))
        uploads: list[logging.LogRecord] = []

        def ended() -> bool:
            uploads[:] = [line for line in caplog.records if hasattr(line, "outcome")]
            return bool(uploads)

        await eventually(ended)
        assert [(line.levelno, line.__dict__["outcome"]) for line in uploads] == [(logging.INFO, "ok")]
        assert len(_kept(gateway)) == (target == "/upload")
        assert all(line.exc_info is None and line.levelno == logging.INFO for line in caplog.records)

    @pytest.mark.tracebacks  # of the destination, which fails to write
    async def test_before_the_answer_that_it_is_streamed_does_not_undo_the_upload(
        self, start_gateway: StartGateway, start_destination: StartDestination, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)

        async def talkative(request: web.Request) -> web.StreamResponse:
            await request.read()
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(100):
                await response.write(bytes(65536))
                await asyncio.sleep(0.01)
            return response

        app = web.Application()
        app.router.add_post("/", talkative)
        gateway = await start_gateway(api=f"{(await start_destination(app)).url}/")
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/proxy"))
        lines: list[str] = []

        def written() -> bool:
            lines[:] = [line.getMessage() for line in caplog.records if line.name == "gateway.uploads"]
            return len(lines) == 2

        await eventually(written)
        assert sorted(lines) == ["nobody took the answer", "upload ok"]
        ours = [line for line in caplog.records if line.name.startswith("gateway")]  # the destination has its own
        assert all(line.exc_info is None and line.levelno == logging.INFO for line in ours)


@pytest.mark.parametrize(
    "written",
    [
        "https://user:hush@a.example/x%3Fsig=hush",
        "https:/a.example/hush",
        "https%3A%2F%2Fuser%3Ahush@a.example",
        "/a.example/hush",
        "https\uff1a//hush",
    ],
)
def test_an_answer_that_nobody_took_tells_nothing_of_a_remote_url(
    caplog: pytest.LogCaptureFixture, written: str
) -> None:
    caplog.set_level(logging.INFO)
    log_untaken(make_mocked_request("GET", f"/download/{written}?sig=hush"))
    (line,) = caplog.records
    assert line.__dict__["path"] == "/download/"
    assert "hush" not in str(line.__dict__)


class TestManyAtOnce:
    """40 of 5 bytes and 15 of 5 MiB, each on a route of each kind: all answered, all kept."""

    @pytest.mark.parametrize("config", ["", "server.workers = 2\n", 'server.event_loop = "uvloop"\n'])
    async def test_are_each_answered_and_kept(self, tmp_path: Path, slow_destination: Destination, config: str) -> None:
        if "uvloop" in config:
            pytest.importorskip("uvloop")
        config += "server.max_uploads = 0\nsinks.disk.fsync = false\n"
        config += f'sinks.api.type = "relay"\nsinks.api.url = "{slow_destination.url}"\n'
        config += '[[routes]]\npath = "/raw"\nkind = "opaque"\n[[routes.parts]]\nsinks = ["api"]\n'
        for target in ("/upload", "/proxy", "/convert", "/raw"):
            config += "" if target == "/raw" else _route(target)
        with gateway_process(tmp_path, config) as process:

            async def one(target: str, data: bytes, kind: str) -> Answer:
                async with Client(process.port) as client:
                    await client.send(_raw(data, target) if kind == "length" else _in_chunks(data, target))
                    client.finish()
                    answer = await client.answer(60)
                    assert await client.ended(SOON) == b""
                    return answer

            kept = 0
            for target in ("/upload", "/convert", "/proxy", "/raw"):
                for kind in ("length", "chunks"):
                    for data, count in ((b"hello", 40), (BIG, 15)):
                        answers = await asyncio.gather(*(one(target, data, kind) for _ in range(count)))
                        assert {answer.status for answer in answers} == {200 if target == "/convert" else 201}
                        if target == "/raw":
                            assert all(answer.json() == {"size": len(data)} for answer in answers)
                        kept += count if target in ("/upload", "/convert") else 0
            assert len(list((tmp_path / "uploads").glob("*/manifest.json"))) == kept
            assert not list((tmp_path / "uploads").glob(".*"))
            await eventually(lambda: not _established(process.port), 5)
        lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
        assert not [line for line in lines if "traceback" in line or line["level"] not in ("INFO",)]
        assert {line["outcome"] for line in lines if "outcome" in line} == {"ok"}


def _route(path: str) -> str:
    kinds = {"/upload": ("upload", '["disk"]'), "/proxy": ("relay", '["api"]'), "/convert": ("convert", '["disk"]')}
    kind, sinks = kinds[path]
    return f'[[routes]]\npath = "{path}"\nkind = "{kind}"\n[[routes.parts]]\nsinks = {sinks}\n'


def _established(port: int) -> bool:
    """Whether any connection to that port of this machine is not yet over on the gateway's side (Linux)."""
    ours = f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == ours and row[3] in ("01", "08") for row in rows)  # ESTABLISHED, CLOSE_WAIT


class TestClocks:
    """`head_seconds` and `keepalive_seconds`, each of them short where the other one must not count."""

    REQUEST = _get("/healthz")
    HALF = REQUEST[:20]

    @staticmethod
    async def _times(client: Client) -> tuple[bytes, float]:
        """What comes until the gateway ends the connection, and after how long."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        return await client.ended(SOON), loop.time() - began

    async def _is_refused_after(self, client: Client, least: float) -> None:
        received, seconds = await self._times(client)
        assert received.startswith(b"HTTP/1.0 408 ")
        assert b"/problems/stalled" in received
        assert least - 0.05 <= seconds < least + 5

    @pytest.mark.parametrize("answered", [0, 1], ids=["the first request", "another one"])
    async def test_half_a_head_is_answered_with_408(
        self, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, answered: int
    ) -> None:
        gateway = await start_gateway(server={"head_seconds": 0.4, "keepalive_seconds": 20})
        caplog.set_level(logging.INFO)
        async with Client(gateway.port) as client:
            for _ in range(answered):
                await client.send(self.REQUEST)
                assert (await client.answer()).status == 200
                await asyncio.sleep(0.6)  # the clock begins with the first byte
            await client.send(self.HALF)
            await self._is_refused_after(client, 0.4)
        (line,) = [record for record in caplog.records if record.message == "request refused"]
        assert vars(line)["outcome"] == "stalled"

    async def test_a_head_that_comes_bit_by_bit_has_no_longer(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"head_seconds": 0.4})

        async def dribble(client: Client) -> None:
            for place in range(len(self.REQUEST) - 1):
                await client.send(self.REQUEST[place : place + 1])
                await asyncio.sleep(0.1)

        async with Client(gateway.port) as client, asyncio.TaskGroup() as group:
            dribbling = group.create_task(dribble(client))
            await self._is_refused_after(client, 0.4)
            assert not dribbling.done()
            dribbling.cancel()

    async def test_a_client_that_sends_nothing_is_closed_without_a_word(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"head_seconds": 0.4, "keepalive_seconds": 20})
        async with Client(gateway.port) as client:
            received, seconds = await self._times(client)
        assert received == b""
        assert 0.35 <= seconds < 5

    @pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
    async def test_an_idle_connection_is_kept_for_its_own_time(self, start_gateway: StartGateway, sent: bytes) -> None:
        gateway = await start_gateway(server={"head_seconds": 0.2, "keepalive_seconds": 0.8})
        async with Client(gateway.port) as client:
            for _ in range(2):
                await client.send(self.REQUEST)
                assert (await client.answer()).status == 200
                await asyncio.sleep(0.4)
                await client.send(sent)  # RFC 9112 2.2: not the beginning of a head
            received, seconds = await self._times(client)
        assert received == b""
        assert 0.3 <= seconds < 5

    @pytest.mark.parametrize("answered", [0, 1], ids=["the first request", "another one"])
    async def test_a_head_may_take_longer_than_an_idle_connection(
        self, start_gateway: StartGateway, answered: int
    ) -> None:
        gateway = await start_gateway(server={"head_seconds": 20, "keepalive_seconds": 0.3})
        async with Client(gateway.port) as client:
            for _ in range(answered):
                await client.send(self.REQUEST)
                assert (await client.answer()).status == 200
            await client.send(self.HALF)
            await asyncio.sleep(0.6)
            await client.send(self.REQUEST[20:])
            assert (await client.answer()).status == 200
            received, seconds = await self._times(client)
        assert received == b""
        assert 0.25 <= seconds < 5

    async def test_half_a_head_behind_a_request_has_its_time_from_the_answer_on(
        self, start_gateway: StartGateway, slow_destination: Destination
    ) -> None:
        gateway = await start_gateway(
            api=f"{slow_destination.url}/in", routes=OPAQUE, server={"head_seconds": 0.4, "keepalive_seconds": 0.2}
        )
        async with Client(gateway.port) as client:
            await client.send(_raw(b"hello", "/raw") + self.HALF)
            assert (await client.answer()).status == 201  # after half a second
            await self._is_refused_after(client, 0.4)

    async def test_neither_counts_while_a_body_comes(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"head_seconds": 0.2, "keepalive_seconds": 0.2})
        request = _raw(b"hello")
        async with Client(gateway.port) as client:
            await client.send(request[:-2])
            await asyncio.sleep(0.5)
            await client.send(request[-2:])
            assert (await client.answer()).status == 201
