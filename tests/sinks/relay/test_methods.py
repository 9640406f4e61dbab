"""By which method a destination is asked, and with which query: the client's, as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Client, ask, eventually, file, form, head
from tests.support.doubles import HonestUpstream

BODY = form(file(b"abc"))
EACH = {"path": "/each", "kind": "relay", "keep": "each", "parts": [{"sinks": ["each"]}]}


def _line(upstream: HonestUpstream) -> bytes:
    return bytes(upstream.exchanges[-1].head).partition(b"\r\n")[0]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("length", ["chunked", "spool", "passthrough"])
async def test_a_form_goes_on_by_the_method_that_it_came_by(
    start_gateway: StartGateway, method: str, length: str
) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start_gateway(api=upstream.url, sinks={"api": {"length": length}})
        answer = await ask(gateway.port, "/proxy?a=1", method, BODY, content_length=len(BODY))
        assert (answer.status, answer.body) == (200, b"words")
        assert _line(upstream) == f"{method} /?a=1 HTTP/1.1".encode()
        assert b"\r\n\r\nabc\r\n" in bytes(upstream.exchanges[-1].body)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_forms_go_on_by_their_methods_over_a_kept_connection(
    start_gateway: StartGateway, start_destination: StartDestination, method: str
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url, sinks={"api": {"keepalive_seconds": 5}})
    for _ in range(3):
        answer = await ask(gateway.port, "/proxy", method, BODY, content_length=len(BODY))
        assert (answer.status, answer.json()["parts"][0]["size"]) == (200, 3)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_raw_body_goes_on_as_a_form_by_its_method(start_gateway: StartGateway, method: str) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start_gateway(api=upstream.url)
        answer = await ask(gateway.port, "/proxy", method, b"abc", content_type="text/plain", content_length=3)
        assert answer.status == 200
        assert _line(upstream) == f"{method} / HTTP/1.1".encode()
        assert b'name="file"; filename="file"\r\nContent-Type: text/plain\r\n\r\nabc\r\n' in upstream.exchanges[-1].body


async def test_a_put_without_a_type_is_what_curl_sends(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start_gateway(api=upstream.url)
        assert (await ask(gateway.port, "/proxy", "PUT", b"abc", content_type="")).status == 200
        assert _line(upstream).startswith(b"PUT ")


async def test_multipart_mixed_goes_on_by_put(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start_gateway(api=upstream.url)
        body = b"--b\r\nContent-Type: a/b\r\n\r\nabc\r\n--b--\r\n"
        answer = await ask(gateway.port, "/proxy", "PUT", body, content_type="multipart/mixed; boundary=b")
        assert answer.status == 200
        assert dict(upstream.exchanges[-1].headers)["content-type"].startswith("multipart/mixed; ")


async def test_each_file_goes_on_by_the_method_of_its_upload(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        each = {"type": "relay", "url": upstream.url, "per": "part"}
        route = {**EACH, "kind": "upload"}
        relay = {"path": "/relay", "kind": "relay", "parts": [{"sinks": ["api", "each"]}]}
        gateway = await start_gateway(
            api=upstream.url, sinks={"each": {**each, "length": "spool"}}, routes=[route, relay]
        )
        body = form(file(b"abc"), file(b"def"))
        assert (await ask(gateway.port, "/each", "POST", body)).status == 201
        assert {bytes(exchange.head).partition(b" ")[0] for exchange in upstream.exchanges} == {b"POST"}
        upstream.exchanges.clear()
        assert (await ask(gateway.port, "/relay", "PUT", body)).status == 200
        assert [bytes(exchange.head).partition(b" ")[0] for exchange in upstream.exchanges] == [b"PUT"] * 3


async def test_a_relay_of_an_upload_route_is_posted_to(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        gateway = await start_gateway(api=upstream.url, routes=[{"path": "/upload", "parts": [{"sinks": ["api"]}]}])
        assert (await ask(gateway.port, "/upload/a.txt", "PUT", b"abc", content_type="")).status == 201
        assert _line(upstream).startswith(b"POST ")


@pytest.mark.parametrize("kind", ["relay", "opaque"])
async def test_a_route_takes_the_methods_that_it_names(start_gateway: StartGateway, kind: str) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        route = {"path": "/in", "kind": kind, "methods": ["PUT", "PATCH", "PUT"], "parts": [{"sinks": ["api"]}]}
        gateway = await start_gateway(api=upstream.url, routes=[route])
        for method in ("PUT", "PATCH"):
            answer = await ask(gateway.port, "/in", method, BODY, content_length=len(BODY))
            assert answer.status == 200
        answer = await ask(gateway.port, "/in", "POST", BODY)
        assert (answer.status, answer.headers["allow"]) == (405, "PATCH, PUT")
        assert len(upstream.exchanges) == 2


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ({"kind": "upload", "methods": ["POST"]}, "routes.0.methods: a route of kind upload takes POST and PUT"),
        ({"kind": "convert", "methods": ["POST"]}, "routes.0.methods: a route of kind convert takes POST and PUT"),
        ({"kind": "relay", "methods": []}, "routes.0.methods"),
        ({"kind": "relay", "methods": ["GET"]}, "routes.0.methods.0"),
        ({"kind": "relay", "methods": ["post"]}, "routes.0.methods.0"),
    ],
)
def test_methods_that_mean_nothing_are_a_mistake(tmp_path: Any, route: dict[str, Any], problem: str) -> None:
    methods = ", ".join(f'"{method}"' for method in route["methods"])
    text = f'[[routes]]\npath = "/in"\nkind = "{route["kind"]}"\nmethods = [{methods}]\n'
    text += '[[routes.parts]]\nsinks = ["api"]\n'
    (path := tmp_path / "gateway.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert any(line.startswith(problem) for line in raised.value.problems), raised.value.problems


# -- queries


RAW = {"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]}


@pytest.fixture
async def upstream() -> Any:
    async with HonestUpstream(200, b"words") as upstream:
        yield upstream


@pytest.fixture
async def gateway(start_gateway: StartGateway, upstream: HonestUpstream) -> RunningGateway:
    return await start_gateway(api=f"{upstream.url}in?z=1", routes=[RAW])


async def _status(gateway: RunningGateway, target: bytes) -> int:
    async with Client(gateway.port) as client:
        request = head("/TARGET", content_length=len(BODY), connection="close").replace(b"/TARGET", target)
        await client.send(request + BODY)
        return (await client.answer()).status


@pytest.mark.parametrize("path", [b"/proxy", b"/raw"])
@pytest.mark.parametrize(
    "query",
    [
        b"a=1&a=2&b=%23&c=%2F%2f%7e",
        b"q=a+b%20c&x=http://h/?y",
        b"a[]=1&{x}|^`'\"<>\\",
        b"a=%zz&%",
        "ä=ö".encode(),
        b"a=\xe9",
    ],
)
async def test_a_query_goes_on_as_it_is_written_or_not_at_all(
    gateway: RunningGateway, upstream: HonestUpstream, path: bytes, query: bytes
) -> None:
    status = await _status(gateway, path + b"?" + query)
    if status == 200:
        assert _line(upstream) == b"POST /in?z=1&" + query + b" HTTP/1.1"
    else:
        assert status == 400
        assert not upstream.exchanges


@pytest.mark.parametrize("path", [b"/proxy", b"/raw"])
@pytest.mark.parametrize("query", [b"?a=1#z", b"?#", b"#", b"?a=#b=2", b"?a=1?b#"])
async def test_a_fragment_is_refused(
    gateway: RunningGateway, upstream: HonestUpstream, path: bytes, query: bytes
) -> None:
    assert await _status(gateway, path + query) == 400
    assert not upstream.exchanges


@pytest.mark.parametrize("written", ["/h%2Fz?k=%2F", "/", "/a//b", "/a/../b?c", "/%7e~?q=a+b%20c&%c3"])
async def test_a_health_path_goes_out_as_it_is_written(start_gateway: StartGateway, written: str) -> None:
    async with HonestUpstream(200, b"words") as upstream:
        sink = {"url": f"{upstream.url}in%2F?z=1", "health_path": written, "health_seconds": 60}
        await start_gateway(sinks={"api": sink})
        await eventually(lambda: bool(upstream.exchanges and upstream.exchanges[0].head))
        assert _line(upstream) == f"GET {written} HTTP/1.1".encode()


def test_settings_know_the_default_methods() -> None:
    by_path = {route.path: route.methods for route in Settings().as_routes()}
    everywhere = ("POST", "PUT")
    assert by_path == {"/upload": everywhere, "/convert": everywhere, "/proxy": ("POST", "PUT", "PATCH")}
