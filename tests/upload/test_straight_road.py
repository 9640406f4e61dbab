"""Uploads that are whole in memory before a sink is opened: one batch, one job on disk, and the same rules."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.concurrency.threads import DaemonThreads
from gateway.upload.handover import Handover
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import BOUNDARY as B
from tests.support.clients import Answer, Client, eventually, file, form, head

ROUTES = [
    {"path": "/upload", "parts": [{"sinks": ["disk"]}]},
    {"path": "/each", "keep": "each", "parts": [{"sinks": ["disk"]}]},
    {"path": "/both", "parts": [{"sinks": ["disk", "none"]}]},
]
SMALL = form(file(b"a" * 3000), file(b"b" * 3000), file(b"c" * 3000))


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway(routes=ROUTES)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that each job was given to."""
    jobs: list[str] = []
    add = DaemonThreads.add

    def adding(self: DaemonThreads, call: Callable[[], Any], *arguments: Any) -> Any:
        jobs.append(self._name)
        return add(self, call, *arguments)

    monkeypatch.setattr(DaemonThreads, "add", adding)
    return jobs


def stored(gateway: RunningGateway) -> list[Path]:
    return [path for path in gateway.stored() if path.is_dir()]


async def at_once(gateway: RunningGateway, body: bytes, path: str = "/upload", *, method: str = "POST") -> Answer:
    """Head and body in one piece, so that all of it is there before anybody looks."""
    async with Client(gateway.port) as client:
        headers = {} if method == "POST" else {"content_type": "text/plain"}
        await client.send(head(path, method, content_length=len(body), **headers) + body)
        return await client.answer()


async def test_on_disk_it_is_one_job_and_no_task(
    gateway: RunningGateway, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hand_over(self: Handover, *, at_once: bool = False) -> None:
        raise AssertionError("this is for what comes in pieces")

    monkeypatch.setattr(Handover, "hand_over", hand_over)
    answer = await at_once(gateway, SMALL)
    assert answer.status == 201
    assert jobs == ["disk-disk"]
    (upload,) = stored(gateway)
    for index, letter in enumerate(b"abc"):
        assert (upload / str(index)).read_bytes() == bytes([letter]) * 3000
        sha256 = hashlib.sha256(bytes([letter]) * 3000).hexdigest()
        assert answer.json()["parts"][index]["sha256"] == sha256
    assert (upload / "manifest.json").read_bytes() == answer.body


async def test_so_is_a_raw_body(gateway: RunningGateway, jobs: list[str]) -> None:
    for body in (b"raw", b""):
        jobs.clear()
        answer = await at_once(gateway, body, "/upload/a.txt", method="PUT")
        assert answer.status == 201
        assert jobs == ["disk-disk"]
        (part,) = answer.json()["parts"]
        assert (part["filename"], part["size"]) == ("a.txt", len(body))


async def test_those_that_come_at_the_same_time_are_few_jobs(gateway: RunningGateway, jobs: list[str]) -> None:
    clients = [Client(gateway.port) for _ in range(24)]
    async with asyncio.TaskGroup() as connecting:
        for client in clients:
            connecting.create_task(client.__aenter__())
    try:
        for client in clients:
            await client.send(head("/upload", content_length=len(SMALL)) + SMALL)
        assert {(await client.answer()).status for client in clients} == {201}
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)
    assert len(stored(gateway)) == 24
    assert len(jobs) < 12


@pytest.mark.parametrize("path", ["/upload", "/each", "/both"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (SMALL[:-10], 400),
        (b"--%b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--%b--\r\n" % (B, B), 400),
        (SMALL, 201),
    ],
    ids=["cut off", "malformed", "whole"],
)
async def test_what_is_wrong_with_it_is_told_and_nothing_is_kept(
    gateway: RunningGateway, path: str, body: bytes, status: int
) -> None:
    assert (await at_once(gateway, body, path)).status == status
    assert len(stored(gateway)) == (status == 201)
    await eventually(lambda: not gateway.services.requests)


@pytest.mark.parametrize(("path", "status", "kept"), [("/upload", 400, None), ("/each", 207, [True, False])])
async def test_a_digest_that_is_wrong_is_wrong_before_anything_is_written(
    gateway: RunningGateway, path: str, status: int, kept: list[bool] | None
) -> None:
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    declared = b"Content-Digest: sha-256=:%b:\r\n" % wrong.encode()
    second = b'--%b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n%b\r\nx\r\n' % (B, declared)
    answer = await at_once(gateway, form(file(b"good"))[: -len(b"--%b--\r\n" % B)] + second + b"--%b--\r\n" % B, path)
    assert answer.status == status
    if kept is None:
        assert stored(gateway) == []
    else:
        (upload,) = stored(gateway)
        assert [(upload / str(index)).exists() for index in range(2)] == kept
