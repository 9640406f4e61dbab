"""Odd heads of answers over real sockets: in one segment and byte by byte, on kept connections and new ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.config.memory import memory_bound_bytes
from gateway.config.settings import Settings
from gateway.http.answering import AnswerConnector, AnswerHandler
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import FORM_TYPE, Client, eventually, file, form, head
from tests.support.processes import gateway_process

BODY = form(file(b"hello"))
HOLDING = 60
"""Uploads at once: so many that what each holds is more than what the interpreter does with memory meanwhile."""
CONNECTIONS_BYTES = 96 << 10
"""What an upload with small heads was measured to take on top: two connections, and the tasks between them."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"


class RawDestination:
    """Reads whole requests, and sends exactly the bytes of `answer`; its connections stay open."""

    def __init__(self) -> None:
        self.answer = OK
        self.byte_by_byte = False
        self.connections = 0
        self.heads: list[bytes] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._read_request(reader, writer)
                pieces = [bytes([one]) for one in self.answer] if self.byte_by_byte else [self.answer]
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    if self.byte_by_byte:
                        await asyncio.sleep(0)
        writer.close()

    async def _read_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(request)
        lower = request.lower()
        if b"expect: 100-continue" in lower:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding: chunked" in lower:
            while (line := await reader.readuntil(b"\r\n")) != b"0\r\n":
                await reader.readexactly(int(line, 16) + 2)
            await reader.readexactly(2)
        elif b"content-length:" in lower:
            await reader.readexactly(int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]))


@pytest.fixture
async def destination() -> AsyncIterator[RawDestination]:
    one = RawDestination()
    await one.start()
    yield one
    await one.stop()


Started = Callable[..., Awaitable[RunningGateway]]


@pytest.fixture
def started(start_gateway: StartGateway, destination: RawDestination) -> Started:
    async def start(*, keepalive_seconds: float = 0, **api: Any) -> RunningGateway:
        url = destination.url
        sinks = {"api": {"url": url, "keepalive_seconds": keepalive_seconds, **api}}
        sinks["parts"] = {"type": "relay", "url": url, "per": "part", "keepalive_seconds": keepalive_seconds}
        routes = [
            {"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]},
            {"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]},
            {"path": "/both", "kind": "upload", "parts": [{"sinks": ["disk", "api"]}]},
            {"path": "/parts", "kind": "upload", "parts": [{"sinks": ["parts"]}]},
        ]
        return await start_gateway(
            sinks=sinks,
            routes=routes,
            download={"allow": [f"{url}/*"], "allow_private": ["127.0.0.0/8"]},
        )

    return start


@dataclass
class Got:
    """An answer of the gateway, byte for byte."""

    lines: list[bytes]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.lines[0].split(b" ")[1])

    def field(self, name: str) -> bytes | None:
        found = [line for line in self.lines if line.lower().startswith(name.encode() + b":")]
        return found[0].partition(b":")[2].strip() if found else None

    def json(self) -> Any:
        return json.loads(self.body)


async def sent(gateway: RunningGateway, path: str, method: str = "POST", *fields: bytes, body: bytes = BODY) -> Got:
    start = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close".encode()
    if method == "POST":
        fields = (*fields, b"Content-Length: %d" % len(body))
        if not any(field.startswith(b"Content-Type") for field in fields):
            fields = (*fields, b"Content-Type: " + FORM_TYPE.encode())
    async with Client(gateway.port) as client:
        await client.send(b"\r\n".join([start, *fields, b"", b""]) + (body if method == "POST" else b""))
        first, _, rest = (await client.ended()).partition(b"\r\n\r\n")
    got = Got(first.split(b"\r\n"), rest)
    if got.field("transfer-encoding") == b"chunked":
        got.body = b"".join(rest.split(b"\r\n")[1:-2:2])
    return got


async def fetched(gateway: RunningGateway, destination: RawDestination) -> Got:
    return await sent(gateway, f"/download/{destination.url}/a", "GET")


KEPT = pytest.mark.parametrize("keepalive_seconds", [0, 30], ids=["new", "kept"])
PIECES = pytest.mark.parametrize("byte_by_byte", [False, True], ids=["one segment", "byte by byte"])


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert [record for record in caplog.records if record.exc_info] == []


async def test_connections_are_ours() -> None:
    """aiohttp's way to another protocol is no public one: if it changes, this fails first."""
    async with AnswerConnector() as connector:
        assert isinstance(connector._factory(), AnswerHandler)


# -- what has no body, and what comes behind an answer

STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BEHIND = {
    "204 that is chunked": (b"HTTP/1.1 204 No Content\r\n" + CHUNKED, 204, b""),
    "204 with a last chunk": (b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"0\r\n\r\n", 204, b""),
    "204 with a body": (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}", 204, b""),
    "204 and a stray answer": (b"HTTP/1.1 204 No Content\r\n\r\n" + STRAY, 204, b""),
    "304 with a body": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", 304, b""),
    "304 that is chunked": (b"HTTP/1.1 304 Not Modified\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", 304, b""),
    "201 and stray bytes": (CREATED + b"stray", 201, b"{}"),
    "201 and a stray line": (CREATED + b"\r\n", 201, b"{}"),
    "201 and a stray answer": (CREATED + STRAY, 201, b"{}"),
    "chunked 200 and a stray answer": (
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n" + STRAY,
        200,
        b"{}",
    ),
    "interim answers": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 500 + CREATED, 201, b"{}"),
    "an empty line ahead": (b"\r\n\r\n" + CREATED, 201, b"{}"),
}


