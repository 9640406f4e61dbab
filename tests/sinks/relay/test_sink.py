"""Uploads passed on: the contract, and what a destination gets. How destinations fail: test_sinks_relay_failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.model import Upload
from gateway.sinks import Delivery
from gateway.sinks.relay.per_upload import RelayDelivery
from gateway.sinks.relay.sink import RelaySink
from tests.conftest import Destination, StartDestination, StartGateway
from tests.contract import (
    END,
    FORM,
    SinkContract,
    Subject,
    answer_of,
    delivering,
    field,
    file,
    form,
    form_part,
    nothing_left_running,
    sha256,
    source,
    upload,
)
from tests.support.doubles import HonestUpstream


async def seen(session: ClientSession, destination: Destination) -> dict[str, Any]:
    async with session.get(destination.url + "/seen") as response:
        counters: dict[str, Any] = await response.json()
        return counters


class TestContract(SinkContract):
    @pytest.fixture
    async def subject(self, start_destination: StartDestination) -> AsyncIterator[Subject]:
        destination = await start_destination()
        async with ClientSession() as session, RelaySink(name="api", url=destination.url + "/upload") as sink:
            self._running = 0

            async def visible() -> int:
                """How many bodies were whole, as soon as the others are known to be broken off."""
                async with asyncio.timeout(20):
                    while True:
                        counters = await seen(session, destination)
                        if counters["started"] <= counters["completed"] + counters["aborted"] + self._running:
                            completed: int = counters["completed"]
                            return completed
                        await asyncio.sleep(0.01)

            async def digests(_: Upload, delivery: Delivery) -> list[str]:
                assert isinstance(delivery, RelayDelivery)
                answer = delivery.answer()
                assert answer is not None
                manifest = await answer.json()
                return [part["sha256"] for part in manifest["parts"]]

            yield Subject(sink, visible, digests)

    async def _settled_before_commit(self, subject: Subject, upload: Upload, delivery: Delivery) -> int:
        self._running = 1
        try:
            return await super()._settled_before_commit(subject, upload, delivery)
        finally:
            self._running = 0


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
"""A route that relays, and answers with the manifest; `/proxy`, which passes the answer on, is there by default."""


def parts_of(manifest: dict[str, Any], *members: str) -> list[list[Any]]:
    return [[part[member] for member in members] for part in manifest["parts"]]


# -- the body


async def test_parts_arrive_in_the_order_of_the_wire_with_fields_in_their_places(
    session: ClientSession, start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url)
    parts: list[tuple[bytes, bytes | None, bytes]] = [
        (b"first", None, b"1"),
        (b"file", b"large.bin", b"x" * 3_000_000),
        (b"between", None, b"2"),
        (b"file", b"small.bin", b"y"),
        (b"file", b"small.bin", b"y again"),
        (b"between", None, b""),
        (b"file", b"large.bin", b"z" * 2_000_000),
        (b"last", None, b"3" * 300_000),
    ]
    status, answer = await answer_of(session, gateway.url + "/proxy", form(*parts))
    assert status == 200
    assert parts_of(answer, "name", "filename", "size", "sha256") == [
        [name.decode(), filename and filename.decode(), len(data), sha256(data)] for name, filename, data in parts
    ]


async def test_an_empty_file_input_stays_one(session: ClientSession, start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        body = form((b"a", b"", b""), (b"b", b"b.bin", b"data"), (b"c", b"", b""))
        assert (await answer_of(session, gateway.url + "/proxy", body))[0] == 200
        wire = bytes(upstream.exchanges[0].body)
    pieces = wire.split(b"\r\n--")
    assert b'name="a"; filename=""\r\n' in pieces[0]
    assert pieces[0].endswith(b"\r\n\r\n")
    assert b'name="c"; filename=""\r\n' in pieces[2]
    assert pieces[2].endswith(b"\r\n\r\n")


async def test_an_empty_file_input_with_bytes_in_it_is_a_file(
    session: ClientSession, start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url)
    for data in (b"few", b"many" * 500_000):
        _, answer = await answer_of(session, gateway.url + "/proxy", form((b"a", b"", data), (b"b", None, b"note")))
        assert parts_of(answer, "name", "filename", "sha256") == [
            ["a", "", sha256(data)],
            ["b", None, sha256(b"note")],
        ]


@pytest.mark.parametrize("kind", ["POST /proxy", "POST /store", "PUT /store"])
async def test_a_file_without_a_name_is_called_file(
    session: ClientSession, start_gateway: StartGateway, kind: str
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        method, path = kind.split()
        async with session.request(
            method, gateway.url + path, data=b"raw", headers={"Content-Type": "a/b"}
        ) as response:
            assert response.status in (200, 201)
        wire = bytes(upstream.exchanges[0].body)
        assert b'form-data; name="file"; filename="file"\r\nContent-Type: a/b\r\n\r\nraw\r\n--' in wire


@pytest.mark.parametrize(
    "name",
    [
        b"a b.txt",
        b"100%.txt",
        b"a%20b.txt",
        b"%22quoted%22",
        b"line%0D%0Abreak",
        b"C:\\fake\\path.txt",
        b"../../etc/passwd",
        "näïve 文件 🎉.txt".encode(),
        "nai\u0308ve.txt".encode(),
        b"latin-1-\xe4\xf6\xfc",
        b"\xff\xfe\x80",
        b"semi;colon=x'y",
        b"tab\there",
        b"x" * 3000,
    ],
)
async def test_names_go_on_as_the_bytes_that_they_are(
    session: ClientSession, start_gateway: StartGateway, name: bytes
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        status, _ = await answer_of(session, gateway.url + "/proxy", form((name, name, b"data"), (name, None, b"x")))
        assert status == 200
        wire = bytes(upstream.exchanges[0].body)
    assert b'form-data; name="' + name + b'"; filename="' + name + b'"\r\n' in wire
    assert b'form-data; name="' + name + b'"\r\n\r\nx' in wire
    assert b"filename*" not in wire


async def test_a_type_goes_on_verbatim_and_other_headers_of_a_part_do_not(
    session: ClientSession, start_gateway: StartGateway
) -> None:
    part = (
        b"--b\r\ncontent-disposition: form-data; name=\"f\"; filename*=UTF-8''n%C3%A4.txt\r\nX-Evil: 1\r\n"
        b'Content-Type: Text/Plain; Charset="UTF-8" ; x=y\r\nContent-Transfer-Encoding: 8bit\r\n'
        b"Content-Length: 99\r\n\r\ndata\r\n"
    )
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with session.post(gateway.url + "/proxy", data=part + END, headers=FORM) as response:
            assert response.status == 200
        wire = bytes(upstream.exchanges[0].body)
    head, _, rest = wire.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[1:] == [
        'Content-Disposition: form-data; name="f"; filename="nä.txt"'.encode(),
        b'Content-Type: Text/Plain; Charset="UTF-8" ; x=y',
    ]
    assert rest.startswith(b"data\r\n--")


async def test_an_upload_of_nothing_reaches_a_destination_whose_answer_is_wanted(
    session: ClientSession, start_gateway: StartGateway
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        status, manifest = await answer_of(session, gateway.url + "/store", form())
        assert (status, manifest["parts"], upstream.exchanges) == (201, [], [])
        assert (await answer_of(session, gateway.url + "/proxy", form()))[0] == 200
        assert upstream.exchanges[0].complete
        assert upstream.exchanges[0].closing_delimiter_seen


# -- the head


def head(*lines: str) -> bytes:
    body = form_part(b"file", b"a.bin", b"data") + END
    head = ["Host: gateway", "Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}"]
    return "\r\n".join(["POST /proxy?z=1 HTTP/1.1", *head, *lines, "", ""]).encode("latin-1") + body


OF_THE_WAY = {
    "incremental",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "via",
    "x-request-id",
}
"""What test_forwarding is about."""


async def forwarded(start_gateway: StartGateway, *lines: str) -> Sequence[tuple[str, str]]:
    """What a destination gets of these lines, beside what the gateway's own request has."""
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(head(*lines))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
        headers = upstream.exchanges[0].headers
    own = {"host", "content-type", "transfer-encoding", "connection"} | OF_THE_WAY
    assert sorted(name for name, _ in headers if name in own) == sorted(own)
    assert dict(headers)["host"] == upstream.url.split("/")[2]
    assert dict(headers)["content-type"] != "multipart/form-data; boundary=b"
    return [(name, value) for name, value in headers if name not in own]


