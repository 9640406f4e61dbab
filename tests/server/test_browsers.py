"""What other people's pages may have browsers do, over sockets: CORS, names that are made to point here, and requests
that a page of another site has sent.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.access import new_key
from tests.conftest import Destination, RunningGateway, StartDestination, StartGateway
from tests.support.clients import Answer, Client, ask, file, form, head

APP, OTHER, EVIL = "https://app.example.org", "https://other.example.org", "https://evil.example"
BODY = form(file(b"hello", filename="a.txt"))
CORS: dict[str, Any] = {"origins": [APP, "null"], "headers": ["X-Mine"], "credentials": True}
UNKNOWN = "/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def answered(port: int, data: bytes) -> tuple[Answer, list[tuple[str, str]]]:
    """The answer, and its fields as they came: none is lost for being there twice."""
    async with Client(port) as client:
        await client.send(data)
        raw = await client.ended()
    first = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in first[1:])]
    return Answer(int(first[0].split(" ")[1]), dict(fields), raw.partition(b"\r\n\r\n")[2]), fields


def check_fields(fields: list[tuple[str, str]], origin: str | None, what: str = "") -> None:
    """That an answer says of CORS what is configured, once."""
    names = [name for name, _ in fields]
    there = dict(fields)
    for name in set(names):
        if name == "vary" or name.startswith("access-control-"):
            assert names.count(name) == 1, (what, name)
    assert [token.strip().lower() for token in there["vary"].split(",")].count("origin") == 1
    told = [name for name in names if name.startswith("access-control-")]
    if origin not in CORS["origins"]:
        assert told == []
        return
    assert there.get("access-control-allow-origin") == origin, what
    assert there["access-control-allow-credentials"] == "true"
    exposed = there["access-control-expose-headers"].split(", ")
    wanted = [
        "Location",
        "X-Request-ID",
        "ETag",
        "Content-Range",
        "Content-Disposition",
        "Accept-Ranges",
        "Repr-Digest",
    ]
    assert {*wanted, "Retry-After", "WWW-Authenticate"} <= set(exposed)


def chatty() -> web.Application:
    """A destination that has CORS of its own, for everybody."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        response = web.Response(text="taken")
        for name, value in (
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Origin", EVIL),
            ("Access-Control-Expose-Headers", "X-Own"),
            ("Access-Control-Allow-Private-Network", "true"),
            ("Vary", "Accept-Encoding, origin"),
            ("Vary", "Accept"),
        ):
            response.headers.add(name, value)
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    return app


@pytest.fixture
async def destination(start_destination: StartDestination) -> Destination:
    return await start_destination(chatty())


@pytest.fixture
async def full(start_gateway: StartGateway, destination: Destination, tmp_path: Path) -> RunningGateway:
    """A gateway with everything, for pages of APP; `/own` is for those of OTHER, and `/closed` for nobody's."""
    (tmp_path / "keys.toml").write_text(new_key("ci", ("upload",))[1])
    disk = [{"sinks": ["disk"]}]
    return await start_gateway(
        api=destination.url,
        cors=CORS,
        access={"keys": {"file": str(tmp_path / "keys.toml")}},
        limits={"max_body_bytes": 1000, "idle_seconds": 0.3},
        download={"allow": [f"{destination.url}/*"], "allow_private": ["127.0.0.0/8"]},
        routes=[
            {"path": "/upload", "parts": disk},
            {"path": "/keyed", "access": ["keys"], "parts": disk},
            {"path": "/own", "cors": {"origins": [OTHER]}, "parts": disk},
            {"path": "/closed", "cors": {"origins": []}, "parts": disk},
        ],
        server={"head_seconds": 0.5},
    )


async def stored(gateway: RunningGateway) -> dict[str, str]:
    """Where an upload lies."""
    answer = await ask(gateway.port, "/upload", "POST", BODY)
    location = answer.headers["location"]
    return {"UPLOAD": location, "FILE": f"{location.replace('/uploads/', '/files/')}/0"}


