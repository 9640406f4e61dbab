"""The checklist of what others fell into: every row of its upper table has a test here that bears its name.

The list lies beside the repository (`../shared/relay-checklist.md`); where it is absent, only the comparison of names
is skipped. Most rows have more tests elsewhere; these are short, over real sockets, and say that the row holds.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import (
    Answer,
    Client,
    SilentClient,
    VanishingClient,
    ask,
    chunked,
    eventually,
    file,
    form,
    head,
    random_bytes,
)
from tests.support.destinations import nginx_before
from tests.support.doubles import (
    DeafUpstream,
    DyingUpstream,
    HalfAnswerUpstream,
    HonestUpstream,
    LengthDemandingUpstream,
    RefusingUpstream,
    Upstream,
)
from tests.support.processes import gateway_process

HERE = Path(__file__).resolve().parent
CHECKLIST = HERE.parent.parent / "shared" / "relay-checklist.md"
DIRECTORY = os.environ.get("GATEWAY_CONFORMANCE")  # the list lies beside the cases
if DIRECTORY:
    CHECKLIST = Path(DIRECTORY).resolve().parent / "relay-checklist.md"

MIB = 1 << 20


# -- the list itself


def rows() -> list[str]:
    """The first cells of the upper table."""
    upper = CHECKLIST.read_text("utf-8").partition("\n## ")[0]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in upper.splitlines() if line.startswith("| ")]
    return cells[1:]


def named_after(row: str) -> str:
    """`boundary & Content-Type` -> `test_boundary_and_content_type`."""
    return "test_" + re.sub(r"\W+", "_", row.replace("&", "and").lower()).strip("_")


@pytest.mark.skipif(not CHECKLIST.is_file(), reason="the checklist is not here: set GATEWAY_CONFORMANCE")
def test_every_row_of_the_checklist_has_its_test_and_every_test_its_row() -> None:
    names = [named_after(row) for row in rows()]
    assert len(names) > 30
    own = "test_every_row_of_the_checklist_has_its_test_and_every_test_its_row"
    tests = {name for name in globals() if name.startswith("test_")} - {own}
    assert [name for name in names if name not in tests] == []
    assert [test for test in tests if not any(test.startswith(name) for name in names)] == []


# -- helpers


@asynccontextmanager
async def relay(
    start_gateway: StartGateway, upstream: Upstream, **document: object
) -> AsyncIterator[tuple[RunningGateway, Upstream]]:
    async with upstream:
        yield await start_gateway(api=upstream.url, **document), upstream


async def post(gateway: RunningGateway, body: bytes, target: str = "/proxy", **headers: str) -> Answer:
    return await ask(gateway.port, target, "POST", body, **headers)


async def wire(start_gateway: StartGateway, body: bytes, **headers: str) -> bytes:
    """The body that a destination gets for this one."""
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        assert (await post(gateway, body, **headers)).status == 200
        return bytes(upstream.exchanges[0].body)


def part(head: bytes, data: bytes = b"data") -> bytes:
    return b"--b0undary\r\n" + head + b"\r\n\r\n" + data


async def sent_until(client: Client, seconds: float, data: bytes) -> None:
    with suppress(ConnectionError):
        await client.send_for(seconds, data)


# -- one after the other, as in the table


TO_TWO = [{"path": "/two", "kind": "relay", "parts": [{"sinks": ["two"]}]}]


def with_length(length: str) -> dict[str, object]:
    return {"sinks": {"api": {"length": length}}}


@pytest.mark.parametrize("length", ["spool", "passthrough"])
async def test_destination_refuses_chunked(start_gateway: StartGateway, length: str) -> None:
    async with relay(start_gateway, LengthDemandingUpstream(411), **with_length(length)) as (gateway, upstream):
        body = form(file(b"x" * MIB))
        assert (await post(gateway, body)).status == 200
        (exchange,) = upstream.exchanges
        assert exchange.length == len(exchange.body)
        assert length != "passthrough" or exchange.body == body


@pytest.mark.parametrize("refusal", [411, 501])
async def test_destination_refuses_chunked_is_learned(start_gateway: StartGateway, refusal: int) -> None:
    async with relay(start_gateway, LengthDemandingUpstream(refusal)) as (gateway, upstream):
        first = await post(gateway, form(file(b"x" * 8 * MIB)))
        assert first.status in (200, refusal)  # 200 where the beginning of the body was still there
        assert (await post(gateway, form(file(b"x" * 8 * MIB)))).status == 200
        assert [exchange.length is None for exchange in upstream.exchanges].count(True) == 1


async def test_s3_like_sink_unknown_length(start_gateway: StartGateway) -> None:
    """There is no sink for object stores. One that speaks HTTP gets an exact length by `spool`, or nothing at all."""
    async with relay(start_gateway, LengthDemandingUpstream(501), **with_length("spool")) as (gateway, upstream):
        body = form(file(random_bytes(6 * MIB)))  # more than S3's least part
        for whole in (True, False):
            async with Client(gateway.port) as client:
                await client.send(head("/proxy", transfer_encoding="chunked"))
                await client.send(chunked(body if whole else body[: 5 * MIB]))
                assert (await client.answer()).status == (200 if whole else 400)
        (exchange,) = upstream.exchanges  # of the broken one it never heard
        assert exchange.complete
        assert exchange.length == len(exchange.body)


async def test_raw_body_nested_as_a_file(start_gateway: StartGateway) -> None:
    body = await wire(start_gateway, form(file(b"data", "a.bin")))
    assert b"b0undary" not in body  # nothing of the client's framing is in a part of ours
    assert body.count(b"Content-Disposition") == 1
    raw = await wire(start_gateway, b"raw", content_type="image/x")
    assert b'name="file"; filename="file"\r\nContent-Type: image/x\r\n\r\nraw\r\n--' in raw


async def test_boundary_and_content_type(start_gateway: StartGateway) -> None:
    quoted = 'multipart/form-data; charset=utf-8; boundary="b0undary"'
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        for _ in range(2):
            assert (await post(gateway, form(file(b"data")), content_type=quoted)).status == 200
        types = [dict(exchange.headers)["content-type"] for exchange in upstream.exchanges]
        found = [re.fullmatch(r"multipart/form-data; boundary=\"?([0-9A-Za-z'()+_,./:=?-]{1,70})\"?", t) for t in types]
        assert all(found)
        assert len({match[1] for match in found if match} | {"b0undary"}) == 3  # one of its own for each request
        for bad in ("; boundary=a; boundary=b", "; boundary=", f"; boundary={'x' * 71}", ""):
            assert (await post(gateway, form(), content_type="multipart/form-data" + bad)).status == 400


async def test_part_header_fidelity(start_gateway: StartGateway) -> None:
    headers = (
        b"content-disposition: form-data; filename*=UTF-8''n%C3%A4.txt; name=f\r\nX-Other: 1\r\n"
        b'Content-Type: Text/Plain; Charset="UTF-8" ; x=y\r\nContent-Transfer-Encoding: binary'
    )
    first, _, _ = (await wire(start_gateway, form(part(headers)))).partition(b"\r\n\r\n")
    assert first.split(b"\r\n")[1:] == [
        'Content-Disposition: form-data; name="f"; filename="nä.txt"'.encode(),
        b'Content-Type: Text/Plain; Charset="UTF-8" ; x=y',
    ]


@pytest.mark.parametrize(
    ("name", "emitted"),
    [
        ("nä 文件.txt".encode(), None),
        (b"latin-1 \xe4.txt", None),
        (b"a%20b %41.txt", None),
        (b"a%22b.txt", None),
        (b'a\\"b\\\\c.txt', b"a%22b\\c.txt"),
        (b"line%0D%0Aend", None),
    ],
)
async def test_filename_encodings(start_gateway: StartGateway, name: bytes, emitted: bytes | None) -> None:
    body = form(part(b'Content-Disposition: form-data; name="f"; filename="%b"' % name))
    assert b'; filename="%b"\r\n' % (emitted or name) in await wire(start_gateway, body)


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\..\\evil.exe", "/abs", "..", "CON", "a\x7fb", "x" * 400])
async def test_filename_as_path(start_gateway: StartGateway, tmp_path: Path, name: str) -> None:
    gateway = await start_gateway()
    answer = await post(gateway, form(file(b"data", name)), "/upload")
    if answer.status == 201:
        last = answer.json()["parts"][0]["receipts"][0]["location"].rpartition("/")[2]
        assert last not in ("", ".", "..")
        assert "\\" not in last
    else:
        assert answer.status == 400
    assert {path.name for path in gateway.stored() if path.is_file()} <= {"0", "manifest.json"}  # keys of our own
    assert sorted(tmp_path.iterdir()) == [gateway.root]


async def test_field_order_late_fields(start_gateway: StartGateway, start_destination: StartDestination) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url)
    note = part(b'Content-Disposition: form-data; name="note"', b"1")
    body = form(file(b"x" * MIB), note, file(b"2", "b"), note, note, file(b"", "c"), note)
    parts = (await post(gateway, body)).json()["parts"]
    names = ["file", "note", "file", "note", "note", "file", "note"]
    assert [one["name"] for one in parts] == names
    manifest = (await post(gateway, body, "/upload")).json()
    assert [one["name"] for one in manifest["parts"]] == names


async def test_duplicate_names_name(start_gateway: StartGateway, start_destination: StartDestination) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url)
    body = form(*(file(bytes([65 + number]), "same.txt", "files[]") for number in range(5)))
    parts = (await post(gateway, body)).json()["parts"]
    assert [(one["name"], one["filename"], one["size"]) for one in parts] == [("files[]", "same.txt", 1)] * 5
    assert len({one["sha256"] for one in parts}) == 5
    manifest = (await post(gateway, body, "/upload")).json()
    assert len({one["receipts"][0]["location"] for one in manifest["parts"]}) == 5


async def test_empty_file_input(start_gateway: StartGateway) -> None:
    body = form(file(b"", ""), file(b"data", "a.txt"))
    assert b'name="file"; filename=""\r\nContent-Type: text/x-test\r\n\r\n\r\n--' in await wire(start_gateway, body)
    gateway = await start_gateway()
    parts = (await post(gateway, body, "/upload")).json()["parts"]
    assert [len(one["receipts"]) for one in parts] == [0, 1]


async def test_zero_length_real_file(start_gateway: StartGateway) -> None:
    body = form(file(b"", "empty.txt"))
    assert b'; filename="empty.txt"\r\nContent-Type: text/x-test\r\n\r\n\r\n--' in await wire(start_gateway, body)
    gateway = await start_gateway()
    (one,) = (await post(gateway, body, "/upload")).json()["parts"]
    assert one["size"] == 0
    assert (await ask(gateway.port, one["receipts"][0]["location"])).body == b""


async def test_part_without_closing_delimiter(start_gateway: StartGateway) -> None:
    both = [{"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}]
    async with relay(start_gateway, HonestUpstream(200, b"{}"), routes=both) as (gateway, upstream):
        for body in (form(file(b"x" * MIB))[:-4], form(file(b"x"))[:-14], file(b"")):
            answer = await post(gateway, body, "/both")
            assert (answer.status, answer.json()["type"]) == (400, "/problems/truncated")
        await eventually(lambda: all(exchange.lost for exchange in upstream.exchanges))
        assert not upstream.saw_a_whole_body
        assert gateway.stored() == []


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_abort_mid_part(start_gateway: StartGateway, how: str) -> None:
    both = [{"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}]
    async with relay(start_gateway, HonestUpstream(200, b"{}"), routes=both) as (gateway, upstream):
        body = form(file(b"x" * MIB))
        async with VanishingClient(gateway.port) as client:
            await client.send(head("/both", content_length=len(body)) + body[: MIB // 2])
            await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 100_000)
            await client.vanish_after(b"x", "rst" if how == "rst" else "fin")
        await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.saw_a_whole_body
        await eventually(lambda: gateway.stored() == [])


async def test_upstream_dies_midway(start_gateway: StartGateway) -> None:
    both = [{"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}]
    async with relay(start_gateway, DyingUpstream(after=MIB), routes=both) as (gateway, upstream):
        async with Client(gateway.port) as client:
            body = form(file(b"x" * 8 * MIB))
            with suppress(ConnectionError):
                await client.send(head("/both", content_length=len(body)) + body)
            answer = await client.answer()
        assert (answer.status, answer.json()["type"], answer.json()["sink"]) == (502, "/problems/sink-refused", "api")
        assert gateway.stored() == []  # its sibling took all of it back
        assert not upstream.saw_a_whole_body


async def test_upstream_dies_midway_and_proxy_status_says_so(start_gateway: StartGateway) -> None:
    async with relay(start_gateway, DyingUpstream(after=1)) as (gateway, _):
        answer = await post(gateway, form(file(b"x" * 1000)))
        assert answer.status == 502
        assert re.match(r'gateway; error=\w+; next-hop="api"', answer.headers["proxy-status"])


async def test_upstream_dies_midway_and_another_one_takes_over(start_gateway: StartGateway) -> None:
    """As long as all that was sent is still kept; after that it is a 502, and no second copy begins."""
    body = form(file(b"x" * 4 * MIB))
    for replay_bytes, status in ((8 * MIB, 200), (0, 502)):
        async with DyingUpstream(after=MIB) as dying, HonestUpstream(200, b"{}") as honest:
            for _ in range(2):  # whichever is asked first
                sink = {"type": "relay", "urls": [dying.url, honest.url], "replay_bytes": replay_bytes}
                gateway = await start_gateway(sinks={"two": sink}, routes=TO_TWO)
                async with Client(gateway.port) as client:
                    with suppress(ConnectionError):
                        await client.send(head("/two", content_length=len(body)) + body)
                    answer = await client.answer()
                assert answer.status in (200, status)
            assert not dying.saw_a_whole_body
            assert all(exchange.complete for exchange in honest.exchanges)
            assert replay_bytes == 0 or len(honest.exchanges) == 2


async def test_upstream_fails_after_our_response_began(start_gateway: StartGateway) -> None:
    half = HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    async with relay(start_gateway, half) as (gateway, _), Client(gateway.port) as client:
        body = form(file(b"data"))
        await client.send(head("/proxy", content_length=len(body)) + body)
        got = await client.ended()
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith(b"4\r\nhalf\r\n")  # no last chunk, and no words of ours


async def test_early_final_response(start_gateway: StartGateway) -> None:
    async with relay(start_gateway, RefusingUpstream(413, b"too much", after=100_000)) as (gateway, upstream):
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=1 << 40) + file(b""))
            await sent_until(client, 1, random_bytes(MIB))
            answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"too much", "close")
        assert not upstream.saw_a_whole_body


async def test_100_continue(start_gateway: StartGateway) -> None:
    limits = {"max_body_bytes": MIB}
    async with relay(start_gateway, HonestUpstream(200, b"{}"), limits=limits) as (gateway, upstream):
        body = form(file(b"data"))
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=len(body), expect="100-continue"))
            assert (await client.answer()).status == 100
            await client.send(body)
            assert (await client.answer()).status == 200
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=2 * MIB, expect="100-continue"))
            assert (await client.answer()).status == 413
        assert [dict(exchange.headers).get("expect") for exchange in upstream.exchanges] == [None]


async def test_reuse_after_abort(start_gateway: StartGateway) -> None:
    """A connection on which a request was broken off is closed, and the next upload gets another one."""

    class RefusingOnceUpstream(Upstream):
        def received(self, exchange: object) -> None:
            one = self.exchanges[-1]
            if not one.answered and (len(self.exchanges) == 1 or one.complete):
                one.answer(413 if len(self.exchanges) == 1 else 200, b"{}")

    async with relay(start_gateway, RefusingOnceUpstream()) as (gateway, upstream):
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", content_length=1 << 30) + file(b"x" * MIB))
            assert (await client.answer()).status == 413
        await eventually(lambda: upstream.exchanges[0].lost)
        assert (await post(gateway, form(file(b"data")))).status == 200
        assert len(upstream.exchanges) == 2


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("POST /proxy HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("POST /proxy HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6", 400),
        ("POST /proxy HTTP/1.1\r\nContent-Length: +5", 400),
        ("POST /proxy HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 501),
        ("POST /proxy HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
    ],
)
async def test_smuggling(start_gateway: StartGateway, lines: str, status: int) -> None:
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        async with Client(gateway.port) as client:
            await client.send(f"{lines}\r\nHost: g\r\nContent-Type: text/plain\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode())
            got = await client.ended()  # and nothing after it is read as a request
        assert got.split(b" ")[1] == str(status).encode()
        assert len(re.findall(rb"HTTP/1\.\d \d{3} ", got)) == 1
        assert upstream.exchanges == []
        assert (await post(gateway, form(file(b"data")))).status == 200
        framing = [name for name, _ in upstream.exchanges[0].headers if name in ("content-length", "transfer-encoding")]
        assert framing == ["transfer-encoding"]


async def test_connection_named_headers(start_gateway: StartGateway) -> None:
    answering = HonestUpstream(200, b"{}", ("Connection", "X-Back, close"), ("X-Back", "1"), ("X-Stays", "1"))
    async with relay(start_gateway, answering) as (gateway, upstream):
        hop = {"keep_alive": "timeout=5", "te": "trailers", "upgrade": "h2c", "proxy_connection": "x", "cookie": "a=1"}
        async with Client(gateway.port) as client:
            body = form(file(b"data"))
            sent = head("/proxy", content_length=len(body), connection="X-Hop", x_hop="1", x_kept="1", **hop)
            await client.send(sent + body)
            answer = await client.answer()
        got = dict(upstream.exchanges[0].headers)
        assert got["x-kept"] == "1"
        assert {"x-hop", "keep-alive", "te", "upgrade", "proxy-connection", "cookie"}.isdisjoint(got)
        assert "x-back" not in answer.headers
        assert answer.headers["x-stays"] == "1"


async def test_connection_named_headers_and_lists_of_what_may_go_on(start_gateway: StartGateway) -> None:
    allowed = {"sinks": {"api": {"forward_cookies": ["session"], "forward_authorization": ["Bearer"]}}}
    async with relay(start_gateway, HonestUpstream(200, b"{}"), **allowed) as (gateway, upstream):
        for scheme in ("Bearer", "Basic"):
            credentials = {"cookie": "session=1; other=2", "authorization": f"{scheme} secret"}
            answer = await post(gateway, form(file(b"data")), **credentials)
            assert (answer.status, answer.headers["via"]) == (200, "1.1 gateway")
        bearer, basic = (dict(exchange.headers) for exchange in upstream.exchanges)
        assert (bearer["cookie"], bearer["authorization"]) == ("session=1", "Bearer secret")
        assert "authorization" not in basic
        assert basic["via"] == "1.1 gateway"


async def test_client_trust_headers(start_gateway: StartGateway) -> None:
    """Nobody is trusted by default: what a client says of where it comes from goes nowhere."""
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        lies = dict.fromkeys(("x_forwarded_for", "x_forwarded_host", "x_forwarded_proto"), "6.6.6.6")
        assert (await post(gateway, form(file(b"data")), forwarded="for=6.6.6.6", **lies)).status == 200
        assert b"6.6.6.6" not in upstream.exchanges[0].head


async def test_client_trust_headers_of_a_trusted_network(start_gateway: StartGateway) -> None:
    trusting = {"server": {"trusted_networks": ["127.0.0.0/8"]}}
    async with relay(start_gateway, HonestUpstream(200, b"{}"), **trusting) as (gateway, upstream):
        assert (await post(gateway, form(file(b"data")), x_forwarded_for="6.6.6.6")).status == 200
        assert dict(upstream.exchanges[0].headers)["x-forwarded-for"] == "6.6.6.6, 127.0.0.1"


async def test_http_1_0_clients(start_gateway: StartGateway) -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\n\r\n"
    async with relay(start_gateway, HalfAnswerUpstream(chunks, reset=False)) as (gateway, _):
        body = form(file(b"data"))
        for target in ("/proxy", "/upload"):
            async with Client(gateway.port) as client:
                await client.send(head(target, content_length=len(body)).replace(b"HTTP/1.1", b"HTTP/1.0") + body)
                got = await client.ended()  # the connection ends with the answer
            first, _, rest = got.lower().partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in first
            assert target == "/proxy" or b"content-length: %d" % len(rest) in first
            assert target == "/upload" or rest == b"data"


@pytest.mark.parametrize("kind", ["parts", "fields", "headers", "header bytes"])
async def test_many_tiny_parts(start_gateway: StartGateway, kind: str) -> None:
    limits = {"max_parts": 20, "max_fields_bytes": 100, "max_headers": 5, "max_header_bytes": 1000}
    disposition = b'Content-Disposition: form-data; name="n"'
    bodies = {
        "parts": form(*[file(b"")] * 21),
        "fields": form(*[part(disposition, b"x" * 51)] * 2),
        "headers": form(part(disposition + b"\r\nX: 1" * 5)),
        "header bytes": form(part(disposition + b"\r\nX: " + b"x" * 1000)),
    }
    async with relay(start_gateway, HonestUpstream(200, b"{}"), limits=limits) as (gateway, upstream):
        for target in ("/upload", "/proxy"):
            assert (await post(gateway, bodies[kind], target)).status == 413
        assert not upstream.saw_a_whole_body
        assert gateway.stored() == []


async def test_trailing_crlf_after_the_last_delimiter(start_gateway: StartGateway) -> None:
    body = form(file(b"data"))
    assert (await wire(start_gateway, body.removesuffix(b"\r\n"))).endswith(b"--\r\n")
    gateway = await start_gateway()
    assert (await post(gateway, body.removesuffix(b"--\r\n") + b"\r\n", "/upload")).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n" * (4 * MIB),
        b"\r" * (8 * MIB),
        b"--b0undar" * MIB,
        form(file(b"\r\n--b0undar" * MIB)),
        form(file(b"\r\n--b0undary" * (MIB // 2) + b"x")),
        form(part(b"Content-Disposition: form-data; " + b'a="\\' * 3000)),
    ],
    ids=["CR LF", "CR", "no line end", "near delimiters", "delimiters", "quotes"],
)
async def test_parser_cpu_attacks(start_gateway: StartGateway, body: bytes) -> None:
    gateway = await start_gateway()
    began = time.monotonic()
    async with Client(gateway.port) as client:
        with suppress(ConnectionError):
            await client.send(head("/upload", content_length=len(body)) + body)
        assert (await client.answer()).status in (201, 400, 413)
    assert time.monotonic() - began < 15  # what is quadratic takes hours


@pytest.mark.parametrize("lie", [b"0", b"1", b"1000000000", b"-1", b"0x4", b"four"])
async def test_part_content_length_lies(start_gateway: StartGateway, lie: bytes) -> None:
    lying = part(b'Content-Disposition: form-data; name="f"; filename="a"\r\nContent-Length: ' + lie)
    body = await wire(start_gateway, form(lying, file(b"next")))
    assert b"\r\n\r\ndata\r\n--" in body
    assert b"\r\n\r\nnext\r\n--" in body
    assert b"content-length" not in body.lower()


async def test_nested_multipart_mixed_in_form_data(start_gateway: StartGateway) -> None:
    inner = b'--i\r\nContent-Disposition: file; filename="a"\r\n\r\ndata\r\n--i--'
    nested = part(b'Content-Disposition: form-data; name="files"\r\nContent-Type: multipart/mixed; boundary=i', inner)
    body = await wire(start_gateway, form(nested))
    assert b'name="files"\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n' + inner + b"\r\n--" in body


async def test_content_encoding_gzip_request(start_gateway: StartGateway) -> None:
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        assert (await post(gateway, form(file(b"data")), content_encoding="gzip")).status == 415
        assert (await post(gateway, form(file(b"data")), content_encoding="identity")).status == 200
        assert ["content-encoding" in dict(exchange.headers) for exchange in upstream.exchanges] == [False]


async def test_slow_client_pins_upstream(start_gateway: StartGateway) -> None:
    limits = {"idle_seconds": 0.5}
    async with relay(start_gateway, HonestUpstream(200, b"{}"), limits=limits) as (gateway, upstream):
        async with SilentClient(gateway.port) as client:
            answer = await client.fall_silent_after(head("/proxy", content_length=MIB) + file(b"x" * 100_000))
        assert answer.status == 408
        await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.saw_a_whole_body


async def test_slow_upstream_pins_client_and_memory(start_gateway: StartGateway) -> None:
    limits = {"stall_seconds": 3}
    async with relay(start_gateway, DeafUpstream(), limits=limits) as (gateway, _), Client(gateway.port) as client:
        await client.send(head("/proxy", content_length=1 << 40) + file(b""))
        await client.send_for(2, random_bytes(MIB))
        assert client.sent_bytes < 24 * MIB  # windows and the kernel's buffers; it would have been gigabytes
        answer = await client.answer()
        assert (answer.status, answer.json()["type"]) == (504, "/problems/sink-timeout")


async def test_slow_upstream_pins_client_and_memory_only_where_it_is_required(start_gateway: StartGateway) -> None:
    slow = {"sink": "slow", "mode": "best_effort", "lag_bytes": MIB, "lag_seconds": 1}
    routes = [{"path": "/tee", "parts": [{"sinks": ["disk", "api", slow]}]}]
    async with HonestUpstream(200, b"{}") as upstream, DeafUpstream() as deaf:
        sinks = {"slow": {"type": "relay", "url": deaf.url}}
        gateway = await start_gateway(api=upstream.url, sinks=sinks, routes=routes)
        answer = await post(gateway, form(file(b"x" * 24 * MIB)), "/tee")
        receipts = {one["sink"]: one for one in answer.json()["parts"][0]["receipts"]}
        assert (answer.status, receipts["api"]["status"]) == (201, 200)
        assert receipts["slow"] == {"sink": "slow", "dropped": "lag"}
        assert upstream.exchanges[0].complete
        assert not deaf.saw_a_whole_body


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_buffering_proxies_in_front_of_us(start_gateway: StartGateway, tmp_path: Path, buffering: str) -> None:
    """Behind one that buffers all arrives, but late; with its buffering off (docs/behind-a-proxy.md) it streams."""
    directory = tmp_path / "nginx"
    directory.mkdir()
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, upstream):
        with nginx_before(gateway.url, directory, buffering=buffering) as url:
            body = form(file(b"x" * 2 * MIB))
            async with Client(int(url.rpartition(":")[2])) as client:
                await client.send(head("/proxy", content_length=len(body)) + body[:MIB])
                if buffering == "off":
                    await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > MIB // 2)
                else:
                    await asyncio.sleep(0.5)
                    assert upstream.exchanges == []
                await client.send(body[MIB:])
                assert (await client.answer()).status == 200
        assert upstream.exchanges[0].complete


async def test_unconsumed_part_stalls_stream(start_gateway: StartGateway) -> None:
    sinks = {"early": {"type": "tests.support.doubles:EarlyReturnSink"}}
    routes = [
        {"path": "/early", "parts": [{"sinks": ["early"]}]},
        {"path": "/picky", "parts": [{"match": {"name": "wanted"}, "sinks": ["none"]}]},
    ]
    gateway = await start_gateway(sinks=sinks, routes=routes)
    body = form(file(b"x" * 8 * MIB), file(b"y"))
    assert (await post(gateway, body, "/early")).status == 201
    async with Client(gateway.port) as client:
        await client.send(head("/picky", content_length=len(body)) + body[:1000])
        assert (await client.answer()).status == 422  # at once, not when all has been sent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 1000,
        b"--b0undary",
        b"--b0undary\r\n\r\n",
        b"--b0undary\r\n: x\r\n\r\n\r\n--b0undary--\r\n",
        form(part(b"Content-Disposition: form-data")),
        form(part(b"Content-Disposition: form-data; name=")),
        form(part(b'Content-Disposition: form-data; name="a\0b"')),
        form(part(b'Content-Disposition: form-data; name="f"; filename*=x')),
        form(part(b'Content-Disposition: form-data; name="_charset_"', b"\xff")),
        form(part(b'Content-Disposition: form-data; name="f"\r\nContent-Transfer-Encoding: x-unknown')),
        form(part(b"x" * 100_000)),
    ],
    ids=lambda body: f"{len(body)} bytes",
)
async def test_malformed_input_500(start_gateway: StartGateway, body: bytes) -> None:
    async with relay(start_gateway, HonestUpstream(200, b"{}")) as (gateway, _):
        for target in ("/upload", "/proxy", "/convert"):
            async with Client(gateway.port) as client:
                await client.send(head(target, content_length=len(body), connection="close"))
                with suppress(ConnectionError):
                    await client.send(body)
                answer = await client.answer()
            assert answer.status < 500
            assert answer.status in (200, 201) or answer.json()["status"] == answer.status


async def test_blocking_disk_in_the_loop(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        time.sleep(1)
        fsync(descriptor)

    gateway = await start_gateway(fsync=True)
    monkeypatch.setattr(os, "fsync", slow)
    async with asyncio.TaskGroup() as group:
        uploading = group.create_task(post(gateway, form(file(b"x" * MIB)), "/upload"))
        await reached.wait()
        for _ in range(3):  # while the disk is still busy, others are served
            assert (await ask(gateway.port, "/healthz")).status == 200
        assert not uploading.done()
    assert uploading.result().status == 201


async def test_dns_rebinding_redirects_on_url_pull(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    """What is dialled is looked at when it is dialled; test_download has names that change their minds."""
    secrets: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        secrets.append(request.path)
        return web.Response(text="secret")

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.query["to"])

    app = web.Application()
    app.router.add_get("/secret", answer)
    app.router.add_get("/redirect", redirect)
    server = await start_destination(app)
    name = f"http://localhost:{server.port}"
    closed = await start_gateway(download={"allow": [f"{name}/*", f"{server.url}/*"]})
    for target in (f"{name}/secret", f"{server.url}/secret"):  # listed, but the address is a private one
        assert (await ask(closed.port, f"/download/{target}")).status == 403
    opened = await start_gateway(
        download={"allow": [f"{server.url}/redirect", "http://*/latest/*"], "allow_private": ["127.0.0.0/8"]}
    )
    for to in ("http://169.254.169.254/latest/meta-data", f"{server.url}/secret", "file:///etc/passwd"):
        assert (await ask(opened.port, f"/download/{server.url}/redirect%3Fto={to}")).status in (400, 403)
    assert secrets == []


async def test_http_2_early_reset(start_gateway: StartGateway) -> None:
    """It does not apply: HTTP/1.1 is spoken, whatever a client proposes. Proxies in front may speak HTTP/2."""
    gateway = await start_gateway()
    async with Client(gateway.port) as client:
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        got = await client.ended()
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", got)
    settings = {"upgrade": "h2c", "http2_settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    async with Client(gateway.port) as client:
        body = form(file(b"data"))
        upgrading = head(content_length=len(body), connection="Upgrade, HTTP2-Settings", **settings)
        await client.send(upgrading + body)
        assert (await client.answer()).status == 201


@pytest.mark.sockets
async def test_drain_on_shutdown(tmp_path: Path) -> None:
    body = form(file(b"x" * MIB))
    with gateway_process(tmp_path, "server.drain_seconds = 20") as process:
        async with Client(process.port) as idle, Client(process.port) as client:
            await idle.send(head("/readyz", "GET", content_type=""))
            assert (await idle.answer()).status == 200
            await client.send(head(content_length=len(body)) + body[: MIB // 2])
            await eventually(lambda: any((tmp_path / "uploads").glob(".*/*")))
            os.kill(process.pid, signal.SIGTERM)
            while True:
                try:
                    async with Client(process.port):
                        await asyncio.sleep(0.05)
                except ConnectionError:
                    break
            await idle.send(head("/readyz", "GET", content_type=""))
            assert (await idle.answer()).status == 503
            await client.send(body[MIB // 2 :])
            assert (await client.answer()).status == 201
        assert await asyncio.to_thread(process.wait, 20) == 0
