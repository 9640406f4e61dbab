"""Downloads over real sockets: what streams through, what is refused without a packet, and how each failure ends."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.typedefs import Handler

from gateway.downloads.remote import Downloader
from gateway.errors import GatewayError
from gateway.http.problems import problem
from tests.conftest import Destination, StartDestination

LOOPBACK = ["127.0.0.0/8"]
MIB = 1 << 20
DATA = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever goes wrong there is no reason for a traceback here."""
    caplog.set_level(logging.INFO)
    yield
    records = [record for record in caplog.get_records("call") if not record.message.startswith("download sink-")]
    loud = [record.message for record in records if record.levelno > logging.INFO or record.exc_info]
    assert loud == []


# -- both sides


class Names(AbstractResolver):
    """A resolver that knows what it was told."""

    def __init__(self, **addresses: Sequence[str]) -> None:
        self._addresses = {name.replace("_", "."): found for name, found in addresses.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host not in self._addresses:
            raise OSError(None, "no such name")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._addresses[host]
        ]

    async def close(self) -> None:
        pass


class StuckNames(Names):
    """A resolver that never answers."""

    async def resolve(self, *arguments: Any, **more: Any) -> list[ResolveResult]:
        await asyncio.Event().wait()
        raise AssertionError


Start = Callable[..., Awaitable[Destination]]


@pytest.fixture
async def start(start_destination: StartDestination) -> Start:
    """`await start(allow=[...], allow_private=[...], ...)`: a server whose only business is downloads."""

    async def start(**settings: Any) -> Destination:
        downloader = Downloader(**settings)

        async def running(app: web.Application) -> AsyncIterator[None]:
            async with downloader:
                yield

        app = web.Application(middlewares=[_problems], handler_args={"handler_cancellation": False})
        app.cleanup_ctx.append(running)

        async def respond(request: web.Request) -> web.StreamResponse:
            return await downloader.respond(request)

        app.router.add_route("*", "/download/{url:(?s:.*)}", respond)  # a `.` alone does not match %0a
        return await start_destination(app)

    return start


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except GatewayError as error:
        return problem(error)


class Upstream:
    """A server at `url` that answers with `handle`."""

    def __init__(self, destination: Destination) -> None:
        self.url, self.port = destination.url, destination.port


StartUpstream = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[Upstream]]


@pytest.fixture
async def upstream(start_destination: StartDestination) -> StartUpstream:
    async def start(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Upstream:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        return Upstream(await start_destination(app))

    return start


async def _file(request: web.Request) -> web.StreamResponse:
    return web.Response(body=DATA, content_type="application/x-test", headers={"ETag": '"e"'})


class Listener:
    """A port at which connections are counted, and answered with `answer`, piece by piece."""

    def __init__(self, *answer: bytes, hold: bool = False) -> None:
        self._answer = answer
        self._hold = hold
        self.accepted = 0
        self.requests: list[bytes] = []
        self.gone = asyncio.Event()
        """Set when the other side has closed a connection that was held."""

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, host, 0)
        async with server:
            port: int = server.sockets[0].getsockname()[1]
            yield port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            for number, piece in enumerate(self._answer):
                if number:
                    await asyncio.sleep(0.2)
                writer.write(piece)
            if self._hold:
                await reader.read()
                self.gone.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()


class Got:
    """An answer as it came over the wire."""

    def __init__(self, received: bytes) -> None:
        head, _, self.rest = received.partition(b"\r\n\r\n")
        status, *lines = head.decode(errors="surrogateescape").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> bytes:
        """The body. Fails if it is not whole."""
        if self.headers.get("transfer-encoding") == "chunked":
            body, rest = b"", self.rest
            while True:
                size, _, rest = rest.partition(b"\r\n")
                if int(size, 16) == 0:
                    assert rest == b"\r\n"
                    return body
                body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        assert len(self.rest) == int(self.headers.get("content-length", 0))
        return self.rest