async def test_end_to_end_headers_go_on_as_they_are(start_gateway: StartGateway) -> None:
    lines = [
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("user-agent", "somebody/1"),
        ("accept", "text/x"),
        ("accept-language", "de"),
        ("if-match", '"etag"'),
        ("idempotency-key", "k"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("tracestate", "more=1"),
        ("baggage", "user=1"),
    ]
    assert await forwarded(start_gateway, *(f"{name}: {value}" for name, value in lines)) == lines


async def test_headers_that_are_not_a_destinations_business_stay(start_gateway: StartGateway) -> None:
    stay = [
        "Cookie: session=secret",
        "Authorization: Bearer secret",
        "Proxy-Authorization: Basic secret",
        "Accept-Encoding: gzip",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Prefix: /admin",
        "X-Real-IP: 1.2.3.4",
        "Content-Language: de",
        "Content-MD5: xxx",
        "Connection: close, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-Later",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Proxy-Connection: close",
    ]
    assert await forwarded(start_gateway, *stay, "X-Kept: 1") == [("x-kept", "1")]


async def test_a_request_without_headers_gets_those_of_its_way_only(start_gateway: StartGateway) -> None:
    assert await forwarded(start_gateway) == []


@pytest.mark.parametrize(
    ("own", "clients", "target"),
    [
        ("up", "", "/up"),
        ("up", "?a=1&b=%20x&a=2", "/up?a=1&b=%20x&a=2"),
        ("up?key=1", "?a=1", "/up?key=1&a=1"),
        ("up?key=1", "", "/up?key=1"),
        ("up", "?q=%2F%3F&plus=+&%C3%A4", "/up?q=%2F%3F&plus=+&%C3%A4"),
        ("a%2Fb", "?", "/a%2Fb"),
    ],
)
async def test_the_clients_query_is_appended_as_it_came(
    start_gateway: StartGateway, own: str, clients: str, target: str
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url + own)
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(head().replace(b"/proxy?z=1", b"/proxy" + clients.encode()))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
        assert upstream.exchanges[0].target == target


# -- the answer


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 302, 303, 307, 308, 400, 401, 404, 409, 422, 500, 503])
async def test_an_answer_is_passed_back_whatever_it_is_and_followed_nowhere(
    start_gateway: StartGateway, status: int
) -> None:
    body = b"" if status == 204 else b"the destination's own words"
    headers = [("Location", "/elsewhere"), ("X-Kept", "1"), ("Content-Type", "text/x"), ("Keep-Alive", "timeout=1")]
    async with nothing_left_running(), HonestUpstream(status, body, *headers) as upstream, ClientSession() as client:
        gateway = await start_gateway(api=upstream.url)
        url = gateway.url + "/proxy"
        async with client.post(url, data=form((b"f", b"a", b"x")), headers=FORM, allow_redirects=False) as response:
            assert response.status == status
            assert await response.read() == body
            assert response.headers["Location"] == "/elsewhere"
            assert response.headers["X-Kept"] == "1"
            assert response.headers["Content-Type"] == "text/x"
            assert "Keep-Alive" not in response.headers
        assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("status", [302, 307, 400, 404, 500])