@KEPT
@PIECES
@pytest.mark.parametrize("case", BEHIND)
async def test_what_comes_behind_an_answer_is_nobodys(
    started: Started, destination: RawDestination, case: str, byte_by_byte: bool, keepalive_seconds: float
) -> None:
    gateway = await started(keepalive_seconds=keepalive_seconds)
    answer, status, body = BEHIND[case]
    for path in ("/proxy", "/raw"):
        destination.answer, destination.byte_by_byte = answer, byte_by_byte
        got = await sent(gateway, path)
        assert (got.status, got.body) == (status, body)
        if status in (204, 304):
            assert got.field("transfer-encoding") is None
            assert got.field("content-length") is None or status == 304
        destination.answer, destination.byte_by_byte = OK, False
        for _ in range(2):
            following = await sent(gateway, path)
            assert (following.status, following.body) == (200, b"next")


async def test_a_kept_connection_is_used_again_after_a_clean_answer_and_only_then(
    started: Started, destination: RawDestination
) -> None:
    gateway = await started(keepalive_seconds=30)
    for connections, answer in [(1, OK), (1, OK), (1, BEHIND["204 with a body"][0]), (2, OK), (2, OK)]:
        destination.answer = answer
        await sent(gateway, "/proxy")
        assert destination.connections == connections


# -- large heads

LARGE = {
    "a cookie of 9000 bytes": [b"Set-Cookie: s=" + b"a" * 9000],
    "a policy of 60 KiB": [b"Content-Security-Policy: default-src " + b"h" * (60 << 10)],
    "140 fields": [b"X-Debug-%d: 1" % number for number in range(140)],
    "500 fields": [b"X-Debug-%d: 1" % number for number in range(500)],
    "240 KiB in 60 fields": [b"X-Debug-%d: " % number + b"a" * 4080 for number in range(60)],
}
TOO_LARGE = {
    "a field of 65 KiB": [b"X-A: " + b"a" * (65 << 10)],
    "a field of 1 MiB": [b"X-A: " + b"a" * (1 << 20)],
    "a name of 65 KiB": [b"X" * (65 << 10) + b": a"],
    "600 fields": [b"X-Debug-%d: 1" % number for number in range(600)],
    "260 KiB in 65 fields": [b"X-Debug-%d: " % number + b"a" * 4080 for number in range(66)],
}


def answer_with(*fields: bytes, first: bytes = b"HTTP/1.1 201 Created") -> bytes:
    return b"\r\n".join([first, *fields, b"Content-Length: 2", b"", b"{}"])


@KEPT
@pytest.mark.parametrize("case", LARGE)
async def test_a_large_head_of_an_answer_is_taken(
    started: Started, destination: RawDestination, case: str, keepalive_seconds: float
) -> None:
    gateway = await started(keepalive_seconds=keepalive_seconds)
    destination.answer = answer_with(*LARGE[case])
    for path in ("/proxy", "/raw", "/store", "/both", "/parts"):
        got = await sent(gateway, path)
        assert got.status == 201
        if path in ("/proxy", "/raw"):
            assert set(LARGE[case]) <= set(got.lines)
    assert (await fetched(gateway, destination)).status == 201


@pytest.mark.parametrize(
    ("case", "byte_by_byte"),
    [(case, slow) for case in TOO_LARGE for slow in (False, True) if not (slow and case == "a field of 1 MiB")],
)  # byte by byte that one would be the same as one of 260 KiB, and slower
async def test_a_head_beyond_the_limits_is_a_502_and_the_next_upload_is_right(
    started: Started, destination: RawDestination, case: str, byte_by_byte: bool
) -> None:
    gateway = await started(keepalive_seconds=30)
    for path in ("/proxy", "/raw", "/store", "/parts"):
        destination.answer, destination.byte_by_byte = answer_with(*TOO_LARGE[case]), byte_by_byte and path == "/proxy"
        assert (await sent(gateway, path)).status == 502
        destination.answer, destination.byte_by_byte = OK, False
        assert (await sent(gateway, path)).status in (200, 201)
    destination.answer = answer_with(*TOO_LARGE[case])
    assert (await fetched(gateway, destination)).status == 502


