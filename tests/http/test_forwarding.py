"""What headers go along, both ways: the rules alone, and then over sockets."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.errors import GatewayError, Incomplete, SinkRefused, SinkTimeout, SinkUnavailable
from gateway.http.forwarding import (
    HeaderRules,
    answer_headers,
    believed,
    check_forwarded_header,
    check_static_header,
    end_to_end,
    outbound_headers,
    proxy_status,
    request_id,
)
from gateway.model import Upload
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Answer, Client, ask, chunked, file, form, head
from tests.support.doubles import DyingUpstream, HonestUpstream, MuteUpstream, RefusingUpstream, Upstream
from tests.support.ports import free_port

STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]
ULID = "0123456789ABCDEFGHJKMNPQRS"


def upload(*headers: tuple[str, str], **more: Any) -> Upload:
    return Upload(ULID, "/proxy", "relay", headers=headers, **{"peer": "192.0.2.7", "host": "g:8080", **more})


def sent(what: Upload, rules: HeaderRules | None = None) -> dict[str, str]:
    headers = outbound_headers(what, rules or HeaderRules())
    assert len({name.lower() for name, _ in headers}) == len(headers)
    return {name.lower(): value for name, value in headers}


class TestEndToEnd:
    def test_what_connection_names_ends_here_whatever_its_case(self) -> None:
        headers = [("Connection", "close, X-Hop ,"), ("CONNECTION", "x-other"), ("x-hop", "1"), ("X-Other", "2")]
        assert end_to_end([*headers, ("X-Kept", "3")]) == [("X-Kept", "3")]

    @pytest.mark.parametrize(
        "name",
        ["Keep-Alive", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings"],
    )
    def test_hop_by_hop_headers_end_here(self, name: str) -> None:
        assert end_to_end([(name, "x")]) == []

    def test_obs_text_goes_along(self) -> None:
        headers = [("A", "\udce4"), ("B", "ä")]
        assert end_to_end(headers) == headers


class TestRequestId:
    @pytest.mark.parametrize("value", ["a", "x" * 128, 'f"\\;,=%~!', "7d9b6f6c-1b7a-4f33-8f0e-111111111111"])
    def test_a_clients_own_is_taken(self, value: str) -> None:
        assert request_id([value], ULID) == value

    @pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a\tb", "ä", "\udce4", "a\x7f"])
    def test_one_that_is_no_visible_ascii_is_made_anew(self, value: str) -> None:
        assert request_id([value], ULID) == ULID

    def test_of_two_nobody_knows_which_is_meant(self) -> None:
        assert request_id(["a", "b"], ULID) == ULID


class TestVia:
    def test_it_is_appended_to_with_the_version_that_the_sender_spoke(self) -> None:
        assert sent(upload())["via"] == "1.1 gateway"
        assert sent(upload(("Via", "1.0 a"), ("via", "2 b"), protocol="1.0"))["via"] == "1.0 a, 2 b, 1.0 gateway"

    def test_an_answer_says_so_too(self) -> None:
        assert answer_headers([("Via", "1.1 x"), ("A", "b")], status=200, protocol="1.1", gateway="gateway") == [
            ("A", "b"),
            ("Via", "1.1 x, 1.1 gateway"),
        ]


class TestCredentials:
    @pytest.mark.parametrize(
        ("allowed", "got"),
        [
            (False, None),
            (True, "a=1; b=2;c = x=y ; a=3"),
            (["a"], "a=1; a=3"),
            (["c", "b"], "b=2; c = x=y"),
            (["A"], None),
        ],
    )
    def test_cookies_go_where_their_names_are_allowed(self, allowed: bool | Sequence[str], got: str | None) -> None:
        what = upload(("Cookie", "a=1; b=2;c = x=y ; a=3"))
        assert sent(what, HeaderRules(forward_cookies=allowed)).get("cookie") == got

    @pytest.mark.parametrize(
        ("allowed", "goes"), [(False, False), (True, True), (["BEARER"], True), (["basic"], False), ([], False)]
    )
    def test_authorization_goes_where_its_scheme_is_allowed(self, allowed: bool | Sequence[str], goes: bool) -> None:
        what = upload(("Authorization", "Bearer x"))
        assert ("authorization" in sent(what, HeaderRules(forward_authorization=allowed))) is goes

    def test_proxy_authorization_never_goes(self) -> None:
        every = HeaderRules(forward_cookies=True, forward_authorization=True)
        assert "proxy-authorization" not in sent(upload(*believed([("Proxy-Authorization", "x")], trusted=True)), every)


class TestAllowedHeaders:
    def test_without_a_list_all_go_on(self) -> None:
        assert sent(upload(("X-A", "1"), ("x-b", "2"))).keys() >= {"x-a", "x-b"}

    @pytest.mark.parametrize(("allowed", "kept"), [([], set()), (["x-a"], {"x-a"}), (["x-b", "x-c"], {"x-b"})])
    def test_with_one_those_on_it_and_what_has_rules_of_its_own(self, allowed: list[str], kept: set[str]) -> None:
        what = upload(("X-A", "1"), ("x-b", "2"), ("Authorization", "Bearer x"), ("Content-Language", "de"))
        rules = HeaderRules(forward_headers=allowed, forward_authorization=True, headers=[("X-Own", "3")])
        made = {"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via", "incremental"}
        assert sent(what, rules).keys() == kept | made | {"authorization", "x-own"}
        assert ("Content-Language", "de") in outbound_headers(what, rules, unchanged=True)

    @pytest.mark.parametrize(
        "name", ["Cookie", "authorization", "Proxy", "X_A", "a b", "", "TE", "Host", "Content-Type", "Forwarded", "Via"]
    )
    def test_a_name_that_none_can_let_through_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"credential|never goes on|made by the gateway"):
            check_forwarded_header(name)


class TestStaticHeaders:
    def test_they_replace_the_clients_and_ours(self) -> None:
        rules = HeaderRules(headers=[("X-Api-Key", "secret"), ("Authorization", "Basic y"), ("forwarded", "for=_us")])
        what = upload(("x-api-key", "guess"), ("X-API-KEY", "again"), ("Authorization", "Bearer x"))
        headers = sent(what, rules)
        assert (headers["x-api-key"], headers["authorization"], headers["forwarded"]) == (
            "secret",
            "Basic y",
            "for=_us",
        )

    @pytest.mark.parametrize("name", ["x-api-key", "X_Api_Key", "x.api.key", "X-API_KEY"])
    def test_they_replace_all_that_is_one_with_them_to_a_cgi(self, name: str) -> None:
        rules = HeaderRules(headers=[("X-Api-Key", "secret")])
        assert [pair for pair in outbound_headers(upload((name, "guess")), rules) if "key" in pair[0].lower()] == [
            ("X-Api-Key", "secret")
        ]

    def test_their_values_are_not_shown(self) -> None:
        assert "secret" not in repr(HeaderRules(headers=[("X-Api-Key", "secret")]))

    @pytest.mark.parametrize(
        "name",
        ["", "a b", "a:", "ä", "Host", "connection", "TE", "Content-Length", "content-type", "Transfer-Encoding"],
    )
    def test_framing_and_what_is_no_name_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"header name|made by the gateway"):
            check_static_header(name, "x")

    @pytest.mark.parametrize("value", ["sec\nret", "sec\0ret", " secret", "s\u00e9cret", "sec\x7fret"])
    def test_a_value_that_cannot_be_sent_is_refused_without_being_told(self, value: str) -> None:
        with pytest.raises(ValueError, match="X-Api-Key") as caught:
            check_static_header("X-Api-Key", value)
        assert "ret" not in str(caught.value)


class TestProxyStatus:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (SinkUnavailable("", sink="a"), 'gateway; error=destination_unavailable; next-hop="a"'),
            (SinkUnavailable("", reason="connection_refused"), "gateway; error=connection_refused"),
            (SinkTimeout("", clock="connect"), "gateway; error=connection_timeout"),
            (SinkTimeout("", clock="write"), "gateway; error=connection_write_timeout"),
            (SinkTimeout("", clock="read"), "gateway; error=connection_read_timeout"),
            (SinkTimeout("", clock="first_byte"), "gateway; error=http_response_timeout"),
            (SinkTimeout("", clock="total"), "gateway; error=http_response_timeout"),
            (SinkTimeout(""), "gateway; error=http_response_timeout"),
            (SinkRefused("", sink_status=500), "gateway; received-status=500"),
            (SinkRefused(""), "gateway; error=connection_terminated"),
            (SinkRefused("", reason="http_protocol_error"), "gateway; error=http_protocol_error"),
            (Incomplete("", sink_status=409, kept=[]), "gateway; received-status=409"),
            (
                SinkRefused('it said "\\" \u2013 oh'),
                'gateway; error=connection_terminated; details="it said \\"\\\\\\" ? oh"',
            ),
        ],
    )
    def test_each_failure_has_its_word(self, error: GatewayError, said: str) -> None:
        assert proxy_status(error) == said

    def test_a_destinations_own_is_appended_to_and_none_is_begun(self) -> None:
        given = answer_headers(
            [("Proxy-Status", "cdn; error=dns_error")], status=502, protocol="1.1", gateway="gateway"
        )
        assert ("Proxy-Status", "cdn; error=dns_error, gateway; received-status=502") in given
        assert answer_headers([], status=502, protocol="1.1", gateway="gateway") == [("Via", "1.1 gateway")]


# -- over sockets


BODY = form(file(b"data"))


async def through(gateway: RunningGateway, target: str = "/proxy", **headers: str | int) -> Answer:
    return await ask(gateway.port, target, "POST", BODY, **headers)


def got(upstream: Upstream, place: int = 0) -> dict[str, str]:
    return dict(upstream.exchanges[place].headers)


async def test_a_destination_learns_where_a_request_came_from_and_not_what_the_client_claims(
    start_gateway: StartGateway,
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        await through(gateway, forwarded="for=6.6.6.6", x_forwarded_for="6.6.6.6", x_forwarded_proto="https")
    headers = got(upstream)
    assert headers["forwarded"] == "for=127.0.0.1;host=gateway;proto=http"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("http", "gateway")
    assert headers["via"] == "1.1 gateway"


async def test_a_trusted_proxy_is_believed(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, server={"trusted_networks": ["10.0.0.0/8", "127.0.0.0/8"]})
        await through(gateway, x_forwarded_for="2001:db8::9", x_forwarded_proto="https", x_forwarded_port=443)
    headers = got(upstream)
    ours = "for=127.0.0.1;host=gateway;proto=http"
    assert headers["forwarded"] == f'for="[2001:db8::9]";proto=https, {ours}'
    assert headers["x-forwarded-for"] == "2001:db8::9, 127.0.0.1"
    assert (headers["x-forwarded-proto"], headers["x-forwarded-port"]) == ("https", "443")


FORGERIES = [
    *("Forwarded: for=6.6.6.6;host=evil.example;proto=https", "X-Forwarded: evil", "X-Forwarded-User: evil"),
    *("X-Forwarded-Prefix: /evil", "X-Real-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6"),
    *("CF-Connecting-IP: 6.6.6.6", "X-Original-URL: /evil", "X-Rewrite-URL: /evil", "X-HTTP-Method-Override: DELETE"),
    *("Remote-User: evil", "X-SSL-Client-Verify: evil", "X-SSL-Client-S-DN: evil", "Proxy: http://evil.example"),
    *("X_Forwarded_For: 6.6.6.6", "X_Api_Key: evil", "Remote_User: evil", "X-Forwarded_Host: evil", "x.api.key: evil"),
    *("X-Api-Key: evil", "x-api-key: evil", "X-API-KEY: evil", "Connection: Forwarded"),
]


@pytest.mark.parametrize("family", ["x-forwarded", "forwarded"])
@pytest.mark.parametrize("target", ["/proxy", "/store", "/raw", "/each"])
async def test_a_destination_learns_nothing_of_what_a_client_forges(
    start_gateway: StartGateway, target: str, family: str
) -> None:
    routes = [
        *STORE,
        {"path": "/raw", "kind": "opaque", "parts": [{"sinks": ["api"]}]},
        {"path": "/each", "kind": "upload", "keep": "each", "parts": [{"sinks": ["each"]}]},
    ]
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(
            api=upstream.url,
            routes=routes,
            sinks={
                "api": {"headers": {"X-Api-Key": "ours"}},
                "each": {"type": "relay", "url": upstream.url, "per": "part", "headers": {"X-Api-Key": "ours"}},
            },
            server={"trusted_header": family},
        )
        async with Client(gateway.port) as client:
            start = head(target, "POST", content_length=len(BODY)).removesuffix(b"\r\n")
            await client.send(start + "".join(f"{line}\r\n" for line in FORGERIES).encode() + b"\r\n" + BODY)
            assert (await client.answer()).status in (200, 201)
    headers = got(upstream)
    assert upstream.exchanges[0].head.lower().count(b"\r\nx-api-key:") == 1
    assert headers["x-api-key"] == "ours"
    assert not re.search(rb"evil|6\.6\.6\.6|DELETE|[_.a-z]*_[a-z_]*:|x\.api", upstream.exchanges[0].head)
    assert headers["forwarded"] == "for=127.0.0.1;host=gateway;proto=http"


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("x-forwarded", ("192.0.2.9, 127.0.0.1", "https", "w.org", "for=192.0.2.9;host=w.org;proto=https, ")),
        ("forwarded", ("198.51.100.7, 127.0.0.1", "http", "v.org", "for=198.51.100.7;host=v.org;proto=http, ")),
    ],
)
async def test_of_what_a_trusted_proxy_let_through_its_own_family_is_believed(
    start_gateway: StartGateway, family: str, said: tuple[str, ...]
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        trusting = {"trusted_networks": ["127.0.0.0/8"], "trusted_header": family}
        gateway = await start_gateway(api=upstream.url, server=trusting)
        older = {"x_forwarded_for": "192.0.2.9", "x_forwarded_proto": "https", "x_forwarded_host": "w.org"}
        await through(gateway, forwarded="for=198.51.100.7;host=v.org;proto=http", **older)
    headers = got(upstream)
    told = [headers[f"x-forwarded-{what}"] for what in ("for", "proto", "host")]
    assert (*told, headers["forwarded"]) == (*said[:3], f"{said[3]}for=127.0.0.1;host=gateway;proto=http")


@pytest.mark.parametrize("target", ["/proxy", "/store"])
async def test_a_request_has_one_identity_everywhere(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    caplog.set_level(logging.INFO)
    async with HonestUpstream(200, b"{}", ("X-Request-ID", "of the destination")) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        given = await through(gateway, target, x_request_id="client-1")
        made = await through(gateway, target, x_request_id="x" * 129)
    lines = [vars(record) for record in caplog.records if record.name == "gateway.uploads"]
    assert [line["request_id"] for line in lines] == ["client-1", lines[1]["upload"]]
    assert given.headers["x-request-id"] == got(upstream, 0)["x-request-id"] == "client-1"
    assert made.headers["x-request-id"] == got(upstream, 1)["x-request-id"] == lines[1]["upload"]


async def test_refusals_and_problems_have_the_identity_too(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with MuteUpstream() as upstream:
        pass
    gateway = await start_gateway(api=upstream.url)
    asked: dict[str, Any] = {"x_request_id": "client-1"}
    for answer, status in [
        (await through(gateway, content_encoding="gzip", **asked), 415),
        (await through(gateway, "/upload", content_type="multipart/form-data", **asked), 400),
        (await ask(gateway.port, "/upload", "POST", BODY[:-9], **asked), 400),
        (await ask(gateway.port, "/proxy", "DELETE", **asked), 405),
        (await through(gateway, **asked), 503),
    ]:
        assert (answer.status, answer.headers["x-request-id"]) == (status, "client-1")
    lines = [vars(record) for record in caplog.records if record.name == "gateway.uploads"]
    assert {line["request_id"] for line in lines} == {"client-1"}
    assert "x-request-id" in (await through(gateway, content_encoding="gzip")).headers
    large = await ask(gateway.port, "/upload", "POST", form(*(file(b"", "n" * 200) for _ in range(500))), **asked)
    assert (large.status, large.headers["x-request-id"]) == (201, "client-1")


async def test_credentials_and_static_headers_go_where_the_configuration_says(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with HonestUpstream(200, b"{}") as upstream:
        rules = {
            "forward_cookies": ["session"],
            "forward_authorization": ["bearer"],
            "headers": {"X-Api-Key": "our secret"},
        }
        gateway = await start_gateway(api=upstream.url, sinks={"api": rules})
        await through(gateway, cookie="a=1; session=2", authorization="Bearer t", x_api_key="guess")
        await through(gateway, cookie="a=1", authorization="Basic t", proxy_authorization="Basic t")
    first, second = got(upstream, 0), got(upstream, 1)
    assert (first["cookie"], first["authorization"], first["x-api-key"]) == ("session=2", "Bearer t", "our secret")
    assert not second.keys() & {"cookie", "authorization", "proxy-authorization"}
    assert "our secret" not in caplog.text


async def test_trace_context_goes_on_untouched(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        parent, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "rojo=00f067aa0ba902b7, c=t61 "
        await through(gateway, traceparent=parent, tracestate=state)
    assert (got(upstream)["traceparent"], got(upstream)["tracestate"]) == (parent, state.strip())


async def test_what_a_destination_says_to_its_neighbour_ends_here(start_gateway: StartGateway) -> None:
    hop = [("Connection", "X-Hop"), ("X-Hop", "1"), ("Proxy-Authenticate", "Basic"), ("Trailer", "X-T")]
    async with HonestUpstream(200, b"{}", *hop, ("Via", "1.1 inner"), ("X-Kept", "1")) as upstream:
        gateway = await start_gateway(api=upstream.url)
        answer = await through(gateway)
    assert not answer.headers.keys() & {"x-hop", "proxy-authenticate", "trailer"}
    assert (answer.headers["x-kept"], answer.headers["via"]) == ("1", "1.1 inner, 1.1 gateway")


async def test_a_proxy_status_of_the_destination_is_passed_back_with_ours(start_gateway: StartGateway) -> None:
    async with HonestUpstream(502, b"no", ("Proxy-Status", "cdn; error=dns_error")) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=STORE)
        passed = await through(gateway)
        ours = await through(gateway, "/store")
    assert passed.headers["proxy-status"] == "cdn; error=dns_error, gateway; received-status=502"
    assert ours.headers["proxy-status"] == (
        'gateway; received-status=502; next-hop="api"; details="sink api answered 502"'
    )


async def test_each_failure_of_a_destination_has_its_proxy_status(start_gateway: StartGateway) -> None:
    async def failing(upstream: Upstream) -> Answer:
        gateway = await start_gateway(api=upstream.url, routes=STORE, limits={"stall_seconds": 0.5})
        return await through(gateway, "/store")

    async with MuteUpstream() as upstream:
        pass
    refused = await failing(upstream)
    assert (refused.status, refused.json()["reason"]) == (503, "connection_refused")
    said = refused.headers["proxy-status"]
    assert said == 'gateway; error=connection_refused; next-hop="api"; details="sink api cannot be reached"'
    async with DyingUpstream() as upstream:
        assert (await failing(upstream)).headers["proxy-status"].startswith("gateway; error=connection_terminated; ")
    async with MuteUpstream() as upstream:
        assert (await failing(upstream)).headers["proxy-status"].startswith("gateway; error=http_response_timeout; ")
    async with RefusingUpstream(413) as upstream:
        assert (await failing(upstream)).headers["proxy-status"].startswith("gateway; received-status=413; ")


async def test_a_failure_of_the_clients_own_has_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    assert "proxy-status" not in (await ask(gateway.port, "/upload", "POST", BODY[:-9])).headers


async def test_an_old_client_is_named_by_the_version_it_spoke(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with Client(gateway.port) as client:
            request = head("/proxy", content_length=len(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0")
            await client.send(request + BODY)
            assert (await client.answer()).status == 200
    assert got(upstream)["via"] == "1.0 gateway"


async def test_what_expects_to_be_told_to_go_on_is_told_so_here(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with Client(gateway.port) as client:
            await client.send(head("/proxy", transfer_encoding="chunked", expect="100-continue"))
            assert (await client.answer()).status == 100
            await asyncio.sleep(0)
            await client.send(chunked(BODY))
            assert (await client.answer()).status == 200
    assert "expect" not in got(upstream)


# -- loops


async def test_a_relay_onto_itself_is_told_as_a_loop_by_the_second_request(start_gateway: StartGateway) -> None:
    port = free_port()
    gateway = await start_gateway(server={"port": port, "max_uploads": 4}, api=f"http://127.0.0.1:{port}/proxy")
    answer = await ask(port, "/proxy", "POST", form(file(b"abc")))
    assert answer.status == 508
    assert "error=proxy_loop_detected" in answer.headers["proxy-status"]
    assert answer.json()["type"] == "/problems/loop-detected"
    assert gateway.services.gate.in_flight == 0


@pytest.mark.parametrize("via", ["1.1 gateway", "1.0 cdn, 1.1 gateway (a comment)", "HTTP/1.1 gateway,1.1 last"])
async def test_a_request_that_came_through_here_is_refused_before_its_body(
    start_gateway: StartGateway, via: str
) -> None:
    gateway = await start_gateway()
    async with Client(gateway.port) as client:
        await client.send(head("/upload", content_length=1000, via=via, expect="100-continue"))
        answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (508, "close")
    assert (await ask(gateway.port, "/download/http://a.example/", via=via)).status in (403, 508)


@pytest.mark.parametrize("via", ["1.1 gateway-1", "1.1 other, 1.0 gateways", "gateway", "1.1 gateway.example"])
async def test_what_came_through_others_is_no_loop(start_gateway: StartGateway, via: str) -> None:
    gateway = await start_gateway()
    assert (await ask(gateway.port, "/upload", "POST", form(file(b"abc")), via=via)).status == 201


async def test_two_gateways_in_a_row_and_two_without_a_name_work(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    inner = await start_gateway(api=f"{destination.url}/upload", server={"name": None})
    outer = await start_gateway(api=f"{inner.url}/proxy", server={"name": None})
    answer = await ask(outer.port, "/proxy", "POST", form(file(b"abc")))
    assert answer.status == 200
    names = [hop.split()[1] for hop in answer.headers["via"].split(",")]
    assert len(set(names)) == 2
    assert all(re.fullmatch("gateway-[0-9a-f]{8}", name) for name in names)


async def test_a_download_has_a_via_and_one_of_itself_is_a_loop(start_gateway: StartGateway) -> None:
    far = await start_gateway(server={"name": "far"})
    port = free_port()
    download = {"allow": [f"{far.url}/*", f"http://127.0.0.1:{port}/*"], "allow_private": ["127.0.0.0/8"]}
    await start_gateway(server={"port": port}, download=download)
    (part,) = (await ask(far.port, "/upload", "POST", form(file(b"abc")))).json()["parts"]
    location = part["receipts"][0]["location"]
    got = await ask(port, f"/download/{far.url}{location}")
    assert (got.status, got.body, got.headers["via"]) == (200, b"abc", "1.1 gateway-1")
    looping = await ask(port, f"/download/http://127.0.0.1:{port}/download/{far.url}{location}")
    assert looping.status == 508