async def test_on_a_route_of_our_own_answers_any_other_than_2xx_is_a_refusal(
    session: ClientSession, start_gateway: StartGateway, status: int
) -> None:
    async with HonestUpstream(status, b"no", ("Location", "/elsewhere")) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        answer, problem = await answer_of(session, gateway.url + "/store", form((b"f", b"a", b"x")))
        assert (answer, problem["type"]) == (502, "/problems/sink-refused")
        assert (problem["sink"], problem["sink_status"]) == ("api", status)
        assert len(upstream.exchanges) == 1


async def test_cookies_are_passed_back_and_never_kept(session: ClientSession, start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}", ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")) as upstream:
        # by name: a cookie jar takes none from bare addresses
        gateway = await start_gateway(api=upstream.url.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            async with session.post(gateway.url + "/proxy", data=form((b"f", b"a", b"x")), headers=FORM) as response:
                assert response.headers.getall("Set-Cookie") == ["a=1; Path=/", "b=2"]
        assert not any(name == "cookie" for exchange in upstream.exchanges for name, _ in exchange.headers)


async def test_a_receipt_has_the_destinations_status(session: ClientSession, start_gateway: StartGateway) -> None:
    async with HonestUpstream(202) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        _, manifest = await answer_of(session, gateway.url + "/store", form((b"f", b"a", b"x"), (b"n", None, b"y")))
    assert [part["receipts"] for part in manifest["parts"]] == [[{"sink": "api", "status": 202, "location": None}], []]


async def test_a_compressed_answer_goes_back_as_it_is(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"not really gzip", ("Content-Encoding", "gzip")) as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with (
            ClientSession(auto_decompress=False) as client,
            client.post(gateway.url + "/proxy", data=form((b"f", b"a", b"x")), headers=FORM) as response,
        ):
            assert response.headers["Content-Encoding"] == "gzip"
            assert await response.read() == b"not really gzip"


@pytest.mark.sockets
async def test_a_batch_of_nothing_makes_no_request() -> None:
    async with HonestUpstream() as upstream, RelaySink(name="api", url=upstream.url) as sink:
        async with delivering(sink, upload()) as delivery:
            assert isinstance(delivery, RelayDelivery)
            await delivery.accept_all([])
            assert await delivery.commit() == []
        assert upstream.exchanges == []


async def test_two_parts_cannot_be_mixed_up_on_the_wire(start_destination: StartDestination) -> None:
    """Sources that come in fits and starts, the second faster than the first."""
    destination = await start_destination()

    async def slow(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 10):
            await asyncio.sleep(0.005)
            yield data[start : start + 10]

    async with RelaySink(name="api", url=destination.url) as sink, delivering(sink, upload("relay")) as delivery:
        async with asyncio.TaskGroup() as group:
            group.create_task(delivery.accept(file(0), slow(b"a" * 100)))
            group.create_task(delivery.accept(file(1), source(b"b" * 300_000)))
            assert isinstance(delivery, RelayDelivery)
            group.create_task(delivery.accept_all([(field(2), b"c"), (file(3), b"d")]))
        await delivery.commit()
        answer = delivery.answer()
        assert answer is not None
        sizes = parts_of(await answer.json(), "size")
    assert sizes == [[100], [300_000], [1], [1]]
