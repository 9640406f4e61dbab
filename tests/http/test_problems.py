"""Errors as problem documents: their members, and the headers that go with them."""

from __future__ import annotations

import json
import re

import pytest
from aiohttp import web

from gateway.errors import LEAVES, GatewayError, TooManyRequests
from gateway.http.problems import problem, problem_middleware
from gateway.multipart.reader import StreamingMultipartReader
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, ask, file, form, head

BODY = form(file(b"abc"))

each_leaf = pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)


@each_leaf
def test_a_503_and_a_429_say_when_to_come_back_and_nothing_else_does(leaf: type[GatewayError]) -> None:
    if leaf.status == 503:
        assert leaf.retry_after_seconds is not None
        assert leaf.retry_after_seconds > 0
        assert problem(leaf()).headers["Retry-After"] == str(leaf.retry_after_seconds)
    elif leaf is TooManyRequests:
        headers = problem(leaf("x", limit=3, retry_after=7, quota="requests", window_seconds=60)).headers
        assert headers["Retry-After"] == "7"
        assert (headers["RateLimit-Policy"], headers["RateLimit"]) == ('"requests";q=3;w=60', '"requests";r=0;t=7')
    elif leaf.retry_after_seconds is None:
        assert "Retry-After" not in problem(leaf()).headers


@each_leaf
def test_every_leaf_becomes_a_problem_document(leaf: type[GatewayError]) -> None:
    response = problem(leaf("what happened", limit=7), instance="/uploads/x")
    assert response.status == leaf.status
    assert response.content_type == "application/problem+json"
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "type": f"/problems/{leaf.slug()}",
        "title": leaf.title,
        "status": leaf.status,
        "detail": "what happened",
        "instance": "/uploads/x",
        "limit": 7,
    }


async def test_a_problem_has_the_members_of_rfc_9457_and_those_that_help(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"max_file_bytes": 2})
    answer = await ask(gateway.port, "/upload", "POST", BODY)
    assert answer.status == 413
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert list(document) == ["type", "title", "status", "detail", "instance", "limit", "part"]
    assert (document["type"], document["status"]) == ("/problems/too-large", 413)
    assert (document["limit"], document["part"]) == (2, 0)
    assert re.fullmatch("/uploads/[0-9A-Z]{26}", document["instance"])


async def test_a_problem_of_a_destination_names_the_sink_and_its_status(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    route = {"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}
    gateway = await start_gateway(api=f"{destination.url}/?status=418", routes=[route])
    document = (await ask(gateway.port, "/both", "POST", BODY)).json()
    assert (document["type"], document["status"]) == ("/problems/sink-refused", 502)
    assert (document["sink"], document["sink_status"]) == ("api", 418)
    assert gateway.stored() == []


async def test_the_middleware_answers_what_a_reader_raises_in_any_application(
    start_destination: StartDestination,
) -> None:
    async def read(request: web.Request) -> web.Response:
        async for part in StreamingMultipartReader(request.headers, request.content, max_parts=2):
            await part.read()
        return web.Response(text="whole")

    app = web.Application(middlewares=[problem_middleware])
    app.router.add_post("/", read)
    port = (await start_destination(app)).port
    good = await ask(port, "/", "POST", BODY)
    assert (good.status, good.body) == (200, b"whole")
    for body, status, slug in (
        (BODY[:-4], 400, "truncated"),
        (b"no multipart", 400, "truncated"),
        (BODY.replace(b"form-data; name", b"form-data; nome"), 400, "malformed"),
        (form(*[file(b"x")] * 3), 413, "too-many-parts"),
        (BODY.replace(b"\r\n\r\n", b"\r\nX: %b\r\n\r\n" % (b"y" * 20_000), 1), 413, "too-large"),
    ):
        answer = await ask(port, "/", "POST", body)
        assert (answer.status, answer.json()["type"]) == (status, f"/problems/{slug}")
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await ask(port, "/", "POST", BODY, content_type="text/plain")).status == 400
    assert (await ask(port, "/elsewhere", "POST", BODY)).status == 404


async def test_the_middleware_closes_a_connection_whose_body_nobody_reads(start_destination: StartDestination) -> None:
    async def read(request: web.Request) -> web.Response:
        await StreamingMultipartReader(request.headers, request.content).next()
        raise AssertionError("it is malformed")

    app = web.Application(middlewares=[problem_middleware])
    app.router.add_post("/", read)
    port = (await start_destination(app)).port
    malformed = BODY.replace(b"name=", b"nome=")
    for declared, connection in ((len(malformed), None), (5_000_000, "close")):
        async with Client(port) as client:
            await client.send(head("/", content_length=declared) + malformed)
            answer = await client.answer()
            assert (answer.status, answer.headers.get("connection")) == (400, connection)
