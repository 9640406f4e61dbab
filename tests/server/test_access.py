"""Who may, over sockets: what each kind of credential opens, and that what is refused costs and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from aiohttp import web

from gateway.access import SCOPES, new_key, signed_url
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Answer, Client, ask, eventually, file, form, head, random_bytes
from tests.support.doubles import HonestUpstream

SECRET = "s" * 40
SHARED = b"j" * 40
BODY = form(file(b"hello", filename="a.txt"))
LARGE = form(file(random_bytes(3 << 20)))
ROUTES = [
    {"path": "/upload", "access": ["keys", "jwt", "signed"], "parts": [{"sinks": ["disk"]}]},
    {"path": "/other", "access": ["signed"], "parts": [{"sinks": ["disk"]}]},
    {"path": "/convert", "access": ["signed"], "parts": [{"sinks": ["disk"]}]},
    {"path": "/proxy", "kind": "relay", "access": ["keys", "signed"], "parts": [{"sinks": ["api"]}]},
]


@dataclass
class Guarded:
    """A gateway whose routes are not for anybody, and credentials for it."""

    gateway: RunningGateway
    directory: Path

    def key(self, *scopes: str, name: str = "ci") -> dict[str, str]:
        """A new key's header."""
        key, line = new_key(name, scopes or SCOPES)
        path = self.directory / "keys.toml"
        path.write_text(f"{path.read_text()}\n{line}")
        return {"X-API-Key": key}

    @staticmethod
    def token(**more: Any) -> dict[str, str]:
        claims = {"iss": "i", "aud": "a", "sub": "alice", "exp": time.time() + 60, "scope": "upload read delete"}
        return {"Authorization": f"Bearer {jwt.encode({**claims, **more}, SHARED, 'HS256')}"}

    async def ask(
        self, target: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        own = {name.replace("-", "_").lower(): value for name, value in (headers or {}).items()}
        return await ask(self.gateway.port, target, method, body, **own)

    async def upload(
        self, target: str = "/upload", headers: dict[str, str] | None = None, body: bytes = BODY
    ) -> Answer:
        return await self.ask(target, "POST", body, headers)


def request_head(target: str, method: str, headers: dict[str, str], **framing: str | int) -> bytes:
    own = {name.replace("-", "_").lower(): value for name, value in headers.items()}
    return head(target, method, **{**own, **framing})


StartGuarded = Callable[..., Awaitable[Guarded]]


@pytest.fixture
def start_guarded(start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartGuarded:
    monkeypatch.setattr("gateway.access.keys._LOOK_SECONDS", 0.0)  # what is written is heard of at once
    (tmp_path / "keys.toml").write_text("")
    (tmp_path / "signing.keys").write_text(SECRET)
    (tmp_path / "jwt.key").write_bytes(SHARED)

    async def start(**document: Any) -> Guarded:
        access: dict[str, Any] = {
            "keys": {"file": str(tmp_path / "keys.toml")},
            "signed": {"secrets_file": str(tmp_path / "signing.keys")},
            "jwt": {
                "issuer": "i",
                "audience": "a",
                "algorithms": ["HS256"],
                "key_file": str(tmp_path / "jwt.key"),
            },
            **document.pop("access", {}),
        }
        return Guarded(await start_gateway(**{"routes": ROUTES, "access": access, **document}), tmp_path)

    return start


@pytest.fixture
async def guarded(start_guarded: StartGuarded) -> Guarded:
    return await start_guarded()


def signed(route: str = "/upload", **terms: Any) -> str:
    return signed_url([SECRET], route, **{"expires_seconds": 60, **terms})


class TestRefusedBeforeTheBody:
    """G5: on headers alone, before `100 Continue`, and before a byte of the body is read."""

    @pytest.mark.parametrize(
        ("target", "headers", "status"),
        [
            ("/upload", {}, 401),
            ("/upload", {"X-API-Key": "gw_wrong"}, 401),
            ("/upload", {"Authorization": "Bearer gw_wrong"}, 401),
            ("/upload", {"Authorization": "Bearer a.b.c"}, 401),
            ("/upload", {"Authorization": "Basic eDp5"}, 401),
            ("/upload", {"Authorization": "Bearer a\r\nAuthorization: Bearer b"}, 401),
            ("/upload?signature=x", {}, 403),
            (signed("/other").replace("/other", "/upload"), {}, 403),
            (signed(expires_seconds=-1), {}, 403),
            ("/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV", {}, 401),
            ("/files/01ARZ3NDEKTSV4RRFFQ69G5FAV/0", {}, 401),
            ("/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV/archive.zip", {}, 401),
        ],
    )
    async def test_nobody_is_asked_for_a_body_that_may_not_come(
        self, guarded: Guarded, target: str, headers: dict[str, str], status: int
    ) -> None:
        method = "POST" if target.startswith("/upload?") or target == "/upload" else "GET"
        async with Client(guarded.gateway.port) as client:
            body: dict[str, str | int] = (
                {"content_length": 1 << 40, "expect": "100-continue"} if method == "POST" else {}
            )
            await client.send(request_head(target, method, headers, **body))
            answer = await client.answer()
            assert answer.status == status
            assert answer.headers["content-type"] == "application/problem+json"
            if status == 401:
                assert answer.headers["www-authenticate"] == 'Bearer realm="gateway"'
                assert "detail" not in answer.json(), "no hint at why"
            if method == "POST":
                assert answer.headers["connection"] == "close"
                assert await client.ended() == b""
        assert guarded.gateway.stored() == []

    async def test_a_body_that_came_along_is_not_read(self, guarded: Guarded) -> None:
        answer = await guarded.upload()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert guarded.gateway.stored() == []

    async def test_nothing_is_forwarded(self, start_guarded: StartGuarded) -> None:
        async with HonestUpstream() as upstream:
            guarded = await start_guarded(api=upstream.url)
            for headers in ({}, {"X-API-Key": "gw_wrong"}, guarded.key("read")):
                assert (await guarded.upload("/proxy", headers)).status in (401, 403)
            assert upstream.exchanges == []


class TestKinds:
    async def test_a_key_a_token_and_a_signed_url_open_the_route(self, guarded: Guarded) -> None:
        for target, headers in (("/upload", guarded.key("upload")), ("/upload", guarded.token()), (signed(), {})):
            async with Client(guarded.gateway.port) as client:
                body: dict[str, str | int] = {"content_length": len(BODY), "expect": "100-continue"}
                await client.send(request_head(target, "POST", headers, **body))
                assert (await client.answer()).status == 100
                await client.send(BODY)
                assert (await client.answer()).status == 201

    async def test_a_scope_opens_what_it_says(self, guarded: Guarded) -> None:
        everything = guarded.key(name="all")
        for scope in SCOPES:
            upload_id = (await guarded.upload(headers=everything)).json()["upload"]
            only = guarded.key(scope, name=f"only-{scope}")
            statuses = [
                (await guarded.upload(headers=only)).status,
                (await guarded.ask(f"/uploads/{upload_id}", headers=only)).status,
                (await guarded.ask(f"/uploads/{upload_id}", "DELETE", headers=only)).status,
            ]
            right = {
                "upload": [201, 403, 403],
                "read": [403, 404, 403],
                "delete": [403, 403, 404],
                "download": [403, 403, 403],
            }
            assert statuses == right[scope], scope

    async def test_downloads_have_an_access_of_their_own(
        self, start_guarded: StartGuarded, start_destination: StartDestination
    ) -> None:
        remote = await start_destination()
        rules = {"allow": [f"{remote.url}/*"], "allow_private": ["127.0.0.0/8"], "access": ["keys"]}
        guarded = await start_guarded(download=rules)
        target = f"/download/{remote.url}/healthz"
        assert (await guarded.ask(target)).status == 401
        assert (await guarded.ask(target, headers=guarded.key("read"))).status == 403
        assert (await guarded.ask(target, headers=guarded.key("download", name="d"))).status == 200

    async def test_where_anybody_may_a_broken_credential_may_not(self, start_guarded: StartGuarded) -> None:
        routes = [{"path": "/upload", "access": ["keys", "none"], "parts": [{"sinks": ["disk"]}]}]
        guarded = await start_guarded(routes=routes)
        assert (await guarded.upload()).status == 201
        assert (await guarded.upload(headers={"Authorization": "Basic eDp5"})).status == 201
        assert (await guarded.upload(headers={"X-API-Key": "gw_wrong"})).status == 401

    async def test_health_and_metrics_need_none(self, guarded: Guarded) -> None:
        for target in ("/healthz", "/readyz", "/metrics"):
            assert (await guarded.ask(target)).status == 200


class TestSignedUrls:
    async def test_its_caps_are_limits_like_any(self, guarded: Guarded) -> None:
        for url, body, status in (
            (signed(max_bytes=len(BODY)), BODY, 201),
            (signed(max_bytes=len(BODY) - 1), BODY, 413),
            (signed(types=["text/*"]), BODY, 201),
            (signed(types=["image/*"]), BODY, 415),
            (signed(name="a.txt"), BODY, 201),
            (signed(name="b.txt"), BODY, 403),
        ):
            before = len(guarded.gateway.stored())
            answer = await guarded.upload(url, body=body)
            assert answer.status == status, url
            assert (len(guarded.gateway.stored()) > before) == (status == 201)

    async def test_a_body_of_unknown_length_is_cut_off_at_its_cap(self, guarded: Guarded) -> None:
        async with Client(guarded.gateway.port) as client:
            await client.send(head(signed(max_bytes=100_000), transfer_encoding="chunked"))
            for start in range(0, 1 << 20, 65536):
                try:
                    await client.send(b"10000\r\n" + LARGE[start : start + 65536] + b"\r\n")
                except ConnectionError:
                    break
            answer = await client.answer()
        assert (answer.status, answer.json()["limit"]) == (413, 100_000)
        assert guarded.gateway.stored() == []

    async def test_it_does_not_raise_a_configured_limit(self, start_guarded: StartGuarded) -> None:
        guarded = await start_guarded(limits={"max_body_bytes": 100})
        assert (await guarded.upload(signed(max_bytes=1 << 30))).status == 413

    async def test_a_raw_body_has_the_same_caps(self, guarded: Guarded) -> None:
        for url, name, status in (
            (signed(name="a.bin", types=["text/plain"]), "a.bin", 201),
            (signed(name="a.bin"), "b.bin", 403),
            (signed(types=["image/*"]), "a.bin", 415),
        ):
            path, _, query = url.partition("?")
            assert (
                await guarded.ask(f"{path}/{name}?{query}", "PUT", b"x", {"Content-Type": "text/plain"})
            ).status == status

    async def test_used_up_is_used_up_but_what_failed_may_be_tried_again(self, guarded: Guarded) -> None:
        url = signed(count=1)
        async with Client(guarded.gateway.port) as client:
            await client.send(head(url, content_length=len(LARGE)) + LARGE[:1000])
            await eventually(lambda: guarded.gateway.stored())
        await eventually(lambda: not guarded.gateway.services.requests)
        assert (await guarded.upload(url, body=BODY[:-10])).status == 400
        assert (await guarded.upload(url)).status == 201
        answer = await guarded.upload(url)
        assert answer.status == 403
        assert answer.json()["detail"] == "this signed url has been used as often as it may be"

    async def test_of_two_at_a_time_one_is_taken(self, guarded: Guarded) -> None:
        url = signed(count=1)
        answers = await asyncio.gather(*(guarded.upload(url, body=LARGE) for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [201, 403, 403, 403, 403]

    async def test_what_is_stored_can_be_read_by_a_signed_url_and_nothing_else_by_it(self, guarded: Guarded) -> None:
        key = guarded.key()
        one, other = [(await guarded.upload(headers=key)).json()["upload"] for _ in range(2)]
        for route, target in (
            (f"/files/{one}/0", f"/files/{one}/0/a.txt"),
            (f"/files/{one}/0", f"/files/{one}/0"),
            (f"/uploads/{one}", f"/uploads/{one}"),
            (f"/uploads/{one}/archive.zip", f"/uploads/{one}/archive.zip"),
        ):
            query = urlsplit(signed(route)).query
            assert (await guarded.ask(f"{target}?{query}")).status == 200
            assert (await guarded.ask(f"{target}?{query}", "HEAD")).status == 200
            for foreign in (target.replace(one, other), f"/uploads/{one}/archive.zip", f"/uploads/{one}"):
                if foreign != target:
                    assert (await guarded.ask(f"{foreign}?{query}")).status == 403
            assert (await guarded.ask(f"/uploads/{one}?{query}", "DELETE")).status == 403

    async def test_what_is_uploaded_with_it_may_be_somebodys(self, guarded: Guarded) -> None:
        key = guarded.key()
        mine = (await guarded.upload(signed(identity="key:ci"))).json()["upload"]
        assert (await guarded.ask(f"/uploads/{mine}", headers=key)).json()["identity"] == "key:ci"
        assert (await guarded.ask(f"/uploads/{mine}", headers=guarded.key(name="other"))).status == 404


class TestOwners:
    """A token of one identity cannot read, delete, archive or range another's upload, by any path."""

    async def test_what_is_one_mans_is_not_there_for_another(self, guarded: Guarded) -> None:
        mine, other = guarded.key(name="mine"), guarded.key(name="other")
        upload_id = (await guarded.upload(headers=mine)).json()["upload"]
        unknown = upload_id[:-4] + "0000"
        for stranger in (other, guarded.token(sub="mine"), guarded.token(sub="key:mine")):
            for method, path in (
                ("GET", "/uploads/{}"),
                ("HEAD", "/uploads/{}"),
                ("GET", "/uploads/{}/archive.zip"),
                ("GET", "/files/{}/0"),
                ("GET", "/files/{}/0/a.txt"),
                ("DELETE", "/uploads/{}"),
            ):
                for more in ({}, {"Range": "bytes=0-1"}, {"If-None-Match": "*"}):
                    answers = [
                        await guarded.ask(path.format(identity), method, headers={**stranger, **more})
                        for identity in (upload_id, unknown)
                    ]
                    assert [answer.status for answer in answers] == [404, 404]
                    if method != "HEAD":
                        told = [answer.body.replace(upload_id.encode(), unknown.encode()) for answer in answers]
                        assert told[0] == told[1], "unknown and foreign ones are not told apart"
        assert (await guarded.ask(f"/files/{upload_id}/0", headers=mine)).body == b"hello"
        assert (await guarded.ask(f"/uploads/{upload_id}", "DELETE", headers=mine)).status == 204

    async def test_nobodys_is_for_whoever_passes(self, start_guarded: StartGuarded) -> None:
        routes = [
            {"path": "/open", "access": ["none"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/upload", "access": ["keys"], "parts": [{"sinks": ["disk"]}]},
        ]
        guarded = await start_guarded(routes=routes)
        key = guarded.key()
        nobodys = (await guarded.upload("/open")).json()
        somebodys = (await guarded.upload(headers=key)).json()
        assert "identity" not in nobodys
        assert somebodys["identity"] == "key:ci"
        for headers in ({}, key):
            assert (await guarded.ask(f"/uploads/{nobodys['upload']}", headers=headers)).status == 200
        assert (await guarded.ask(f"/uploads/{somebodys['upload']}")).status == 404
        assert (await guarded.ask(f"/uploads/{somebodys['upload']}", "DELETE")).status == 404
        assert (await guarded.ask(f"/uploads/{somebodys['upload']}", headers=key)).status == 200

    async def test_it_stays_theirs_when_access_is_taken_away_from_the_configuration(
        self, start_guarded: StartGuarded, start_gateway: StartGateway
    ) -> None:
        guarded = await start_guarded()
        upload_id = (await guarded.upload(headers=guarded.key())).json()["upload"]
        later = await start_gateway(sinks={"disk": {"root": str(guarded.gateway.root)}})
        for method in ("GET", "DELETE"):
            assert (await ask(later.port, f"/uploads/{upload_id}", method)).status == 404


class TestWhatGoesOn:
    async def test_keys_and_signatures_do_not_and_the_rest_of_the_query_does(self, start_guarded: StartGuarded) -> None:
        async with HonestUpstream() as upstream:
            api = {"url": upstream.url, "forward_authorization": True}
            guarded = await start_guarded(sinks={"api": api})
            key = guarded.key("upload")
            assert (await guarded.upload("/proxy", key)).status == 200
            assert (await guarded.upload("/proxy", {"Authorization": f"Bearer {key['X-API-Key']}"})).status == 200
            query = urlsplit(signed("/proxy")).query
            assert (await guarded.upload(f"/proxy?a=b&{query}&c=d")).status == 200
            seen = "\n".join([repr(exchange.head) for exchange in upstream.exchanges])
            assert "gw_" not in seen
            assert "signature" not in seen
            assert "?a=b&c=d" in seen


class TestAudit:
    async def test_a_line_for_each_decision_and_no_secret_in_any(
        self, guarded: Guarded, caplog: pytest.LogCaptureFixture
    ) -> None:
        key, token, url = guarded.key("upload"), guarded.token(scope="upload"), signed()
        with caplog.at_level(logging.DEBUG):
            for target, headers in (("/upload", key), ("/upload", token), (url, {}), ("/upload", {})):
                await guarded.upload(target, {**headers, "X-Request-ID": "mine"})
            await guarded.upload(headers={"X-API-Key": "gw_planted"})
            await guarded.upload(headers={"Authorization": "Bearer planted.planted.planted"})
            await guarded.upload("/upload?signature=planted")
            await guarded.ask("/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV", headers=key)
        lines = [vars(record) for record in caplog.records if hasattr(record, "decision")]
        assert [(line["decision"], line.get("identity"), line.get("by")) for line in lines] == [
            ("allowed", "key:ci", "keys"),
            ("allowed", "jwt:alice", "jwt"),
            ("allowed", None, "signed"),
            ("unauthenticated", None, None),
            ("unauthenticated", None, None),
            ("unauthenticated", None, None),
            ("forbidden", None, None),
            ("forbidden", "key:ci", None),
        ]
        assert lines[0]["request_id"] == "mine"
        assert [line["route"] for line in lines] == ["/upload"] * 7 + ["/uploads/{id}"]
        everything = "\n".join(map(str, (vars(record) for record in caplog.records)))
        for secret in (key["X-API-Key"], token["Authorization"], urlsplit(url).query, "planted", SECRET):
            assert secret not in everything

    async def test_an_open_route_decides_nothing(
        self, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway = await start_gateway()
        with caplog.at_level(logging.DEBUG):
            assert (await ask(gateway.port, "/upload", "POST", BODY)).status == 201
        assert [record for record in caplog.records if record.name == "gateway.access"] == []


class TestHook:
    @pytest.fixture
    async def start(
        self, start_guarded: StartGuarded, start_destination: StartDestination
    ) -> Callable[..., Awaitable[Guarded]]:
        async def start(answer: Callable[[dict[str, Any]], Awaitable[web.Response]], **document: Any) -> Guarded:
            async def may(request: web.Request) -> web.Response:
                return await answer(await request.json())

            app = web.Application()
            app.router.add_post("/may", may)
            hook = {"url": f"{(await start_destination(app)).url}/may", "timeout_seconds": 30}
            routes = [
                {"path": "/upload", "access": ["keys", "hook"], "parts": [{"sinks": ["disk"]}]},
                {"path": "/proxy", "kind": "relay", "access": ["hook"], "parts": [{"sinks": ["api"]}]},
            ]
            return await start_guarded(access={"hook": hook}, **{"routes": routes, **document})

        return start

    async def test_it_allows_shrinks_a_limit_and_writes_into_the_manifest(
        self, start: Callable[..., Awaitable[Guarded]]
    ) -> None:
        async def answer(told: dict[str, Any]) -> web.Response:
            return web.json_response(
                {"identity": "alice", "limits": {"max_bytes": 1000}, "metadata": {"order": "ä 7", "told": told}}
            )

        guarded = await start(answer)
        stored = (await guarded.upload()).json()
        assert stored["identity"] == "hook:alice"
        told = stored["metadata"]["told"]
        assert stored["metadata"]["order"] == "ä 7"
        assert (told["route"], told["method"], told["scope"], told["identity"]) == ("/upload", "POST", "upload", None)
        assert (told["address"], told["content_length"]) == ("127.0.0.1", len(BODY))
        assert (await guarded.upload(body=LARGE)).status == 413
        assert (await guarded.ask(f"/uploads/{stored['upload']}")).json() == stored
        with_key = (await guarded.upload(headers=guarded.key())).json()
        assert with_key["metadata"]["told"]["identity"] == "key:ci"

    async def test_it_adds_a_field_for_a_relay(self, start: Callable[..., Awaitable[Guarded]]) -> None:
        async def answer(told: dict[str, Any]) -> web.Response:
            return web.json_response({"fields": {"user": "alice", "ü": "ö"}})

        async with HonestUpstream() as upstream:
            guarded = await start(answer, api=upstream.url)
            assert (await guarded.upload("/proxy")).status == 200
            (received,) = upstream.whole_bodies
        assert received.index(b'name="user"\r\n\r\nalice\r\n') < received.index(b"hello")
        assert 'name="ü"\r\n\r\nö\r\n'.encode() in received

    async def test_it_refuses_with_its_own_words(self, start: Callable[..., Awaitable[Guarded]]) -> None:
        async def answer(told: dict[str, Any]) -> web.Response:
            return web.json_response({"why": "not on Fridays"}, status=402)

        guarded = await start(answer)
        answered = await guarded.upload()
        assert (answered.status, answered.json()) == (402, {"why": "not on Fridays"})
        assert answered.headers["connection"] == "close"
        assert guarded.gateway.stored() == []

    async def test_where_it_dies_nobody_comes_in(
        self, start: Callable[..., Awaitable[Guarded]], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def answer(told: dict[str, Any]) -> web.Response:
            return web.Response(status=500)

        guarded = await start(answer)
        answered = await guarded.upload()
        assert (answered.status, answered.json()["type"]) == (503, "/problems/access-unavailable")
        assert guarded.gateway.stored() == []
        warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert warned[-2:] == ["access access-unavailable", "upload access-unavailable"]

    async def test_a_slow_one_costs_no_concurrency(self, start: Callable[..., Awaitable[Guarded]]) -> None:
        at_once, all_are_there = 0, asyncio.Event()

        async def answer(told: dict[str, Any]) -> web.Response:
            nonlocal at_once
            at_once += 1
            if at_once == 100:
                all_are_there.set()
            await all_are_there.wait()
            return web.Response()

        guarded = await start(answer, server={"max_uploads": 100})
        answers = await asyncio.gather(*(guarded.upload() for _ in range(100)))
        assert {answered.status for answered in answers} == {201}


async def test_the_manifest_is_read_back_as_it_was_answered(guarded: Guarded) -> None:
    key = guarded.key()
    answer = await guarded.upload(headers=key)
    assert list(answer.json())[:2] == ["upload", "identity"]
    stored = await guarded.ask(f"/uploads/{answer.json()['upload']}", headers=key)
    assert json.loads(stored.body) == answer.json()


class TestFoundByAttackers:
    async def test_a_use_is_spent_once_a_destination_has_it_though_the_client_does_not_wait(
        self, start_guarded: StartGuarded, start_destination: StartDestination
    ) -> None:
        deliveries, may_answer = 0, asyncio.Event()

        async def receive(request: web.Request) -> web.Response:
            nonlocal deliveries
            await request.read()
            deliveries += 1
            await may_answer.wait()
            return web.Response()

        app = web.Application()
        app.router.add_post("/", receive)
        guarded = await start_guarded(api=(await start_destination(app)).url + "/")
        url = signed("/proxy", count=1)
        async with Client(guarded.gateway.port) as client:
            await client.send(request_head(url, "POST", {}, content_length=len(BODY)) + BODY)
            await eventually(lambda: deliveries == 1)
            client.reset()
        may_answer.set()
        await eventually(lambda: guarded.gateway.services.gate.in_flight == 0)
        assert (await guarded.upload(url)).status == 403
        assert deliveries == 1

    async def test_a_use_is_not_spent_where_nothing_came_of_it(self, start_guarded: StartGuarded) -> None:
        guarded = await start_guarded()
        url = signed(count=1)
        assert (await guarded.upload(url, {"X-Upload-ID": "no ulid"})).status == 400
        assert (await guarded.upload(url)).status == 201
        read = signed("/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV", count=1)
        assert [(await guarded.ask(read)).status for _ in range(3)] == [404] * 3
        stored = (await guarded.upload(headers=guarded.key())).json()["upload"]
        read = signed(f"/files/{stored}/0", count=1)
        assert [(await guarded.ask(read, method)).status for method in ("HEAD", "GET", "GET")] == [200, 200, 403]

    async def test_a_read_is_one_use_however_many_routes_would_let_it_in(self, start_guarded: StartGuarded) -> None:
        routes = [
            {"path": "/upload", "access": ["keys", "signed"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/other", "access": ["signed"], "parts": [{"sinks": ["disk"]}]},
        ]
        guarded = await start_guarded(routes=routes, quotas={"requests_per_minute": 1000})
        key = guarded.key()
        stored = (await guarded.upload(headers=key)).json()["upload"]
        url = signed(f"/files/{stored}/0", count=3)
        assert [(await guarded.ask(url, method)).status for method in ("GET", "HEAD", "GET", "GET", "GET")] == [
            *(200, 200, 200, 200),
            403,
        ]

    async def test_a_read_that_is_one_too_many_uses_nothing_up(
        self, start_guarded: StartGuarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.access.quotas._MINUTE", 3600)  # none ends meanwhile
        guarded = await start_guarded(quotas={"requests_per_minute": 2})
        key = guarded.key()
        stored = (await guarded.upload(headers=key)).json()["upload"]
        other = signed(f"/files/{stored}/0", identity="key:ci", count=2)
        assert [(await guarded.ask(other)).status for _ in range(4)] == [200, 429, 429, 429]
        monkeypatch.setattr(guarded.gateway.services.quotas, "requests_per_minute", 0)
        assert [(await guarded.ask(other)).status for _ in range(2)] == [200, 403]

    async def test_what_is_no_text_is_no_key(self, guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
        async with Client(guarded.gateway.port) as client:
            await client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nX-API-Key: \xff\r\nContent-Length: 9\r\n\r\n")
            assert (await client.answer()).status == 401
        assert not [record for record in caplog.records if record.exc_info]

    async def test_a_signature_has_one_spelling(self, guarded: Guarded) -> None:
        url = signed()
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        for place in range(1, 8):
            last = url[-place]
            for other in alphabet:
                if other != last:
                    altered = url[:-place] + other + url[len(url) - place + 1 :]
                    assert (await guarded.upload(altered)).status == 403, (place, other)
        assert (await guarded.upload(url)).status == 201

    async def test_who_is_refused_is_told_so_and_not_read_on(self, guarded: Guarded) -> None:
        """64 KiB, and what the system's buffers of both sides take."""
        async with Client(guarded.gateway.port) as client:
            await client.send(request_head("/upload", "POST", {}, content_length=10**11))
            assert (await client.answer()).status == 401
            sent = 0
            with contextlib.suppress(ConnectionError, TimeoutError):
                while sent < 1 << 30:
                    await client.send(bytes(1 << 18))
                    sent += 1 << 18
        assert sent < 32 << 20

    async def test_what_a_path_is_encodes_nothing_away(self, start_gateway: StartGateway) -> None:
        cors = {"origins": ["https://global.example"]}
        route: dict[str, Any] = {"path": "/off", "cors": {"origins": []}, "parts": [{"sinks": ["disk"]}]}
        gateway = await start_gateway(cors=cors, routes=[route])
        page = {"origin": "https://global.example", "sec_fetch_site": "cross-site"}
        for name in ("ab", "a%2Fb", "a%2fb%2Fc"):
            answer = await ask(gateway.port, f"/off/{name}", "PUT", b"x", content_type="a/b", **page)
            assert answer.status == 403, name

    async def test_any_one_that_fits_will_do(self, guarded: Guarded) -> None:
        reader = guarded.key("read")
        assert (await guarded.upload(headers=reader)).status == 403
        assert (await guarded.upload(signed(), reader)).status == 201

    async def test_a_broken_credential_does_not_come_in_where_anybody_may(self, start_guarded: StartGuarded) -> None:
        route = {"path": "/upload", "access": ["keys", "none"], "parts": [{"sinks": ["disk"]}]}
        guarded = await start_guarded(routes=[route])
        key = guarded.key()["X-API-Key"]
        assert (await guarded.upload()).status == 201
        assert (await guarded.upload(headers={"Authorization": f"Bearer {key}"})).status == 201
        for place in range(0, len(key), 5):
            altered = key[:place] + ("x" if key[place] != "x" else "y") + key[place + 1 :]
            assert (await guarded.upload(headers={"Authorization": f"Bearer {altered}"})).status == 401
            assert (await guarded.upload(headers={"X-API-Key": altered})).status == 401

    async def test_what_one_route_asks_keeps_nobody_from_what_another_one_let_in(
        self, start_guarded: StartGuarded, start_destination: StartDestination
    ) -> None:
        async def may(request: web.Request) -> web.Response:
            return answers[-1]() if answers else web.json_response({})

        answers: list[Callable[[], web.Response]] = []
        app = web.Application()
        app.router.add_post("/may", may)
        hook = {"url": f"{(await start_destination(app)).url}/may"}
        routes = [
            {"path": "/upload", "access": ["keys"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/hooked", "access": ["hook"], "parts": [{"sinks": ["disk"]}]},
        ]
        guarded = await start_guarded(access={"hook": hook}, routes=routes)
        key = guarded.key()
        location = (await guarded.upload(headers=key)).headers["location"]
        for answer in (
            lambda: web.Response(status=403),
            lambda: web.Response(status=500),
            lambda: web.json_response({"identity": "ci"}),
        ):
            answers.append(answer)
            assert (await guarded.ask(location, headers=key)).status == 200
        hooked = (await guarded.upload("/hooked")).headers["location"]
        assert (await guarded.ask(hooked)).status == 200, "it is hook:ci's"
        answers.append(lambda: web.json_response({"identity": "other"}))
        assert (await guarded.ask(hooked)).status == 404

    async def test_a_quota_that_is_used_up_is_a_decision(
        self, start_guarded: StartGuarded, caplog: pytest.LogCaptureFixture
    ) -> None:
        guarded = await start_guarded(quotas={"bytes_per_day": len(BODY)})
        key = guarded.key()
        with caplog.at_level(logging.INFO):
            assert [(await guarded.upload(headers=key)).status for _ in range(2)] == [201, 429]
        lines = [vars(record) for record in caplog.records if hasattr(record, "decision")]
        assert [(line["decision"], line["identity"]) for line in lines] == [
            ("allowed", "key:ci"),
            ("too-many-requests", "key:ci"),
        ]

    async def test_what_is_not_there_for_one_is_a_line_too(
        self, guarded: Guarded, caplog: pytest.LogCaptureFixture
    ) -> None:
        location = (await guarded.upload(headers=guarded.key())).headers["location"]
        with caplog.at_level(logging.INFO):
            assert (await guarded.ask(location, headers=guarded.key(name="other"))).status == 404
        (line,) = [vars(record) for record in caplog.records if getattr(record, "decision", "") == "not-theirs"]
        assert (line["identity"], f"/uploads/{line['upload']}") == ("key:other", location)

    async def test_a_key_goes_to_no_destination(self, start_gateway: StartGateway) -> None:
        async with HonestUpstream() as upstream:
            routes = [{"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["api"]}]}]
            sinks = {"api": {"type": "relay", "url": upstream.url, "forward_headers": ["X-API-Key"]}}
            gateway = await start_gateway(routes=routes, sinks=sinks)
            key, _ = new_key("ci", SCOPES)
            assert (await ask(gateway.port, "/proxy", "POST", BODY, x_api_key=key)).status == 200
            (exchange,) = upstream.exchanges
        assert key not in str(exchange.headers)

    async def test_one_address_leaves_reads_to_others(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_reads": 8, "max_uploads_per_address": 4})
        location = (await ask(gateway.port, "/upload", "POST", BODY)).headers["location"]
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                client = await stack.enter_async_context(Client(gateway.port))
                await client.send(head("/selftest/buffering", content_length=100) + b"x")
            await eventually(lambda: gateway.services.gate.reads.in_flight == 2)
            assert (await ask(gateway.port, location)).status == 429
        await eventually(lambda: gateway.services.gate.reads.in_flight == 0)
        assert (await ask(gateway.port, location)).status == 200


class TestHookOnTheWay:
    async def test_where_no_byte_is_allowed_none_comes_in(
        self, start_guarded: StartGuarded, start_destination: StartDestination
    ) -> None:
        async def may(request: web.Request) -> web.Response:
            return web.json_response({"limits": {"max_bytes": 0}})

        app = web.Application()
        app.router.add_post("/may", may)
        hook = {"url": f"{(await start_destination(app)).url}/may"}
        routes = [{"path": "/upload", "access": ["hook"], "parts": [{"sinks": ["disk"]}]}]
        guarded = await start_guarded(access={"hook": hook}, routes=routes)
        raw = {"Content-Type": "a/b"}
        assert (await guarded.ask("/upload/a", "PUT", b"x", raw)).status == 413
        async with Client(guarded.gateway.port) as client:
            await client.send(
                request_head("/upload/a", "PUT", raw, transfer_encoding="chunked") + b"1\r\nx\r\n0\r\n\r\n"
            )
            assert (await client.answer()).status == 413
        assert (await guarded.ask("/upload/a", "PUT", b"", {**raw, "Content-Length": "0"})).status == 201

    @pytest.mark.parametrize("sink", [{"length": "passthrough"}, {}])
    async def test_fields_that_cannot_be_sent_along_or_that_the_client_has_are_no_success(
        self, start_guarded: StartGuarded, start_destination: StartDestination, sink: dict[str, Any]
    ) -> None:
        async def may(request: web.Request) -> web.Response:
            return web.json_response({"fields": {"user": "alice"}})

        app = web.Application()
        app.router.add_post("/may", may)
        hook = {"url": f"{(await start_destination(app)).url}/may"}
        routes = [{"path": "/proxy", "kind": "relay", "access": ["hook"], "parts": [{"sinks": ["api"]}]}]
        async with HonestUpstream() as upstream:
            sinks = {"api": {"type": "relay", "url": upstream.url, **sink}}
            guarded = await start_guarded(access={"hook": hook}, routes=routes, sinks=sinks)
            own = b'--b0undary\r\nContent-Disposition: form-data; name="user"\r\n\r\nadmin\r\n'
            answer = await guarded.upload("/proxy", body=form(file(b"hello"), own))
            assert answer.status == (503 if sink else 403)
            assert not upstream.whole_bodies


class TestLinks:
    """Signed ones, to what is stored."""

    async def test_they_are_the_owner_s_whoever_else_the_one_who_asks_is(self, start_guarded: StartGuarded) -> None:
        routes = [
            {"path": path, "access": [kind], "parts": [{"sinks": ["disk"]}]}
            for path, kind in (("/upload", "keys"), ("/other", "jwt"), ("/convert", "signed"), ("/proxy", "signed"))
        ]
        guarded = await start_guarded(routes=routes, page={"enabled": True})
        both, foreign = {**guarded.key(), **guarded.token()}, guarded.key(name="other")
        for target, owner in (("/upload", "key:ci"), ("/other", "alice")):
            kept = (await guarded.upload(target, both)).json()
            assert owner in kept["identity"]
            for what in ("0", "archive.zip"):
                link = await guarded.ask(f"/uploads/{kept['upload']}/links/{what}", headers=both)
                assert (await guarded.ask(link.json()["url"])).status == 200, (target, what)
            assert (await guarded.ask(f"/uploads/{kept['upload']}/links/0", headers=foreign)).status == 404

    @pytest.mark.parametrize(
        "what", ["1", "00", "0x", "-1", "archive", "0%2Fa.txt", "0%3Fsignature=x", "%2e%2e", "links"]
    )
    async def test_there_are_none_to_what_is_not_there(self, start_guarded: StartGuarded, what: str) -> None:
        guarded = await start_guarded(page={"enabled": True})
        key = guarded.key()
        upload_id = (await guarded.upload(headers=key)).json()["upload"]
        assert (await guarded.ask(f"/uploads/{upload_id}/links/0", headers=key)).status == 200
        assert (await guarded.ask(f"/uploads/{upload_id}/links/{what}", headers=key)).status == 404