async def test_a_health_check_takes_large_heads_too(
    started: Started, destination: RawDestination, caplog: pytest.LogCaptureFixture
) -> None:
    destination.answer = answer_with(*LARGE["a cookie of 9000 bytes"], *LARGE["140 fields"])
    gateway = await started(health_path="/health", health_seconds=0.05)
    await eventually(lambda: len(destination.heads) > 3)
    (one,) = gateway.services.sinks["api"].sender.destinations.all  # type: ignore[attr-defined]
    assert not one.down
    assert not [record for record in caplog.records if record.name == "gateway.destinations"]


# -- bytes that are no text


@KEPT
@PIECES
@pytest.mark.parametrize(
    "field",
    [
        b"X-A: a\x01b",
        b"X-A: a\x7fb",
        b'ETag: "a\x1bb"',
        b"X-A: a\rb",
        b"X-A: a\x00b",
        b"Location: /\x0bx",
        b"Set-Cookie: a=\x02",
    ],
)
async def test_a_field_with_control_characters_goes_and_the_answer_stays(
    started: Started, destination: RawDestination, field: bytes, byte_by_byte: bool, keepalive_seconds: float
) -> None:
    gateway = await started(keepalive_seconds=keepalive_seconds)
    destination.byte_by_byte = byte_by_byte
    destination.answer = answer_with(b"X-Before: 1", field, b"X-After: 2")
    for path in ("/proxy", "/raw", "/store", "/parts"):
        got = await sent(gateway, path)
        assert got.status == 201
        if path in ("/proxy", "/raw"):
            assert (got.body, got.field("x-before"), got.field("x-after")) == (b"{}", b"1", b"2")
            assert got.field(field.partition(b":")[0].decode().lower()) is None
    assert (await fetched(gateway, destination)).status == 201


@pytest.mark.parametrize("reason", [b"caf\xe9 \x01x", b"O\x7fK", b"a\rb"])
async def test_a_reason_with_control_characters_goes(
    started: Started, destination: RawDestination, reason: bytes
) -> None:
    gateway = await started()
    destination.answer = answer_with(first=b"HTTP/1.1 201 " + reason)
    for path in ("/proxy", "/raw"):
        got = await sent(gateway, path)
        assert (got.status, got.lines[0]) == (201, b"HTTP/1.1 201 ")


def same_field(line: bytes, field: bytes) -> bool:
    """Names may be written in another case; a list may have grown."""
    name, _, value = field.partition(b": ")
    return line.lower().startswith(name.lower() + b": ") and line[len(name) + 2 :].startswith(value)


OBS_TEXT = [
    b'Content-Disposition: attachment; filename="caf\xe9.pdf"',
    'Content-Disposition: attachment; filename="Schr\u00f6dinger.pdf"'.encode(),
    b"Content-Type: text/plain; x=\xff",
    b'ETag: "\x80"',
]


@pytest.mark.parametrize(
    "field", [*OBS_TEXT, b"Set-Cookie: a=\xe9\xe9", b"Location: /caf\xe9", b"X-A: \xc3(", b"Via: 1.1 \xe9"]
)
async def test_obs_text_of_an_answer_passes_through(
    started: Started, destination: RawDestination, field: bytes
) -> None:
    gateway = await started()
    destination.answer = answer_with(field, first=b"HTTP/1.1 201 caf\xe9")
    for path in ("/proxy", "/raw"):
        lines = (await sent(gateway, path)).lines
        assert lines[0] == b"HTTP/1.1 201 caf\xe9"
        assert [line for line in lines if same_field(line, field)]
    if field in OBS_TEXT:
        assert [line for line in (await fetched(gateway, destination)).lines if same_field(line, field)]


@pytest.mark.parametrize(
    "field",
    [
        b"Cookie: a=caf\xe9; b=2",
        b'X-A: "\xe9\xff\x80"',
        'X-A: "Schr\u00f6dinger"'.encode(),
        b"User-Agent: caf\xe9",
        b'Content-Disposition: attachment; filename="caf\xe9.pdf"',
    ],
)
async def test_obs_text_of_a_request_passes_through(
    started: Started, destination: RawDestination, field: bytes
) -> None:
    gateway = await started(forward_cookies=True)
    for path in ("/proxy", "/raw"):
        if path == "/proxy" and field.startswith(b"Content-"):
            continue  # it is about the body, which is another one there
        assert (await sent(gateway, path, "POST", field)).status == 200
        assert field in destination.heads[-1].split(b"\r\n")


