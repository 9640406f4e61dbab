"""Routes of kind opaque: a body of any type, passed on byte for byte to one destination."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings
from tests.conftest import RunningGateway, StartGateway
from tests.contract import eventually, nothing_left_running
from tests.support.clients import Answer, Client, VanishingClient, ask, chunked, head, random_bytes
from tests.support.doubles import DeafUpstream, DyingUpstream, HonestUpstream, MuteUpstream, RefusingUpstream, Upstream

ROUTE = {"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]}


async def start(start_gateway: StartGateway, upstream: Upstream, **document: Any) -> RunningGateway:
    return await start_gateway(api=upstream.url, routes=[ROUTE], **document)


async def send(gateway: RunningGateway, body: bytes, method: str = "POST", **headers: str | int) -> Answer:
    return await ask(gateway.port, "/raw", method, body, **{"content_type": "application/x-own", **headers})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
async def test_a_body_with_a_length_goes_on_with_it(start_gateway: StartGateway, method: str, size: int) -> None:
    body = random_bytes(size)
    async with nothing_left_running(), HonestUpstream(207, b"words", ("X-Own", "1")) as upstream:
        gateway = await start(start_gateway, upstream)
        answer = await send(gateway, body, method, content_length=size)
        assert (answer.status, answer.body, answer.headers["x-own"]) == (207, b"words", "1")
        (exchange,) = upstream.exchanges
        assert exchange.head.startswith(f"{method} / HTTP/1.1".encode())
        headers = dict(exchange.headers)
        assert (headers["content-length"], headers["content-type"]) == (str(size), "application/x-own")
        assert "transfer-encoding" not in headers
        assert (exchange.complete, bytes(exchange.body)) == (True, body)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_chunks_stay_chunks(start_gateway: StartGateway, size: int) -> None:
    body = random_bytes(size)
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        async with Client(gateway.port) as client:
            await client.send(head("/raw", "PUT", transfer_encoding="chunked", content_type="a/b") + chunked(body))
            assert (await client.answer()).status == 200
        (exchange,) = upstream.exchanges
        assert dict(exchange.headers)["transfer-encoding"] == "chunked"
        assert "content-length" not in dict(exchange.headers)
        assert (exchange.complete, bytes(exchange.body)) == (True, body)


@pytest.mark.parametrize(
    "content_type",
    ["", "multipart/form-data", "multipart/related; boundary=x", "text/plain;  charset=UTF-8", "nonsense"],
)
async def test_a_body_of_any_type_passes_as_what_it_says_that_it_is(
    start_gateway: StartGateway, content_type: str
) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        assert (await send(gateway, b"--x--", content_type=content_type)).status == 200
        assert dict(upstream.exchanges[0].headers).get("content-type", "") == content_type
        assert bytes(upstream.exchanges[0].body) == b"--x--"


async def test_what_the_client_says_of_its_body_stays_true(start_gateway: StartGateway) -> None:
    said = {
        "content_encoding": "gzip",
        "content_language": "de",
        "content_disposition": "attachment; filename=a; filename=b",
        "content_range": "bytes 0-3/10",
        "repr_digest": "sha-256=:AAAA:",
        "content_digest": f"sha-256=:{base64.b64encode(hashlib.sha256(b'body').digest()).decode()}:",
    }
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream, sinks={"api": {"headers": {"X-Api-Key": "k"}}})
        answer = await send(gateway, b"body", "PUT", cookie="a=1", x_request_id="mine", **said)
        assert answer.status == 200
        headers = dict(upstream.exchanges[0].headers)
    assert {name.replace("-", "_"): headers[name] for name in headers if name.replace("-", "_") in said} == said
    assert (headers["x-api-key"], headers["x-request-id"], headers["via"]) == ("k", "mine", "1.1 gateway")
    assert "cookie" not in headers
    assert answer.headers["x-request-id"] == "mine"


async def test_bytes_that_are_not_the_declared_ones_never_make_a_whole_request(start_gateway: StartGateway) -> None:
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        answer = await send(gateway, random_bytes(3_000_000), content_digest=f"sha-256=:{digest}:")
        assert (answer.status, answer.json()["type"]) == (400, "/problems/digest-mismatch")
        assert not upstream.saw_a_whole_body


async def test_the_query_goes_along(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        await ask(gateway.port, "/raw?a=%20b", "PUT", b"x", content_type="")
        assert upstream.exchanges[0].target == "/?a=%20b"


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_vanishes_leaves_a_request_without_an_end(
    start_gateway: StartGateway, how: Any, framing: str
) -> None:
    """Of a declared length all but the last byte has gone: the destination must not get that one from us."""
    body = random_bytes(1_000_000)
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        async with nothing_left_running():
            if framing == "length":
                request = head("/raw", "PUT", content_length=len(body), content_type="") + body[:-1]
            else:
                coded = chunked(body)
                request = head("/raw", "PUT", transfer_encoding="chunked", content_type="") + coded[:-5]
            async with VanishingClient(gateway.port) as client:
                await client.send(request)
                await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 900_000)
                await client.vanish_after(b"", how)
                await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.exchanges[0].complete
        assert len(upstream.exchanges) == 1


async def test_a_request_is_not_complete_before_the_body_is(start_gateway: StartGateway) -> None:
    body = random_bytes(300_000)
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream)
        async with Client(gateway.port) as client:
            await client.send(head("/raw", "PUT", content_length=len(body), content_type="") + body[:-1])
            await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 200_000)
            await asyncio.sleep(0.1)
            assert not upstream.exchanges[0].complete
            await client.send(body[-1:])
            assert (await client.answer()).status == 200
        assert bytes(upstream.exchanges[0].body) == body


async def test_its_limits_are_those_of_any_body(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream, limits={"max_file_bytes": 1000, "idle_seconds": 0.3})
        declared = await send(gateway, b"x" * 1001)
        assert (declared.status, declared.json()["type"]) == (413, "/problems/too-large")
        assert upstream.exchanges == []  # refused on its headers
        async with Client(gateway.port) as client:
            request = head("/raw", transfer_encoding="chunked", content_type="") + chunked(b"x" * 1001, 500)
            await client.send(request)
            assert (await client.answer()).status == 413
        async with Client(gateway.port) as client:
            await client.send(head("/raw", content_length=900, content_type="") + b"x" * 800)
            assert (await client.answer()).status == 408
        assert not upstream.saw_a_whole_body


async def test_an_early_refusal_of_the_destination_is_the_clients_to_read(start_gateway: StartGateway) -> None:
    async with RefusingUpstream(413, b'"too much"', after=100_000) as upstream:
        gateway = await start(start_gateway, upstream)
        async with nothing_left_running():
            answer = await send(gateway, random_bytes(3_000_000))
        assert (answer.status, answer.body) == (413, b'"too much"')
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize(
    ("make", "status", "word"),
    [
        (lambda: DyingUpstream(after=100_000), 502, "connection_terminated"),
        (MuteUpstream, 504, "http_response_timeout"),
        (DeafUpstream, 504, "connection_write_timeout"),
    ],
    ids=["dies", "is mute", "is deaf"],
)
async def test_a_destination_that_fails_has_the_usual_answers(
    start_gateway: StartGateway, make: Any, status: int, word: str
) -> None:
    async with make() as upstream:
        gateway = await start(start_gateway, upstream, limits={"stall_seconds": 0.5})
        async with nothing_left_running():
            answer = await send(gateway, random_bytes(20_000_000), "PUT")
        assert (answer.status, answer.json()["sink"]) == (status, "api")
        assert answer.headers["proxy-status"].startswith(f"gateway; error={word}; ")
        assert len(upstream.exchanges) == 1


async def test_a_destination_that_takes_no_chunks_can_have_a_length(start_gateway: StartGateway) -> None:
    body = random_bytes(1_000_000)
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream, sinks={"api": {"length": "spool"}})
        async with Client(gateway.port) as client:
            await client.send(head("/raw", transfer_encoding="chunked", content_type="") + chunked(body))
            assert (await client.answer()).status == 200
        assert dict(upstream.exchanges[0].headers)["content-length"] == str(len(body))
        assert bytes(upstream.exchanges[0].body) == body


async def test_where_only_a_known_length_will_do_chunks_are_refused(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start(start_gateway, upstream, sinks={"api": {"length": "known"}})
        async with Client(gateway.port) as client:
            await client.send(head("/raw", transfer_encoding="chunked", content_type="", expect="100-continue"))
            answer = await client.answer()
        assert (answer.status, answer.json()["type"]) == (411, "/problems/length-required")
        assert (await send(gateway, b"known")).status == 200


async def test_other_methods_are_not_allowed(start_gateway: StartGateway) -> None:
    async with HonestUpstream() as upstream:
        answer = await ask((await start(start_gateway, upstream)).port, "/raw", "GET")
    assert (answer.status, answer.headers["allow"]) == (405, "PATCH, POST, PUT")


async def test_a_client_of_the_library_sees_what_the_destination_said(start_gateway: StartGateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    async with HonestUpstream(302, b"there", ("Location", "/elsewhere")) as upstream, ClientSession() as session:
        gateway = await start(start_gateway, upstream)
        async with session.post(gateway.url + "/raw", data=pieces(), allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, "/elsewhere")
        assert len(upstream.exchanges[0].body) == 1_000_000


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"sinks": ["disk"]}],
        [{"sinks": ["api", "disk"]}],
        [{"sinks": ["api"]}, {"sinks": ["api"]}],
        [{"sinks": ["api"], "flows": ["gzip"]}],
        [{"sinks": [{"sink": "api", "mode": "best_effort"}]}],
        [{"sinks": ["api"], "match": {"content_type": "a/*"}}],
    ],
)
def test_a_route_that_could_not_pass_bodies_on_as_they_are_is_a_mistake(
    tmp_path: Any, parts: list[dict[str, Any]]
) -> None:
    rules = re.sub(r'"(\w+)": ', r"\1 = ", str(parts).replace("'", '"'))
    (tmp_path / "gateway.toml").write_text(f'[[routes]]\npath = "/raw"\nkind = "opaque"\nparts = {rules}\n')
    with pytest.raises(ConfigError, match=r"^routes\.0\.kind: a route of kind opaque has one rule"):
        load(tmp_path / "gateway.toml")


def test_its_bodies_are_not_hashed_unless_one_says_so() -> None:
    settings = Settings.model_validate({"routes": [ROUTE]})
    assert next(route.digests for route in settings.as_routes() if route.path == "/raw") == ()