ANSWERS: dict[str, tuple[int, str, str, dict[str, Any], bytes]] = {
    "created": (201, "POST", "/upload", {}, BODY),
    "converted": (200, "POST", "/convert", {}, BODY),
    "raw": (201, "PUT", "/upload/a.txt", {"content_type": "text/plain"}, b"x"),
    "relayed": (200, "POST", "/proxy", {}, BODY),
    "manifest": (200, "GET", "UPLOAD", {}, b""),
    "file": (200, "GET", "FILE", {}, b""),
    "range": (206, "GET", "FILE", {"range": "bytes=1-2"}, b""),
    "no range": (416, "GET", "FILE", {"range": "bytes=9-"}, b""),
    "head": (200, "HEAD", "FILE", {}, b""),
    "archive": (200, "GET", "UPLOAD/archive.zip", {}, b""),
    "removed": (204, "DELETE", "UPLOAD", {}, b""),
    "download": (200, "GET", "/download/DESTINATION/x", {}, b""),
    "no download": (403, "GET", "/download/http://10.0.0.1/", {}, b""),
    "health": (200, "GET", "/healthz", {}, b""),
    "no credential": (401, "POST", "/keyed", {}, BODY),
    "too large": (413, "POST", "/upload", {"content_length": 5000}, b""),
    "too slow": (408, "POST", "/upload", {"content_length": 500}, b"--"),
    "half a head": (408, "POST", "/upload HTTP/1.1\r\nHost: g\r\n", {}, b""),
    "no head": (400, "POST", "/upload", {"x(": "y"}, b""),
    "a long head": (431, "POST", "/upload", {"x": "y" * 70_000}, b""),
    "no multipart": (415, "POST", "/upload", {"content_type": "multipart/mixed; boundary=x"}, BODY),
    "not there": (404, "GET", UNKNOWN, {}, b""),
    "no path": (404, "GET", "/nothing", {}, b""),
    "no method": (405, "PATCH", "/upload", {}, b""),
    "no preflight": (405, "OPTIONS", "/upload", {}, b""),
    "malformed": (400, "POST", "/upload", {}, b"hello"),
}


async def ask_raw(
    gateway: RunningGateway, destination: Destination, what: str, origin: str | None
) -> list[tuple[str, str]]:
    """The fields of that answer, which is the one that it should be."""
    status, method, target, headers, body = ANSWERS[what]
    if target.startswith(("UPLOAD", "FILE")):
        for name, place in (await stored(gateway)).items():
            target = target.replace(name, place)
    target = target.replace("DESTINATION", destination.url)
    if what == "half a head":
        data = f"{method} {target}Origin: {origin}\r\nX: ".encode()
    else:
        own: dict[str, Any] = {"content_length": len(body)} if body else {"content_type": ""}
        said = {"origin": origin} if origin else {}
        data = head(target, method, **{**own, **said, **headers}, connection="close") + body
    answer, fields = await answered(gateway.port, data)
    assert answer.status == status, what
    return fields