@pytest.mark.parametrize(
    "content_type", [b"text/plain; charset=\xe9", b'a/b;x="\xc3\xb6" ;  y=\xff', b"nonsense \x80", b"TEXT/plain"]
)
async def test_an_opaque_route_never_alters_a_content_type(
    started: Started, destination: RawDestination, content_type: bytes
) -> None:
    gateway = await started()
    assert (await sent(gateway, "/raw", "POST", b"Content-Type: " + content_type)).status == 200
    assert b"Content-Type: " + content_type in destination.heads[-1].split(b"\r\n")


# -- what is no answer

INVALID = {
    "a status of 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\n{}",
    "a status of 999": b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\n{}",
    "a status of 099": b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\n{}",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}",
    "gzip and chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip alone": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    "two codings in two fields": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n" + CHUNKED + b"0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "a length with a control character": b"HTTP/1.1 200 OK\r\nContent-Length: 2\x01\r\n\r\n{}",
    "a length beside a coding": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + CHUNKED + b"0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@PIECES
@pytest.mark.parametrize("case", INVALID)
async def test_an_invalid_answer_to_a_whole_body_is_a_502_that_says_so_and_the_next_upload_is_right(
    started: Started, destination: RawDestination, case: str, byte_by_byte: bool
) -> None:
    gateway = await started(keepalive_seconds=30)
    for path in ("/proxy", "/raw", "/store", "/both"):
        destination.answer, destination.byte_by_byte = INVALID[case], byte_by_byte
        got = await sent(gateway, path)
        problem = got.json()
        assert (got.status, problem["type"]) == (502, "/problems/sink-refused")
        assert problem["sent_bytes"] >= len(b"hello")
        assert "may have acted" in problem["detail"]
        assert problem["may_have_acted"] is True
        destination.answer, destination.byte_by_byte = OK, False
        following = await sent(gateway, path)
        assert following.status in (200, 201)
    assert len([one for one in gateway.stored() if one.is_dir()]) == 1  # by the second one to /store


async def test_an_invalid_answer_to_half_a_body_does_not_say_that_it_was_acted_upon(
    started: Started, destination: RawDestination
) -> None:
    gateway = await started()

    async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    destination._read_request = answer_at_once  # type: ignore[method-assign]
    destination.answer = INVALID["a status of 600"]
    async with Client(gateway.port) as client:
        await client.send(head("/proxy", content_length=len(BODY)) + BODY[:-5])
        problem = (await client.answer()).json()
    assert problem["status"] == 502
    assert "sent_bytes" in problem
    assert "acted" not in str(problem)


async def test_a_per_part_request_says_it_too(started: Started, destination: RawDestination) -> None:
    gateway = await started()
    destination.answer = INVALID["a status of 999"]
    problem = (await sent(gateway, "/parts")).json()
    assert "may have acted" in str(problem)


@pytest.mark.sockets
@pytest.mark.parametrize(("fields", "size"), [(500, 500), (4, 60_000)], ids=["many", "long"])
async def test_the_largest_heads_that_are_held_keep_within_what_the_memory_bound_says_of_them(
    destination: RawDestination, tmp_path: Path, fields: int, size: int
) -> None:
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"a" * size) for number in range(fields))
    config = f'[sinks.api]\nurl = "{destination.url}"\nmax_connections = 0'
    with gateway_process(tmp_path, config, GATEWAY_SERVER__DRAIN_SECONDS="1") as process:
        async with contextlib.AsyncExitStack() as stack:

            async def hold() -> None:
                """An upload whose answer never ends; of the body there is not more than a buffer."""
                client = await stack.enter_async_context(Client(process.port))
                await client.send(head("/proxy", content_length=len(BODY)) + BODY)

            async def answered(count: int) -> None:
                await eventually(lambda: len(destination.heads) == count)
                await asyncio.sleep(1)  # for the gateway to read what was sent

            destination.answer = b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 10\r\n\r\n12345"
            await hold()
            await answered(1)
            before = process.peak_rss_bytes()
            for _ in range(HOLDING):
                await hold()
            await answered(1 + HOLDING)
            grown = (process.peak_rss_bytes() - before) / HOLDING
    document = {"routes": [{"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]}]}
    _, bounds = memory_bound_bytes(Settings.model_validate(document))
    # What of it is no new page of memory was there before: some are used again.
    assert 0.9 * fields * size < grown < bounds["heads of answers"] + CONNECTIONS_BYTES
