"""Counts that replicas have together, in a real server; what each of them does: test_counts.py."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.access import SCOPES, new_key
from gateway.access.postgres import PostgresCounts
from gateway.errors import AccessUnavailable
from tests.access.conftest import needs_postgres
from tests.conftest import StartGateway
from tests.support.clients import ask, file, form

pytestmark = pytest.mark.sockets

BODY = form(file(b"hello"))


@pytest.fixture
def refusing() -> Iterator[str]:
    """Where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"postgresql://gateway@127.0.0.1:{bound.getsockname()[1]}/postgres"


@needs_postgres
async def test_replicas_count_together_from_the_first_moment(database: str) -> None:
    with closing(PostgresCounts(database)) as one, closing(PostgresCounts(database)) as other:
        await one._run("DROP TABLE gateway_counts")
    with closing(PostgresCounts(database)) as one, closing(PostgresCounts(database)) as other:
        until = time.time() + 60
        both = [counts.add("together", 1, most=50, until=until) for counts in (one, other) for _ in range(50)]
        assert sum(await asyncio.gather(*both)) == 50
    with closing(PostgresCounts(database)) as later:
        assert not await later.add("together", 1, most=50, until=until)


@needs_postgres
async def test_a_quota_is_of_all_replicas(start_gateway: StartGateway, tmp_path: Path, database: str) -> None:
    key, line = new_key("replicas", SCOPES)
    (tmp_path / "keys.toml").write_text(line)
    routes = [{"path": "/upload", "access": ["keys"], "parts": [{"sinks": ["disk"]}]}]
    quotas = {"postgres": database, "bytes_per_day": 3 * len(BODY)}
    access = {"keys": {"file": str(tmp_path / "keys.toml")}}
    replicas = [await start_gateway(routes=routes, access=access, quotas=quotas) for _ in range(2)]
    answers = [await ask(replicas[turn % 2].port, "/upload", "POST", BODY, x_api_key=key) for turn in range(6)]
    assert [answer.status for answer in answers] == [201] * 3 + [429] * 3


async def test_without_the_database_who_has_a_quota_is_told_so_and_nobody_else_is(
    start_gateway: StartGateway, tmp_path: Path, refusing: str
) -> None:
    key, line = new_key("replicas", SCOPES)
    (tmp_path / "keys.toml").write_text(line)
    routes = [{"path": "/upload", "access": ["keys", "none"], "parts": [{"sinks": ["disk"]}]}]
    quotas = {"postgres": refusing, "bytes_per_day": 1000}
    gateway = await start_gateway(routes=routes, access={"keys": {"file": str(tmp_path / "keys.toml")}}, quotas=quotas)
    answer = await ask(gateway.port, "/upload", "POST", BODY, x_api_key=key)
    assert (answer.status, answer.json()["type"]) == (503, "/problems/access-unavailable")
    assert refusing not in answer.body.decode()
    assert (await ask(gateway.port, "/upload", "POST", BODY)).status == 201


async def test_a_database_that_does_not_answer_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.postgres._SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://gateway@127.0.0.1:{silent.getsockname()[1]}/postgres"
        with closing(PostgresCounts(url)) as counts:
            began = time.monotonic()
            with pytest.raises(AccessUnavailable):
                await counts.add("a", 1, most=5, until=time.time() + 60)
            assert time.monotonic() - began < 5


@needs_postgres
async def test_it_is_asked_again_when_it_is_back(database: str, refusing: str) -> None:
    with closing(PostgresCounts(refusing)) as counts:
        with pytest.raises(AccessUnavailable):
            await counts.add("back", 1, most=5, until=time.time() + 60)
        counts._url = database
        assert await counts.add("back", 1, most=5, until=time.time() + 60)
