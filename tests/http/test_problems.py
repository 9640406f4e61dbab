"""Errors as problem documents: their members, and the headers that go with them."""

from __future__ import annotations

import json
import re

import pytest

from gateway.errors import LEAVES, GatewayError
from gateway.http.problems import problem
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import ask, file, form

BODY = form(file(b"abc"))

each_leaf = pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)


@each_leaf
def test_a_503_says_when_to_come_back_and_nothing_else_does(leaf: type[GatewayError]) -> None:
    if leaf.status == 503:
        assert leaf.retry_after_seconds is not None
        assert leaf.retry_after_seconds > 0
        assert problem(leaf()).headers["Retry-After"] == str(leaf.retry_after_seconds)
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