class TestCors:
    @pytest.mark.parametrize("origin", [APP, "null", EVIL, APP + ".evil.example", APP.upper(), None])
    async def test_every_answer_says_once_whose_pages_may_read_it(
        self, full: RunningGateway, destination: Destination, origin: str | None
    ) -> None:
        for what, fields in zip(
            ANSWERS, await asyncio.gather(*(ask_raw(full, destination, what, origin) for what in ANSWERS)), strict=True
        ):
            check_fields(fields, origin, what)
            assert EVIL not in str(fields)

    async def test_a_busy_gateway_says_it_too(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(cors=CORS, server={"max_uploads": 0, "max_connections": 1})
        async with Client(gateway.port) as first:
            await first.send(head("/healthz", "GET", content_type=""))
            assert (await first.answer()).status == 200
            answer, fields = await answered(gateway.port, head(origin=APP, content_length=3))
            assert answer.status == 503
            check_fields(fields, APP)

    async def test_a_route_may_have_origins_of_its_own_or_none(self, full: RunningGateway) -> None:
        for target, allowed in (("/own", OTHER), ("/own/a.txt", OTHER), ("/closed", None), ("/upload", APP)):
            method = "PUT" if target.endswith(".txt") else "POST"
            for origin in (APP, OTHER):
                data = head(target, method, content_length=len(BODY), origin=origin, connection="close") + BODY
                _, fields = await answered(full.port, data)
                assert dict(fields).get("access-control-allow-origin") == (origin if origin == allowed else None)
        broken = head("/own", origin=OTHER, connection="close", **{"x(": "y"})
        assert dict((await answered(full.port, broken))[1])["access-control-allow-origin"] == OTHER

    async def test_without_the_table_nothing_is_added_and_a_destination_speaks_for_itself(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        gateway = await start_gateway(api=(await start_destination(chatty())).url)
        _, fields = await answered(
            gateway.port, head("/proxy", content_length=len(BODY), origin=APP, connection="close") + BODY
        )
        assert [value for name, value in fields if name == "access-control-allow-origin"] == ["*", EVIL]
        assert [value for name, value in fields if name == "vary"] == ["Accept-Encoding, origin", "Accept"]
        answer = await preflight(gateway, "/upload", APP)
        assert (answer.status, answer.headers["allow"]) == (405, "POST, PUT")
        assert "vary" not in answer.headers

    async def test_any_origin_is_told_so_and_never_by_its_name(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(cors={"origins": ["*"]})
        answer = await ask(gateway.port, "/upload", "POST", BODY, origin=EVIL, sec_fetch_site="cross-site")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (201, "*")
        assert "access-control-allow-credentials" not in answer.headers


async def preflight(gateway: RunningGateway, target: str, origin: str, **headers: str) -> Answer:
    """What a browser asks before a page's request."""
    asked: dict[str, Any] = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "x-mine",
        **headers,
    }
    return await ask(gateway.port, target, "OPTIONS", origin=origin, **asked)


class TestPreflight:
    @pytest.mark.parametrize(
        ("target", "methods"),
        [
            ("/upload", "POST, PUT"),
            ("/upload/a.txt", "PUT"),
            ("/keyed", "POST, PUT"),
            ("/proxy", "PATCH, POST, PUT"),
            (UNKNOWN, "DELETE, GET, HEAD"),
            ("/files/01ARZ3NDEKTSV4RRFFQ69G5FAV/0", "GET, HEAD"),
        ],
    )
    async def test_it_is_answered_without_a_credential_and_says_what_a_page_may_send(
        self, full: RunningGateway, target: str, methods: str
    ) -> None:
        answer = await preflight(full, target, APP)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["access-control-allow-methods"] == methods
        assert {"Authorization", "X-API-Key", "Content-Type", "Repr-Digest", "Range", "X-Mine"} <= set(
            answer.headers["access-control-allow-headers"].split(", ")
        )
        assert answer.headers["access-control-max-age"] == "7200"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "Origin"

    async def test_it_needs_no_slot_and_no_body(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(cors=CORS, server={"max_uploads": 0})
        async with Client(gateway.port) as client:
            asked: dict[str, Any] = {
                "access_control_request_method": "POST",
                "expect": "100-continue",
                "content_length": 1 << 40,
            }
            await client.send(head("/upload", "OPTIONS", origin=APP, **asked))
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (204, "close")

    async def test_another_origin_is_a_403_that_says_nothing_of_others(self, full: RunningGateway) -> None:
        for target, origin in (("/upload", EVIL), ("/own", APP)):
            answer = await preflight(full, target, origin)
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert "example.org" not in str(answer)

    async def test_what_asks_about_no_request_is_no_preflight(self, full: RunningGateway) -> None:
        assert (await ask(full.port, "/upload", "OPTIONS", origin=APP)).status == 405
        assert (await ask(full.port, "/upload", "OPTIONS", access_control_request_method="POST")).status == 405
        assert (await preflight(full, "/nothing", APP)).status == 404
        assert (await preflight(full, "/closed", APP)).status == 405


class TestHost:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1", 404),
            ("127.8.9.1:8080", 421),
            ("localhost", 404),
            ("LocalHost.:1", 404),
            ("app.localhost:8080", 404),
            ("[::1]:8080", 404),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("localhost.evil.example:8080", 421),
            ("evil-localhost", 421),
            ("10.0.0.1", 421),
            ("[::2]", 421),
        ],
    )
    async def test_it_goes_by_the_names_that_are_listed(
        self, start_gateway: StartGateway, host: str, status: int
    ) -> None:
        gateway = await start_gateway(server={"hosts": ["localhost", "app.localhost", "127.0.0.1", "[::1]"]})
        assert (await ask(gateway.port, UNKNOWN, host=host)).status == status
        assert (await ask(gateway.port, "/healthz", host=host)).status == 200

    async def test_a_wrong_one_is_refused_before_the_body_on_every_path_and_told_in_the_log(
        self, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway = await start_gateway(server={"hosts": ["Files.Example.org", "[::1]"]}, cors=CORS)
        caplog.set_level(logging.INFO)
        for target in ("/upload", "/upload/a.txt", UNKNOWN, "/nothing", "/metrics", "/selftest/buffering"):
            async with Client(gateway.port) as client:
                await client.send(head(target, host="evil.example", expect="100-continue", content_length=1 << 40))
                answer = await client.answer()
            assert (answer.status, answer.json()["type"]) == (421, "/problems/misdirected-request")
            assert answer.headers["connection"] == "close"
        assert gateway.stored() == []
        assert [vars(record)["outcome"] for record in caplog.records if record.message == "request refused"] == [
            "misdirected-request"
        ] * 6

    async def test_a_target_says_more_than_host(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"hosts": ["files.example.org", "[::1]"]})
        for target, host, status in (
            (UNKNOWN, "files.EXAMPLE.org.:80", 404),
            (UNKNOWN, "[::1]:8080", 404),
            (UNKNOWN, "127.0.0.1", 421),
            (f"http://files.example.org{UNKNOWN}", "evil.example", 404),
            (f"http://evil.example{UNKNOWN}", "files.example.org", 421),
        ):
            assert (await ask(gateway.port, target, host=host)).status == status, (target, host)


FOREIGN: dict[str, Any] = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
FOLLOWED: dict[str, Any] = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
FRAMED: dict[str, Any] = {**FOLLOWED, "sec_fetch_dest": "iframe"}


class TestOtherSites:
    async def test_a_page_of_another_site_does_nothing_where_anybody_may(
        self, full: RunningGateway, destination: Destination
    ) -> None:
        places = await stored(full)
        kept = full.stored()
        for target, method in (
            ("/upload", "POST"),
            ("/upload/a.txt", "PUT"),
            ("/proxy", "POST"),
            (places["UPLOAD"], "GET"),
            (places["UPLOAD"], "DELETE"),
            (places["FILE"], "GET"),
            (places["FILE"], "HEAD"),
            (places["UPLOAD"] + "/archive.zip", "GET"),
            (f"/download/{destination.url}/x", "GET"),
        ):
            for origin in ("", EVIL, OTHER):
                for site in (FOREIGN, FRAMED):
                    async with Client(full.port) as client:
                        asks = {"expect": "100-continue", "content_length": "99"} if method[0] == "P" else {}
                        await client.send(head(target, method, **site, **asks, origin=origin, connection="close"))
                        first = (await client.ended()).partition(b"\r\n")[0]
                    assert first.split(b" ")[1] == b"403", (target, method, origin)
        assert full.stored() == kept

    async def test_of_an_origin_that_is_allowed_it_does(self, full: RunningGateway) -> None:
        page: dict[str, Any] = {**FOREIGN, "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}
        answer = await ask(full.port, "/upload", "POST", BODY, **page, origin=APP)
        assert answer.status == 201
        assert (await ask(full.port, answer.headers["location"], **page, origin=APP)).status == 200
        assert (await ask(full.port, "/own", "POST", BODY, **page, origin=OTHER)).status == 201
        assert (await ask(full.port, "/own", "POST", BODY, **page, origin=APP)).status == 403

    async def test_a_link_to_what_is_stored_can_be_followed_but_no_form_sent(
        self, full: RunningGateway, destination: Destination
    ) -> None:
        places = await stored(full)
        assert (await ask(full.port, places["FILE"], **FOLLOWED)).status == 200
        assert (await ask(full.port, places["UPLOAD"], **FOLLOWED)).status == 200
        assert (await ask(full.port, f"/download/{destination.url}/x", **FOLLOWED)).status == 200
        assert (await ask(full.port, "/upload", "POST", BODY, **FOLLOWED, origin=EVIL)).status == 403

    @pytest.mark.parametrize("site", ["same-origin", "same-site", "none", ""])
    async def test_anybody_else_may_as_before(self, full: RunningGateway, site: str) -> None:
        assert (await ask(full.port, "/upload", "POST", BODY, sec_fetch_site=site)).status == 201

    async def test_who_has_a_credential_may_from_anywhere_and_the_refusal_is_in_the_log(
        self, start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        key, line = new_key("ci", ("upload",))
        (tmp_path / "keys.toml").write_text(line)
        gateway = await start_gateway(
            access={"keys": {"file": str(tmp_path / "keys.toml")}},
            routes=[{"path": "/upload", "access": ["keys", "none"], "parts": [{"sinks": ["disk"]}]}],
        )
        caplog.set_level(logging.INFO, "gateway.access")
        assert (await ask(gateway.port, "/upload", "POST", BODY, **FOREIGN, x_api_key=key)).status == 201
        assert (await ask(gateway.port, "/upload", "POST", BODY, **FOREIGN)).status == 403
        assert [vars(record)["decision"] for record in caplog.records] == ["allowed", "forbidden"]