async def _connect(
    gateway: Destination, target: str, *, method: str = "GET", version: str = "1.1", **headers: str
) -> Any:
    """A connection of our own: no client normalises what is asked for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=MIB)
    lines = [f"{method} /download/{target} HTTP/{version}", "Host: gateway", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    return reader, writer


async def _get(gateway: Destination, target: str, **options: str) -> Got:
    """The answer, to its end: ConnectionResetError where that is a RST."""
    reader, writer = await _connect(gateway, target, **options)
    try:
        async with asyncio.timeout(30):
            return Got(await reader.read())
    finally:
        writer.close()


async def _broken(gateway: Destination, target: str, **options: str) -> bytes:
    """What came before the connection broke; it must break."""
    reader, writer = await _connect(gateway, target, **options)
    received = b""

    async def receive() -> None:
        nonlocal received
        while data := await reader.read(65536):
            received += data

    try:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(receive(), 30)
    finally:
        writer.close()
    assert not received.endswith(b"0\r\n\r\n")
    return received


def _lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "gateway.download"]


async def _eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the other side is a server that signals nothing
            await asyncio.sleep(0.01)


# -- what streams through


async def test_a_listed_file_streams_through(start: Start, upstream: StartUpstream) -> None:
    there = await upstream(_file)
    gateway = await start(allow=[f"{there.url}/files/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/files/a.bin")
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["content-type"] == "application/x-test"
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["etag"] == '"e"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "sandbox"


@pytest.mark.parametrize("encoded", [False, True])
async def test_the_target_reaches_the_server_as_it_was_meant(
    start: Start, upstream: StartUpstream, encoded: bool
) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    there = await upstream(echo)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    url = f"{there.url}/a//b%20c?url=http://x/../y&d=%2F%26&e"
    got = await _get(gateway, quote(url, safe="") if encoded else url)
    assert got.body.decode() == "/a//b%20c?url=http://x/../y&d=%2F%26&e"


async def test_a_head_has_the_headers_and_no_body(start: Start, upstream: StartUpstream) -> None:
    methods: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        methods.append(request.method)
        return await _file(request)

    there = await upstream(note)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/a", method="HEAD")
    assert (got.status, got.headers["content-length"], got.rest) == (200, str(len(DATA)), b"")
    assert methods == ["HEAD"]


async def test_ranges_and_conditions_go_along_and_nothing_else_of_the_client(
    start: Start, upstream: StartUpstream
) -> None:
    seen: dict[str, str] = {}

    async def note(request: web.Request) -> web.Response:
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return web.Response()

    there = await upstream(note)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    asked = {
        "range": "bytes=1-2",
        "if-range": '"e"',
        "if-match": '"f"',
        "if-none-match": '"g", "h"',
        "if-modified-since": "Sun, 06 Nov 1994 08:49:37 GMT",
        "if-unmodified-since": "Sun, 06 Nov 1994 08:49:38 GMT",
        "accept": "text/html",
    }
    dropped = {
        "Cookie": "a=b",
        "Authorization": "Bearer x",
        "Referer": "http://x/",
        "Origin": "http://x",
        "X-Forwarded-For": "1.2.3.4",
        "User-Agent": "somebody",
        "Accept-Encoding": "gzip",
        "X-Any": "1",
    }
    await _get(gateway, f"{there.url}/a", **asked, **dropped)
    assert seen.pop("via") == "1.1 gateway"
    assert seen.pop("user-agent").startswith("multipart-relay-gateway/")
    assert seen.pop("host") == there.url.removeprefix("http://")
    assert seen.pop("accept-encoding") == "identity"
    seen.pop("connection", None)
    assert seen == asked


async def test_a_range_comes_back_as_a_range(start: Start, upstream: StartUpstream) -> None:
    async def part(request: web.Request) -> web.Response:
        assert request.headers["Range"] == "bytes=2-4"
        headers = {"Content-Range": "bytes 2-4/10", "Accept-Ranges": "bytes"}
        return web.Response(status=206, body=b"cde", headers=headers)

    there = await upstream(part)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/a", Range="bytes=2-4")
    assert (got.status, got.body, got.headers["content-range"]) == (206, b"cde", "bytes 2-4/10")
    assert got.headers["accept-ranges"] == "bytes"


async def test_only_listed_headers_come_back(start: Start) -> None:
    kept = {
        "Content-Type": "text/html",
        "ETag": 'W/"e"',
        "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Expires": "0",
        "Cache-Control": "max-age=1",
        "Content-Language": "de",
        "Content-Disposition": "attachment; filename=é",
        "Vary": "Accept",
        "Retry-After": "5",
    }
    dropped = {
        "Set-Cookie": "a=b",
        "Location": "http://x/",
        "Content-Security-Policy": "default-src *",
        "Access-Control-Allow-Origin": "*",
        "Strict-Transport-Security": "max-age=1",
        "Refresh": "0;url=http://x/",
        "Link": "</x>; rel=preload",
        "WWW-Authenticate": "Basic",
        "Clear-Site-Data": "*",
        "Alt-Svc": "h3",
        "Keep-Alive": "timeout=5",
        "X-Any": "1",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**kept, **dropped}.items())
    listener = Listener(f"HTTP/1.1 200 Fine\r\n{lines}Content-Length: 2\r\n\r\nok".encode())
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    assert got.body == b"ok"
    for ours in ("date", "server", "connection", "content-length", "x-content-type-options"):
        del got.headers[ours]
    assert got.headers.pop("content-security-policy") == "sandbox"
    assert got.headers == {name.lower(): value for name, value in kept.items()} | {"via": "1.1 gateway"}


@pytest.mark.parametrize("status", [200, 203, 206, 300, 304, 400, 401, 403, 404, 410, 416, 429, 500, 503])
async def test_the_status_passes_through(start: Start, upstream: StartUpstream, status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"ETag": '"e"'})

    there = await upstream(answer)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/a", If_None_Match='"e"')
    assert (got.status, got.headers["etag"], got.body) == (status, '"e"', b"")


async def test_an_encoded_body_passes_as_it_is(start: Start, upstream: StartUpstream) -> None:
    packed = gzip.compress(b"a" * 100_000)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    there = await upstream(answer)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/a")
    assert (got.headers["content-encoding"], got.body) == ("gzip", packed)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
        b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 5\r\nETag: \xff\r\n\r\nabcde",
    ],
)
async def test_every_framing_arrives_whole(start: Start, answer: bytes) -> None:
    async with Listener(answer).listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    assert (got.status, got.body) == (200, b"abcde")


# -- what is refused, without a packet

_HERE = Names(
    inside_test=["127.0.0.1"],
    inside6_test=["::1"],
    mapped_test=["::ffff:127.0.0.1"],
    both_test=["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254"],
    nat64_test=["64:ff9b::7f00:1"],
    zero_test=["0.0.0.0"],
    scoped_test=["fe80::1%lo"],
    localhost=["127.0.0.1", "::1"],
)

_HOSTILE = [
    *(
        "http://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/a?b",
        "http://127.1.2.3:{port}/",
        "http://127.0.0.1.:{port}/",
    ),
    *(
        "http://localhost:{port}/",
        "http://LOCALHOST.:{port}/",
        "http://inside.test:{port}/",
        "http://INSIDE.test:{port}/",
    ),
    *(
        "http://inside6.test:{port}/",
        "http://mapped.test:{port}/",
        "http://both.test:{port}/",
        "http://nat64.test:{port}/",
    ),
    *(
        "http://zero.test:{port}/",
        "http://scoped.test:{port}/",
        "https://inside.test:{port}/",
        "https://127.0.0.1:{port}/",
    ),
    *("http://127.1:{port}/", "http://127.0.1:{port}/", "http://2130706433:{port}/", "http://0x7f000001:{port}/"),
    *("http://0x7f.0.0.1:{port}/", "http://0177.0.0.1:{port}/", "http://017700000001:{port}/", "http://0x7f.1:{port}/"),
    *("http://0.0.0.0:{port}/", "http://0:{port}/", "http://0.0.0.1:{port}/", "http://127.000.000.001:{port}/"),
    *(
        "http://[::1]:{port}/",
        "http://[::]:{port}/",
        "http://[0:0:0:0:0:0:0:1]:{port}/",
        "http://[::127.0.0.1]:{port}/",
    ),
    *("http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::ffff:0:127.0.0.1]:{port}/"),
    *("http://[64:ff9b::7f00:1]:{port}/", "http://[64:ff9b:1::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/"),
    *("http://[2001:0:7f00:1::]:{port}/", "http://[fe80::1]:{port}/", "http://[fe80::1%25lo]:{port}/"),
    *(
        "http://[fd00:ec2::254]/",
        "http://[fc00::1]/",
        "http://[ff02::1]/",
        "http://[fec0::1]/",
        "http://[2001:db8::1]/",
    ),
    *("http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/", "http://192.0.0.192/", "http://10.0.0.1/"),
    *("http://172.16.0.1/", "http://192.168.0.1/", "http://198.18.0.1/", "http://192.0.2.1/", "http://224.0.0.1/"),
    *("http://255.255.255.255/", "http://240.0.0.1/", "http://168.63.129.16/"),
    *(
        "http://user@127.0.0.1:{port}/",
        "http://example.org@127.0.0.1:{port}/",
        "http://example.org:80@127.0.0.1:{port}/",
    ),
    *("http://127.0.0.1:{port}#@example.org/", "http://example.org\\@127.0.0.1:{port}/", "http:\\\\127.0.0.1:{port}/"),
    *(
        "http:/127.0.0.1:{port}/",
        "http:127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}/",
        "http:///127.0.0.1/",
    ),
    *("ftp://127.0.0.1:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_GET", "unix:/run/x.sock", ""),
    *("http%3A%2F%2F127.0.0.1:{port}/", "http%253A%252F%252F127.0.0.1:{port}/", "%68ttp://inside.test:{port}/"),
    *(
        "http://%31%32%37.0.0.1:{port}/",
        "http://127.0.0.1%2f:{port}/",
        "http%3A%2F%2F%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1:{port}",
    ),
    *(
        "http%3A%2F%2Finside%E3%80%82test:{port}/",
        "http%3A%2F%2F%E2%93%9Bocalhost:{port}/",
        "http://127.0.0.1:{port}/%2e%2e/",
    ),
    *(
        "http%3A%2F%2F127.0.0.1:{port}/%0d%0aX:%20y",
        "http://xn--a:{port}/",
        "http://127.0.0.1:0{port}/",
        "http://[::1%25lo]:{port}/",
    ),
]


async def test_hostile_urls_are_refused_without_a_packet(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    dialled: list[Any] = []
    connect = loop.sock_connect

    async def noting(sock: socket.socket, address: Any) -> None:
        dialled.append(address)
        await connect(sock, address)

    listener = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listener.listening())
        allow = [f"{scheme}://*{at}/*" for scheme in ("http", "https") for at in ("", f":{port}")]
        gateway = await start(allow=allow, resolver=_HERE)
        monkeypatch.setattr(loop, "sock_connect", noting)
        statuses = {url: (await _get(gateway, url.format(port=port))).status for url in _HOSTILE}
    assert {url: status for url, status in statuses.items() if status != 403} == {}
    assert len(statuses) >= 80
    assert listener.accepted == 0
    assert set(dialled) == {("127.0.0.1", gateway.port)}, "only we have dialled, and only the gateway"


async def test_the_listener_would_have_noticed(start: Start) -> None:
    listener = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://*:{port}/*"], allow_private=LOOPBACK, resolver=_HERE)
        for url in (f"http://127.0.0.1:{port}/", f"http://inside.test:{port}/", f"http://localhost:{port}/"):
            assert (await _get(gateway, url)).body == b"secret"
    assert listener.accepted == 3


async def test_names_of_this_machine_are_refused_with_its_own_resolver(start: Start) -> None:
    listener = Listener()
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://*:{port}/*"])
        for name in ("localhost", socket.gethostname()):
            assert (await _get(gateway, f"http://{name}:{port}/")).status in (403, 503)
        assert (await _get(gateway, f"http://localhost:{port}/")).status == 403
    assert listener.accepted == 0


async def test_downloads_are_off_until_something_is_listed(start: Start) -> None:
    listener = Listener()
    async with listener.listening() as port:
        gateway = await start(allow_private=LOOPBACK)
        got = await _get(gateway, f"http://127.0.0.1:{port}/")
    assert got.status == 403
    assert got.headers["content-type"] == "application/problem+json"
    assert listener.accepted == 0


async def test_what_no_pattern_covers_is_refused(start: Start) -> None:
    listener = Listener()
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/files/*"], allow_private=LOOPBACK)
        for path in ("/", "/files", "/filesystem", "/files/../secret", "/files/a/../../secret", "/secret?/files/"):
            assert (await _get(gateway, f"http://127.0.0.1:{port}{path}")).status == 403
    assert listener.accepted == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"allow": ["https://*.example.org/*"]}, "example.org"), ({"allow_private": ["10.1.2.3/16"]}, "10.1.2.3/16")],
)
def test_settings_that_mean_nothing_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Downloader(**settings)


# -- several addresses of a name


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["10.0.0.1", "127.0.0.1"], 200),
        (["127.0.0.1", "10.0.0.1"], 200),
        (["10.0.0.1", "169.254.169.254", "::1", "fe80::1%lo", "127.0.0.1"], 200),
        (["::1", "127.0.0.1"], 200),
        (["127.0.0.2", "127.0.0.1"], 200),  # nobody listens at the first
        (["10.0.0.1", "127.0.0.2", "::1", "127.0.0.1"], 200),
        (["10.0.0.1"], 403),
        (["10.0.0.1", "10.0.0.2"], 403),
        (["::1", "10.0.0.1", "fd00::1", "192.168.0.1"], 403),
        (["10.0.0.1", "127.0.0.2"], 503),
        (["127.0.0.2", "10.0.0.1"], 503),
        (["127.0.0.2", "::1"], 503),
        (["::1", "127.0.0.2", "10.0.0.1"], 503),
        (["127.0.0.2", "127.0.0.3"], 503),
    ],
)
async def test_of_a_name_with_several_addresses_the_refused_ones_are_skipped(
    start: Start, addresses: list[str], status: int
) -> None:
    listener = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with listener.listening() as port:
        names = Names(many_test=addresses)
        gateway = await start(allow=[f"http://*:{port}/*"], allow_private=LOOPBACK, resolver=names)
        got = await _get(gateway, f"http://many.test:{port}/")
    assert got.status == status
    assert listener.accepted == (status == 200)


async def test_downloads_at_the_same_time_do_not_mix_up_their_addresses(start: Start) -> None:
    listener = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with listener.listening() as port:
        names = Names(good_test=["10.0.0.1", "127.0.0.1"], bad_test=["10.0.0.1", "10.0.0.2"], dead_test=["127.0.0.2"])
        gateway = await start(allow=[f"http://*:{port}/*"], allow_private=LOOPBACK, resolver=names)
        hosts = ["good", "bad", "dead"] * 10
        answers = await asyncio.gather(*[_get(gateway, f"http://{host}.test:{port}/") for host in hosts])
    assert [answer.status for answer in answers] == [200, 403, 503] * 10


# -- redirects


def _redirecting(**to: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """`_redirecting(a="/b")`: /a leads to /b. What leads nowhere is the file."""

    async def handle(request: web.Request) -> web.StreamResponse:
        location = to.get(request.path.strip("/"))
        if location is None:
            return await _file(request)
        status = int(request.query.get("status", 302))
        return web.Response(status=status, headers={"Location": location.format(port=request.url.port)}, body=b"x" * 99)

    return handle


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b", "b", "http://127.0.0.1:{port}/b", "//127.0.0.1:{port}/b#fragment"])
async def test_a_redirect_is_followed(start: Start, upstream: StartUpstream, status: int, location: str) -> None:
    there = await upstream(_redirecting(a=location))
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    got = await _get(gateway, f"{there.url}/a?status={status}")
    assert (got.status, got.body) == (200, DATA)
    assert "location" not in got.headers


async def test_a_redirect_keeps_the_method_and_the_range(start: Start) -> None:
    first = Listener(b"HTTP/1.1 303 See Other\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")
    async with first.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK, max_redirects=1)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a", method="HEAD", Range="bytes=0-1")
    assert got.status == 502
    assert [request.split(b" HTTP/1.1\r\n")[0] for request in first.requests] == [b"HEAD /a", b"HEAD /b"]
    assert all(b"Range: bytes=0-1" in request for request in first.requests)


@pytest.mark.parametrize(
    "location",
    [
        "/secret",
        "/files/../secret",
        "/files/%2e%2e/secret",
        "http://127.0.0.1:{other}/files/x",
        "//127.0.0.1:{other}/files/x",
        "http://inside.test:{other}/files/x",  # covered, and resolves to what is not opened
        "http://10.0.0.1:{other}/files/x",
        "http://[::1]:{other}/files/x",
        "http://[::ffff:127.0.0.2]:{other}/x",
        "http://2130706433:{other}/files/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://user@127.0.0.1:{port}/files/x",
        "http:/127.0.0.1:{port}/files/x",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{other}/x",
        "javascript:alert(1)",
    ],
)
async def test_a_redirect_to_what_is_forbidden_is_refused(start: Start, location: str) -> None:
    other = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
    async with other.listening("127.0.0.2") as other_port:

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()

        asked: list[bytes] = []
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            to = location.format(port=port, other=other_port)
            gateway = await start(
                allow=[
                    f"http://127.0.0.1:{port}/files/*",
                    f"http://inside.test:{other_port}/*",
                    f"http://10.0.0.1:{other_port}/*",
                    f"http://[::1]:{other_port}/*",
                    f"http://[::ffff:127.0.0.2]:{other_port}/*",
                    "http://169.254.169.254/*",
                ],
                allow_private=["127.0.0.1/32"],
                resolver=Names(inside_test=["127.0.0.2"]),
            )
            got = await _get(gateway, f"http://127.0.0.1:{port}/files/a")
    assert got.status == 403
    assert len(asked) == 1
    assert other.accepted == 0


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        (b"/my file.pdf?a=b c", b"/my%20file.pdf?a=b%20c"),
        ("/\u0444\u00a0.pdf".encode(), b"/%D1%84%C2%A0.pdf"),
        (b"/caf\xe9.pdf", b"/caf%E9.pdf"),
        (b"/a%2Fb.pdf", b"/a%2Fb.pdf"),
        (b"/50% off.pdf", b"/50%25%20off.pdf"),
        (b"/a\tb.pdf", None),
        (b"\\a.pdf", None),
    ],
)
async def test_a_redirect_that_is_written_loosely_is_encoded_and_one_of_two_readings_is_a_bad_answer(
    start: Start, location: bytes, asked: bytes | None
) -> None:
    listener = Listener(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK, max_redirects=1)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    targets = [request.split(b" ")[1] for request in listener.requests]
    assert got.status == 502  # where it is followed, because it leads to itself
    assert targets == ([b"/a"] if asked is None else [b"/a", asked])


@pytest.mark.parametrize("merged", ["http:/{}", "http:///{}", "HTTP:/{}"])
async def test_slashes_that_a_proxy_merged_or_added_mean_what_was_typed(
    start: Start, upstream: StartUpstream, merged: str
) -> None:
    there = await upstream(_redirecting())
    gateway = await start(allow=[f"{there.url}/files/*"], allow_private=LOOPBACK)
    for path, status in (("files/a", 200), ("other/a", 403), ("files/../other", 403)):
        url = merged.format(f"127.0.0.1:{there.port}/{path}")
        assert (await _get(gateway, url)).status == status
        assert (await _get(gateway, quote(url, safe=""))).status == status


async def test_a_client_is_told_of_the_host_that_it_asked_for_and_not_of_those_behind_it(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(b"HTTP/1.1 302 Found\r\nLocation: http://inside.test/x?sig=hidden\r\nContent-Length: 0\r\n\r\n")
    async with listener.listening() as port:
        gateway = await start(
            allow=[f"http://127.0.0.1:{port}/*", "http://inside.test/*"], allow_private=LOOPBACK, resolver=Names()
        )
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    assert got.status == 503
    assert b"a server that 127.0.0.1 redirects to cannot be reached" in got.body
    assert b"inside" not in got.body
    assert b"no such name" not in got.body
    assert "inside.test cannot be reached" in caplog.text
    assert "no such name" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(("redirects", "status"), [(5, 200), (6, 502)])
async def test_five_redirects_are_followed(start: Start, upstream: StartUpstream, redirects: int, status: int) -> None:
    there = await upstream(_redirecting(**{str(n): f"/{n + 1}" for n in range(redirects)}))
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    assert (await _get(gateway, f"{there.url}/0")).status == status


@pytest.mark.parametrize(("second", "accepted"), [(b"/a", 6), (b"/b", 1)])
async def test_a_redirect_to_two_places_is_a_bad_answer(start: Start, second: bytes, accepted: int) -> None:
    listener = Listener(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: " + second + b"\r\nContent-Length: 0\r\n\r\n")
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        assert (await _get(gateway, f"http://127.0.0.1:{port}/a")).status == 502
    assert listener.accepted == accepted


async def test_a_redirect_loop_ends(start: Start) -> None:
    listener = Listener(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n")
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    assert got.status == 502
    assert listener.accepted == 6


async def test_a_redirect_that_leads_nowhere_passes_through(start: Start) -> None:
    async with Listener(b"HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\nok").listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        got = await _get(gateway, f"http://127.0.0.1:{port}/a")
    assert (got.status, got.body) == (302, b"ok")


# -- caps


@pytest.mark.parametrize(("max_bytes", "status"), [(len(DATA), 200), (len(DATA) - 1, 502), (1, 502)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_declared_size_over_the_cap_is_refused(
    start: Start, upstream: StartUpstream, max_bytes: int, status: int, method: str
) -> None:
    there = await upstream(_file)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK, max_bytes=max_bytes)
    assert (await _get(gateway, f"{there.url}/a", method=method)).status == status


async def _chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(10):
        await response.write(b"x" * 10_000)
        await asyncio.sleep(0)
    return response


async def test_a_cap_met_in_mid_stream_breaks_the_connection(
    start: Start, upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    there = await upstream(_chunked)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK, max_bytes=99_999)
    await _broken(gateway, f"{there.url}/a")
    assert [line.getMessage() for line in _lines(caplog)] == ["download sink-refused"]


async def test_a_stream_of_exactly_the_cap_is_whole(start: Start, upstream: StartUpstream) -> None:
    there = await upstream(_chunked)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK, max_bytes=100_000)
    assert (await _get(gateway, f"{there.url}/a")).body == b"x" * 100_000


# -- what breaks, and what takes too long


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n9\r\nd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n|zz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n|abc",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_server_that_breaks_off_breaks_the_clients_connection(
    start: Start, answer: bytes, version: str
) -> None:
    async with Listener(*answer.split(b"|")).listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        await _broken(gateway, f"http://127.0.0.1:{port}/a", version=version)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"220 mail.test ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_a_server_that_speaks_no_http_is_a_bad_gateway(start: Start, answer: bytes) -> None:
    async with Listener(answer).listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        assert (await _get(gateway, f"http://127.0.0.1:{port}/a")).status == 502


async def test_who_cannot_be_reached_is_unavailable(start: Start) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 no TLS here\r\n")
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        no_tls = server.sockets[0].getsockname()[1]
        allow = [f"http://*:{port}/*", f"https://*:{no_tls}/*"]
        gateway = await start(allow=allow, allow_private=LOOPBACK, resolver=Names())
        for url in (f"http://127.0.0.1:{port}/", f"http://nowhere.test:{port}/", f"https://127.0.0.1:{no_tls}/"):
            got = await _get(gateway, url)
            assert got.status == 503, url
            assert "retry-after" in got.headers


async def test_a_connection_that_takes_too_long_is_a_timeout(start: Start) -> None:
    gateway = await start(allow=["http://*/*"], connect_seconds=0.2, resolver=StuckNames())
    assert (await _get(gateway, "http://slow.test/")).status == 504


async def test_a_server_that_says_nothing_is_a_timeout(start: Start) -> None:
    listener = Listener(hold=True)
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK, idle_seconds=0.3)
        assert (await _get(gateway, f"http://127.0.0.1:{port}/")).status == 504
        await asyncio.wait_for(listener.gone.wait(), 30)


async def test_a_server_that_falls_silent_breaks_the_clients_connection(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", hold=True)
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK, idle_seconds=0.5)
        assert (await _broken(gateway, f"http://127.0.0.1:{port}/")).endswith(b"abc")
        await asyncio.wait_for(listener.gone.wait(), 30)
    assert [line.getMessage() for line in _lines(caplog)] == ["download sink-timeout"]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"])
async def test_there_is_a_limit_for_all_of_it(start: Start, head: bytes) -> None:
    async with Listener(head, hold=True).listening() as port:
        total_seconds = 3 if head else 0.5  # the head has to get through before
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK, total_seconds=total_seconds)
        if head:
            assert (await _broken(gateway, f"http://127.0.0.1:{port}/")).endswith(b"abc")
        else:
            assert (await _get(gateway, f"http://127.0.0.1:{port}/")).status == 504


# -- the client


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"])
async def test_a_client_that_resets_ends_the_fetch_though_the_server_is_silent(
    start: Start, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(head, hold=True)
    async with listener.listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        _, writer = await _connect(gateway, f"http://127.0.0.1:{port}/")
        await _eventually(lambda: bool(listener.requests))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        _reset(writer)
        await asyncio.wait_for(listener.gone.wait(), 30)
        assert time.monotonic() - began < 20
        await _eventually(lambda: bool(_lines(caplog)))
    assert [line.getMessage() for line in _lines(caplog)] == ["download client-gone"]


async def test_a_client_that_hangs_up_in_mid_stream_ends_the_fetch(
    start: Start, upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(bytes(65536))
        ended.set()
        return response

    there = await upstream(endless)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    reader, writer = await _connect(gateway, f"{there.url}/a")
    await reader.readexactly(MIB)
    writer.close()
    await asyncio.wait_for(ended.wait(), 30)
    await _eventually(lambda: bool(_lines(caplog)))
    assert [line.getMessage() for line in _lines(caplog)] == ["download client-gone"]


async def test_a_slow_client_slows_the_server(start: Start, upstream: StartUpstream) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(bytes(65536))
                sent += 65536
        return response

    there = await upstream(endless)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    _, writer = await _connect(gateway, f"{there.url}/a")
    seen = -1
    async with asyncio.timeout(60):
        while sent != seen or not sent:
            seen = sent
            await asyncio.sleep(1)
    assert sent < 64 * MIB  # buffers of four sockets, and ours
    writer.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_slow_client_gets_all_of_it_though_the_server_is_long_gone(start: Start, framing: str) -> None:
    data = bytes(range(256)) * 4096 * 24
    match framing:
        case "length":
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        case "chunked":
            chunk = b"10000\r\n%s\r\n"
            chunks = b"".join(chunk % data[at : at + 0x10000] for at in range(0, len(data), 0x10000))
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        case _:
            answer = b"HTTP/1.0 200 OK\r\n\r\n" + data
    async with Listener(answer).listening() as port:
        gateway = await start(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK)
        reader, writer = await _connect(gateway, f"http://127.0.0.1:{port}/")
        received = await reader.readuntil(b"\r\n\r\n")
        while more := await reader.read(MIB):
            received += more
            await asyncio.sleep(0.02)
        writer.close()
    assert Got(received).body == data


async def test_a_cancelled_download_breaks_the_clients_connection(
    start_destination: StartDestination, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", hold=True)
    tasks: list[asyncio.Task[Any]] = []
    async with (
        listener.listening() as port,
        Downloader(allow=[f"http://127.0.0.1:{port}/*"], allow_private=LOOPBACK) as downloader,
    ):

        async def respond(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            return await downloader.respond(request)

        app = web.Application()
        app.router.add_get("/download/{url:.*}", respond)
        gateway = await start_destination(app)
        reader, writer = await _connect(gateway, f"http://127.0.0.1:{port}/")
        await reader.readuntil(b"abc\r\n")
        tasks[0].cancel()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await asyncio.wait_for(listener.gone.wait(), 30)
    assert [line.getMessage() for line in _lines(caplog)] == ["download cancelled"]


async def test_memory_stays_flat(start: Start, upstream: StartUpstream) -> None:
    total, block = 256 * MIB, bytes(MIB)

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = total
        await response.prepare(request)
        for _ in range(total // len(block)):
            await response.write(block)
        return response

    there = await upstream(large)
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    reader, writer = await _connect(gateway, f"{there.url}/a")
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with asyncio.timeout(100):
            while data := await reader.read(MIB):
                received += len(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        writer.close()
    assert received == total
    assert peak - before < 16 * MIB  # all three parties


# -- the log


async def test_each_download_has_one_line_that_keeps_queries_to_itself(
    start: Start, upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    there = await upstream(_redirecting(a="/b?token=hidden"))
    gateway = await start(allow=[f"{there.url}/*"], allow_private=LOOPBACK)
    await _get(gateway, f"{there.url}/a?token=hidden")
    await _get(gateway, "http://other.test/?token=hidden")
    await _eventually(lambda: len(_lines(caplog)) == 2)
    done, refused = (vars(line) for line in _lines(caplog))
    assert (done["outcome"], done["status"], done["redirects"], done["sent_bytes"]) == ("ok", 200, 1, len(DATA))
    assert done["url"] == f"{there.url}/a"
    assert refused["outcome"] == "forbidden"
    assert not re.search("hidden", repr((done, refused)))
