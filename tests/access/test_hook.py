from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from gateway.access import hook as hook_module
from gateway.access.asked import ANYBODY, Asked, Caps, Identity
from gateway.access.hook import Hook
from gateway.errors import AccessUnavailable, RefusedByHook
from tests.conftest import StartDestination

ASKED = Asked(
    "upload",
    "/upload",
    headers=CIMultiDict([("Authorization", "Basic eDp5"), ("Cookie", "c=d")]),
    upload="01ID",
    request_id="mine",
    peer="192.0.2.7",
    content_type="multipart/form-data; boundary=x",
    content_length=100,
)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Application:
    """One's own, which decides; what it was told is kept."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answer: Answer = self.says({})
        self.app = web.Application()
        self.app.router.add_post("/may", self._may)

    @staticmethod
    def says(document: Any, status: int = 200) -> Answer:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(document, status=status)

        return answer

    async def _may(self, request: web.Request) -> web.StreamResponse:
        self.told.append(await request.json())
        return await self.answer(request)


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
async def url(application: Application, start_destination: StartDestination) -> str:
    return f"{(await start_destination(application.app)).url}/may"


@pytest.fixture
async def hook(url: str) -> AsyncIterator[Hook]:
    async with Hook(url, timeout_seconds=0.5, lets_in_on_error=False, forward=["Authorization", "X-None"]) as hook:
        yield hook


async def test_it_is_told_what_is_asked_for_and_no_header_but_those_that_are_configured(
    hook: Hook, application: Application
) -> None:
    assert await hook.ask(ASKED, Identity("key:ci", "keys")) == Identity("key:ci", "keys")
    assert application.told == [
        {
            "id": "01ID",
            "request_id": "mine",
            "route": "/upload",
            "method": "POST",
            "scope": "upload",
            "identity": "key:ci",
            "headers": {"Authorization": "Basic eDp5"},
            "content_type": "multipart/form-data; boundary=x",
            "content_length": 100,
            "address": "192.0.2.7",
        }
    ]


async def test_it_says_who_that_is_and_what_is_allowed(hook: Hook, application: Application) -> None:
    application.answer = application.says(
        {
            "identity": "alice",
            "limits": {"max_bytes": 10, "types": ["image/*"], "filename": "a.png"},
            "metadata": {"order": 7, "tags": ["a"]},
            "fields": {"user": "alice"},
            "something": "else",
        }
    )
    assert await hook.ask(ASKED, None) == Identity(
        "hook:alice",
        "hook",
        caps=Caps.of(max_bytes=10, types=["image/*"], filename="a.png"),
        metadata={"order": 7, "tags": ["a"]},
        fields=(("user", "alice"),),
    )


async def test_it_shrinks_what_a_credential_allows_and_widens_nothing(hook: Hook, application: Application) -> None:
    application.answer = application.says({"limits": {"max_bytes": 100}})
    known = Identity("key:ci", "signed", frozenset(["read"]), Caps.of(max_bytes=10, types=["image/*"]), use="u")
    assert await hook.ask(ASKED, known) == known


@pytest.mark.parametrize("body", [b"", b"  ", b"{}"])
async def test_an_empty_answer_allows(hook: Hook, application: Application, body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    application.answer = answer
    assert await hook.ask(ASKED, None) == Identity(by="hook")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 429, 499])
async def test_4xx_is_the_clients_answer(hook: Hook, application: Application, status: int) -> None:
    application.answer = application.says({"why": "no"}, status)
    with pytest.raises(RefusedByHook) as refused:
        await hook.ask(ASKED, None)
    assert (refused.value.answer_status, json.loads(refused.value.answer)) == (status, {"why": "no"})
    assert refused.value.content_type.startswith("application/json")


async def test_of_a_long_refusal_the_first_64_kib_are_told(hook: Hook, application: Application) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=403)
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"x" * 10_000)
        return response

    application.answer = answer
    with pytest.raises(RefusedByHook) as refused:
        await hook.ask(ASKED, None)
    assert refused.value.answer == b"x" * 65536


FAILING: dict[str, Any] = {
    "500": Application.says({}, 500),
    "302": Application.says({}, 302),
    "no object": Application.says([1]),
    "limits that are none": Application.says({"limits": {"max_bytes": -1}}),
    "a limit that it does not know": Application.says({"limits": {"max_files": 1}}),
    "metadata that are none": Application.says({"metadata": "x"}),
    "a field that no form can have": Application.says({"fields": {"a\0b": "c"}}),
    "a field without a name": Application.says({"fields": {"": "c"}}),
    "an identity that is too long": Application.says({"identity": "x" * 300}),
    "metadata that are too long": Application.says({"metadata": {"x": "y" * 70_000}}),
}


@pytest.mark.parametrize("answer", FAILING.values(), ids=FAILING)
async def test_what_cannot_be_obeyed_refuses(hook: Hook, application: Application, answer: Answer) -> None:
    application.answer = answer
    with pytest.raises(AccessUnavailable):
        await hook.ask(ASKED, None)


async def test_a_hook_that_takes_too_long_or_is_gone_refuses(hook: Hook, application: Application) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    application.answer = answer
    with pytest.raises(AccessUnavailable):
        await hook.ask(ASKED, Identity("key:ci", "keys"))

    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    application.answer = drop
    with pytest.raises(AccessUnavailable):
        await hook.ask(ASKED, None)


async def test_it_lets_in_where_that_is_configured(url: str, application: Application) -> None:
    application.answer = application.says({}, 500)
    async with Hook(url, timeout_seconds=1, lets_in_on_error=True, forward=()) as hook:
        assert await hook.ask(ASKED, None) == ANYBODY
        assert await hook.ask(ASKED, Identity("key:ci", "keys")) == Identity("key:ci", "keys")
        application.answer = application.says({}, 403)
        with pytest.raises(RefusedByHook):
            await hook.ask(ASKED, None)


async def test_one_that_does_not_answer_is_left_alone_for_a_while(
    hook: Hook, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "_OPEN_SECONDS", 0.3)

    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    application.answer = hang_up
    for _ in range(20):
        with pytest.raises(AccessUnavailable):
            await hook.ask(ASKED, None)
    assert len(application.told) == 5
    application.answer = application.says({})
    await asyncio.sleep(0.35)
    for _ in range(3):
        await hook.ask(ASKED, None)
    assert len(application.told) == 8


async def test_an_answer_is_about_one_request_though_it_be_a_500(hook: Hook, application: Application) -> None:
    application.answer = application.says({}, 500)
    for _ in range(20):
        with pytest.raises(AccessUnavailable):
            await hook.ask(ASKED, None)
    assert len(application.told) == 20


async def test_who_waits_for_his_turn_has_not_begun_to_wait_for_the_hook(
    application: Application, start_destination: StartDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "_MAX_CONNECTIONS", 2)

    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/may", slowly)
    url = f"{(await start_destination(app)).url}/may"
    async with Hook(url, timeout_seconds=1, lets_in_on_error=False, forward=()) as busy:
        await asyncio.gather(*(busy.ask(ASKED, None) for _ in range(10)))


@pytest.mark.parametrize(
    ("body", "content_type", "right"),
    [
        (b"ok", "text/plain", True),
        (b"", "application/json", True),
        (b"ok", "application/json", False),
        (b'{"metadata": {"a": NaN}}', "application/json", False),
        (b'{"identity": ""}', "application/json", False),
        (b'{"limits": {"max_bytes": 0}}', "application/vnd.x+json", True),
    ],
)
async def test_what_an_answer_may_be(
    hook: Hook, application: Application, body: bytes, content_type: str, right: bool
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type)

    application.answer = answer
    if right:
        allowed = await hook.ask(ASKED, None)
        assert allowed.caps.max_bytes == (0 if b"max_bytes" in body else None)
    else:
        with pytest.raises(AccessUnavailable):
            await hook.ask(ASKED, None)


async def test_a_header_that_comes_twice_is_told_as_one_line(hook: Hook, application: Application) -> None:
    await hook.ask(replace(ASKED, headers=CIMultiDict([("Authorization", "a"), ("Authorization", "b")])), None)
    assert application.told[0]["headers"] == {"Authorization": "a, b"}


async def test_refusals_are_no_failures(hook: Hook, application: Application) -> None:
    application.answer = application.says({}, 403)
    for _ in range(20):
        with pytest.raises(RefusedByHook):
            await hook.ask(ASKED, None)
    assert len(application.told) == 20
