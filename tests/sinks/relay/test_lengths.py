"""How a destination learns the length of a body: passthrough, known, spooled, and what has to be refused."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.contract import eventually, nothing_left_running
from tests.support.clients import (
    BOUNDARY,
    FORM_TYPE,
    Answer,
    Client,
    VanishingClient,
    chunked,
    file,
    form,
    head,
    random_bytes,
)
from tests.support.doubles import (
    DyingUpstream,
    HonestUpstream,
    LengthDemandingUpstream,
    MuteUpstream,
    RefusingUpstream,
    Upstream,
)

STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
BOTH_KINDS = pytest.mark.parametrize("path", ["/proxy", "/store"])
LARGE = random_bytes(3_000_000)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def relay(
    start_gateway: StartGateway,
    upstream: Upstream,
    length: str | list[str],
    limits: dict[str, Any] | None = None,
    **sink: Any,
) -> RunningGateway:
    sinks = {"api": {"url": upstream.url, "length": length, **sink}}
    return await start_gateway(sinks=sinks, routes=STORE, limits=limits or {})


async def send(gateway: RunningGateway, path: str, body: bytes, *, in_chunks: bool = False, **headers: Any) -> Answer:
    framing = {"transfer_encoding": "chunked"} if in_chunks else {"content_length": len(body)}
    async with Client(gateway.port) as client:
        await client.send(head(path, **{**framing, **headers}) + (chunked(body) if in_chunks else body))
        return await client.answer()


def kind(answer: Answer) -> str:
    return str(answer.json()["type"].rpartition("/")[2])


AWKWARD = {
    "plain": form(file(b"data")),
    "large": form(file(b"first", name="note"), file(LARGE), file(b"")),
    "many": form(*(file(b"x" * size, f"{size}.bin") for size in range(300))),
    "no parts": b"--%b--\r\n" % BOUNDARY,
    "preamble, epilogue": b"look here\r\n--%b\r\nContent-Disposition: form-data; NAME=a\r\n"
    b"X-Own: kept\r\n\r\nx\r\n--%b--\r\nand that was it" % (BOUNDARY, BOUNDARY),
    "no line end at the end": form(file(b"data"))[:-2],
    "an old dialect": b'--%b\r\ncontent-disposition:form-data;name="a\\"b";filename="C:\\x.txt"\r\n'
    b"\r\n\r\n\r\n--%b--\r\n" % (BOUNDARY, BOUNDARY),
}


# -- passthrough


@BOTH_KINDS
@pytest.mark.parametrize("in_chunks", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("body", AWKWARD.values(), ids=AWKWARD)
async def test_passthrough_keeps_every_byte_and_the_framing(
    start_gateway: StartGateway, path: str, body: bytes, in_chunks: bool
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        async with nothing_left_running():
            answer = await send(gateway, path, body, in_chunks=in_chunks)
        assert answer.status == (200 if path == "/proxy" else 201)
        if path == "/store" and body == AWKWARD["no parts"]:
            assert upstream.exchanges == [] or upstream.whole_bodies == [body]
            return
        assert upstream.whole_bodies == [body]
        headers = dict(upstream.exchanges[0].headers)
        assert headers["content-type"] == FORM_TYPE
        assert headers.get("content-length") == (None if in_chunks else str(len(body)))


async def test_passthrough_still_tells_what_came_in(start_gateway: StartGateway) -> None:
    async with HonestUpstream(202) as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        manifest = (
            await send(gateway, "/store", form(file(LARGE, name="a"), file(b"", filename=""), file(b"x")))
        ).json()
    assert [part["size"] for part in manifest["parts"]] == [len(LARGE), 0, 1]
    assert manifest["parts"][0]["sha256"] == hashlib.sha256(LARGE).hexdigest()
    receipt = [{"sink": "api", "status": 202, "location": None}]
    assert [part["receipts"] for part in manifest["parts"]] == [receipt, [], receipt]


@pytest.mark.parametrize("in_chunks", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 100, 1_000_000])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_passthrough_of_a_raw_body_is_that_body_under_its_own_type(
    start_gateway: StartGateway, method: str, size: int, in_chunks: bool
) -> None:
    data = random_bytes(size)
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        path = "/store/a.txt" if method == "PUT" else "/proxy"
        answer = await send(gateway, path, data, in_chunks=in_chunks, method=method, content_type="text/x; a=b")
        assert answer.status in (200, 201)
        assert upstream.whole_bodies == [data]
        headers = dict(upstream.exchanges[0].headers)
        assert headers["content-type"] == "text/x; a=b"
        assert headers.get("content-length") == (None if in_chunks else str(size))


HEAD = b'--%b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n' % BOUNDARY
REFUSED = {
    "no closing delimiter": (form(file(LARGE), file(b"x" * 100_000))[:-4], {}, "truncated"),
    "half a delimiter": (form(file(LARGE))[:-8], {}, "truncated"),
    "a nameless part": (form(file(LARGE), b"--%b\r\nX: y\r\n\r\ndata" % BOUNDARY), {}, "malformed"),
    "a bare LF": (file(LARGE) + b"\r\n--%b\nX: y\n\n" % BOUNDARY + form(), {}, "malformed"),
    "a file too large": (form(file(LARGE)), {"max_file_bytes": 2_500_000}, "too-large"),
    "a body too large": (form(file(LARGE)), {"max_body_bytes": 2_500_000}, "too-large"),
    "parts too many": (form(file(LARGE), *[file(b"")] * 9), {"max_parts": 9}, "too-many-parts"),
    "headers too long": (form(file(LARGE), HEAD + b"X: %b\r\n\r\n" % (b"y" * 20_000)), {}, "too-large"),
    "a digest that is wrong": (
        form(HEAD + b"Content-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==\r\n\r\n" + LARGE),
        {},
        "digest-mismatch",
    ),
    "an epilogue too long": (form(file(LARGE)) + b"x" * 70_000, {}, "too-large"),
}


@BOTH_KINDS
@pytest.mark.parametrize("in_chunks", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize(("body", "limits", "slug"), REFUSED.values(), ids=REFUSED)
async def test_passthrough_rejects_what_the_parser_rejects_and_breaks_the_request_off(
    start_gateway: StartGateway, path: str, body: bytes, limits: dict[str, Any], slug: str, in_chunks: bool
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough", limits)
        async with nothing_left_running():
            answer = await send(gateway, path, body, in_chunks=in_chunks)
        assert kind(answer) == slug
        await eventually(lambda: all(exchange.lost for exchange in upstream.exchanges))
        assert not upstream.saw_a_whole_body


@BOTH_KINDS
@pytest.mark.parametrize("raw", [False, True], ids=["form", "raw"])
async def test_passthrough_of_a_body_whose_client_vanishes_is_never_complete(
    start_gateway: StartGateway, path: str, raw: bool
) -> None:
    body = LARGE if raw else form(file(LARGE))
    kind = {"content_type": "text/x"} if raw else {}
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        async with nothing_left_running(), VanishingClient(gateway.port) as client:
            await client.vanish_after(head(path, content_length=len(body), **kind) + body[:-1], "fin")
            await eventually(lambda: gateway.services.gate.in_flight == 0)
        await eventually(lambda: all(exchange.lost for exchange in upstream.exchanges))
        assert upstream.whole_bodies == []


async def test_the_last_byte_of_a_raw_body_waits_until_its_digest_was_looked_at(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        answer = await send(gateway, "/proxy", LARGE, content_type="text/x", content_md5="1B2M2Y8AsgTpgAmY7PhCfg==")
        assert kind(answer) == "digest-mismatch"
        await eventually(lambda: upstream.exchanges[0].lost)
        assert len(upstream.exchanges[0].body) < len(LARGE)


async def test_a_form_that_declares_less_than_it_has_is_truncated_on_both_sides(start_gateway: StartGateway) -> None:
    body = form(file(LARGE))
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        answer = await send(gateway, "/proxy", body, content_length=len(body) - 10)
        assert kind(answer) == "truncated"
        await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.saw_a_whole_body


async def test_an_early_answer_reaches_the_client_of_a_passthrough(start_gateway: StartGateway) -> None:
    async with RefusingUpstream(413, b'"too much"', after=500_000) as upstream:
        gateway = await relay(start_gateway, upstream, "passthrough")
        answer = await send(gateway, "/proxy", form(file(LARGE)))
        assert (answer.status, answer.json()) == (413, "too much")


# -- known


@pytest.mark.parametrize("size", [0, 1, 100, 1_000_000])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_the_length_of_the_form_around_a_raw_body_is_known(
    start_gateway: StartGateway, method: str, size: int
) -> None:
    data = random_bytes(size)
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "known")
        path = "/store/n%C3%A4me.txt" if method == "PUT" else "/proxy"
        answer = await send(gateway, path, data, method=method, content_type="text/x")
        assert answer.status in (200, 201)
        (exchange,) = upstream.exchanges
        assert exchange.complete
        assert exchange.closing_delimiter_seen
        assert exchange.length == len(exchange.body)
        assert b"\r\n\r\n" + data + b"\r\n--" in exchange.body


@BOTH_KINDS
@pytest.mark.parametrize("raw", [False, True], ids=["form", "raw"])
async def test_what_does_not_declare_its_length_is_refused_before_it_is_asked_for(
    start_gateway: StartGateway, path: str, raw: bool
) -> None:
    async with MuteUpstream() as upstream:
        gateway = await relay(start_gateway, upstream, "known")
        framing = {"transfer_encoding": "chunked", "content_type": "text/x"} if raw else {"content_length": 1000}
        async with nothing_left_running(), Client(gateway.port) as client:
            await client.send(head(path, expect="100-continue", **framing))
            answer = await client.answer()
        assert (answer.status, kind(answer), answer.json()["sink"]) == (411, "length-required", "api")
        assert upstream.exchanges == []
        assert gateway.services.gate.in_flight == 0


async def test_of_several_ways_the_first_that_can_be_used_is(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, ["known", "spool"], replay_bytes=0)
        assert (await send(gateway, "/proxy", LARGE, content_type="text/x")).status == 200
        assert (await send(gateway, "/proxy", LARGE, content_type="text/x", in_chunks=True)).status == 200
        assert (await send(gateway, "/proxy", form(file(LARGE)))).status == 200
        assert all(exchange.complete and exchange.length is not None for exchange in upstream.exchanges)
        assert len(upstream.exchanges) == 3
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, ["passthrough", "spool"])
        body = form(file(LARGE))
        for in_chunks in (False, True):
            assert (await send(gateway, "/proxy", body, in_chunks=in_chunks)).status == 200
        assert upstream.whole_bodies == [body, body]
        assert [exchange.length for exchange in upstream.exchanges] == [len(body)] * 2


# -- spooled


@pytest.mark.parametrize("in_chunks", [False, True], ids=["declared", "chunked"])
async def test_a_spooled_body_is_sent_whole_with_its_length_and_leaves_nothing(
    start_gateway: StartGateway, tmp_path: Path, in_chunks: bool
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "spool", spool_dir=str(spool))
        before = open_files()
        async with nothing_left_running():
            body = form(file(b"first"), file(LARGE), file(b"last"))
            assert (await send(gateway, "/proxy", body, in_chunks=in_chunks)).status == 200
            assert (await send(gateway, "/store", form(file(b"small")))).status == 201
        for exchange in upstream.exchanges:
            assert exchange.length == len(exchange.body)
            assert exchange.closing_delimiter_seen
        assert LARGE in upstream.exchanges[0].body
        await eventually(lambda: open_files() <= before)
        assert list(spool.iterdir()) == []


async def test_no_request_is_made_for_a_spooled_body_before_it_is_whole(start_gateway: StartGateway) -> None:
    body = form(file(LARGE))
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "spool")
        before = open_files()
        async with nothing_left_running():
            assert kind(await send(gateway, "/proxy", body[:-8])) == "truncated"
            async with VanishingClient(gateway.port) as client:
                await client.vanish_after(head("/proxy", content_length=len(body)) + body[:2_000_000], "rst")
            await eventually(lambda: gateway.services.gate.in_flight == 0)
        assert upstream.exchanges == []
        await eventually(lambda: open_files() <= before)


async def test_a_directory_that_cannot_be_spooled_to_is_an_unavailable_sink(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        (tmp_path / "spool").mkdir()
        gateway = await relay(start_gateway, upstream, "spool", spool_dir=str(tmp_path / "spool"))
        (tmp_path / "spool").rmdir()
        assert kind(await send(gateway, "/proxy", form(file(LARGE)))) == "sink-unavailable"
        assert upstream.exchanges == []


async def test_a_spool_that_is_full_is_a_full_sink(start_gateway: StartGateway) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await relay(start_gateway, upstream, "spool")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            answer = await send(gateway, "/proxy", form(file(LARGE)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (answer.status, kind(answer), answer.json()["sink"]) == (507, "sink-full", "api")
        assert upstream.exchanges == []


async def test_a_spooled_body_outlives_a_destination_that_dies(start_gateway: StartGateway) -> None:
    async with DyingUpstream(after=500_000) as dying, HonestUpstream(200, b"{}") as upstream:
        sinks = {"api": {"urls": [dying.url, upstream.url], "length": "spool", "replay_bytes": 0}}
        gateway = await start_gateway(sinks=sinks)
        async with nothing_left_running():
            for _ in range(2):
                assert (await send(gateway, "/proxy", form(file(LARGE)))).status == 200
        assert not dying.saw_a_whole_body
        assert len(dying.exchanges) == 1
        assert len(upstream.whole_bodies) == 2


# -- learned


@pytest.mark.parametrize("refusal", [411, 501])
@pytest.mark.parametrize("length", ["chunked", "passthrough"])
async def test_a_destination_that_wants_a_length_gets_one_from_then_on(
    start_gateway: StartGateway, refusal: int, length: str
) -> None:
    async with LengthDemandingUpstream(refusal) as upstream:
        gateway = await relay(start_gateway, upstream, length, replay_bytes=8 << 20)
        async with nothing_left_running():
            for _ in range(3):
                answer = await send(gateway, "/proxy", form(file(LARGE)), in_chunks=True)
                assert (answer.status, answer.json()) == (200, {})
        assert [exchange.length is None for exchange in upstream.exchanges] == [True, False, False, False]
        assert [exchange.complete for exchange in upstream.exchanges] == [False, True, True, True]


async def test_one_that_wants_a_length_too_late_has_its_refusal_passed_on_and_gets_one_next_time(
    start_gateway: StartGateway,
) -> None:
    async def slowly(client: Client) -> None:
        body = chunked(form(file(LARGE)))
        await client.send(head("/proxy", transfer_encoding="chunked") + body[:100_000])
        await eventually(lambda: bool(upstream.exchanges) and upstream.exchanges[0].answered)

    async with LengthDemandingUpstream() as upstream:
        gateway = await relay(start_gateway, upstream, "chunked", replay_bytes=0)
        async with Client(gateway.port) as client:
            await slowly(client)
            answer = await client.answer()
        assert (answer.status, answer.json()) == (411, "a length, please")
        assert (await send(gateway, "/proxy", form(file(LARGE)))).status == 200
        assert len(upstream.whole_bodies) == 1


async def test_411_after_the_end_has_the_body_sent_again_and_501_has_not(start_gateway: StartGateway) -> None:
    for refusal, status in ((411, 200), (501, 501)):
        async with LengthDemandingUpstream(refusal, at_the_end=True) as upstream:
            gateway = await relay(start_gateway, upstream, "chunked")
            answer = await send(gateway, "/proxy", form(file(b"small")))
            assert answer.status == status
            assert len(upstream.exchanges) == (2 if refusal == 411 else 1)


# -- a server that knows no chunks


@pytest.mark.parametrize("length", ["spool", "passthrough", "known"])
async def test_an_application_under_wsgiref_gets_the_whole_body(start_gateway: StartGateway, length: str) -> None:
    """The standard library's server reads as many bytes as were declared, and of a chunked body none."""
    got: list[bytes] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        got.append(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)))
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
        return [b"{}"]

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            sink = {"url": f"http://127.0.0.1:{server.server_port}/", "length": length}
            gateway = await start_gateway(sinks={"api": sink})
            body, kind = (LARGE, "text/x") if length == "known" else (form(file(LARGE)), FORM_TYPE)
            assert (await send(gateway, "/proxy", body, content_type=kind)).json() == {}
        finally:
            server.shutdown()
            serving.join()
    assert len(got) == 1
    assert LARGE in got[0]
    assert got[0].rstrip().endswith(b"--")
