"""Every fast path through the fault suite: none of them skips a limit, a digest, an fsync or the all-or-nothing rule.

A file goes its way through the gateway in one of several manners, which depend on its size and on how its bytes
come; each of them is driven here on purpose, to disk and to a relay at once, and then spoiled.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.sinks.disk.jobs import Jobs
from tests.conftest import Destination, RunningGateway, StartDestination, StartGateway
from tests.support.clients import BOUNDARY as B
from tests.support.clients import Answer, Client, VanishingClient, ask, eventually, form, head, random_bytes

ROUTES = [
    {"path": "/upload", "kind": "upload", "parts": [{"sinks": ["disk", "api"]}]},
    {"path": "/each", "kind": "upload", "keep": "each", "parts": [{"sinks": ["disk"]}]},
]
HOLD_SECONDS = 0.05
"""How long the pump holds the beginning of a small file (pump.py)."""


def part(data: bytes, number: int, *headers: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="file"; filename="{number}"', "Content-Type: text/x-test", *headers]
    return b"--%b\r\n%b\r\n\r\n%b" % (B, "\r\n".join(lines).encode(), data)


@dataclass(frozen=True)
class Way:
    """Files of `sizes`, sent in pieces of `piece` bytes with a pause between them."""

    sizes: tuple[int, ...]
    piece: int = 1 << 30
    pause_seconds: float = 0.0

    def files(self) -> list[bytes]:
        return [random_bytes(size) for size in self.sizes]

    async def send(self, client: Client, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it may be answered, and closed, while we are sending
            for start in range(0, len(body), self.piece):
                await client.send(body[start : start + self.piece])
                await asyncio.sleep(self.pause_seconds)


WAYS = {
    "whole in a buffer": Way((900,) * 12),
    "hashed in a thread": Way((60_000,) * 4),
    "gathered while the sink is busy": Way((1000,) * 3000),
    "in two buffers": Way((100_000,) * 6, piece=70_000, pause_seconds=0.001),
    "held, then let go": Way((40_000,) * 2, piece=25_000, pause_seconds=2 * HOLD_SECONDS),
    "the long way": Way((700_000, 300_000)),
    "empty": Way((0, 0, 5)),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.fixture
async def destination(start_destination: StartDestination) -> Destination:
    return await start_destination()


@pytest.fixture
async def gateway(start_gateway: StartGateway, destination: Destination) -> RunningGateway:
    limits = {"max_parts": 3000, "max_file_bytes": 700_000}
    return await start_gateway(api=f"{destination.url}/upload", routes=ROUTES, limits=limits)


async def send(gateway: RunningGateway, way: Way, body: bytes, target: str = "/upload") -> Answer:
    async with Client(gateway.port) as client:
        await client.send(head(target, content_length=len(body)))
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(way.send(client, body))
            answer = await client.answer()
            sending.cancel()  # it may have been answered early
        return answer


async def nothing_is_left(gateway: RunningGateway, destination: Destination) -> None:
    await eventually(lambda: not gateway.services.requests)
    await eventually(lambda: gateway.stored() == [])
    async with asyncio.timeout(20):
        while True:
            seen = (await ask(destination.port, "/seen")).json()
            assert seen["completed"] == 0
            if seen["started"] == seen["aborted"]:
                return
            await asyncio.sleep(0.02)


def whole(files: list[bytes]) -> bytes:
    return form(*[part(data, number) for number, data in enumerate(files)])


@each_way
async def test_every_byte_arrives_with_its_digest(gateway: RunningGateway, destination: Destination, way: Way) -> None:
    files = way.files()
    answer = await send(gateway, way, whole(files))
    assert answer.status == 201
    manifest = answer.json()
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    assert [entry["sha256"] for entry in manifest["parts"]] == digests
    assert [len(entry["receipts"]) for entry in manifest["parts"]] == [2] * len(files)
    (kept,) = gateway.root.iterdir()
    assert [hashlib.sha256((kept / str(n)).read_bytes()).hexdigest() for n in range(len(files))] == digests
    seen = (await ask(destination.port, "/seen")).json()["last"]["parts"]
    assert [(entry["filename"], entry["sha256"]) for entry in seen] == [
        (str(number), digest) for number, digest in enumerate(digests)
    ]


@each_way
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
async def test_a_cut_leaves_nothing(gateway: RunningGateway, destination: Destination, way: Way, share: float) -> None:
    body = whole(way.files())
    cut = min(int(len(body) * share), len(body) - len("--\r\n") - 1)
    async with VanishingClient(gateway.port) as client:
        await client.send(head("/upload", content_length=len(body)))
        await way.send(client, body[:cut])
        await client.vanish_after(b"", "fin")
    answer = await send(gateway, way, body[:cut])
    assert (answer.status, answer.json()["type"]) == (400, "/problems/truncated")
    await nothing_is_left(gateway, destination)


def _too_large(files: list[bytes]) -> tuple[bytes, int, str]:
    return whole([*files[:-1], random_bytes(700_001)]), 413, "too-large"


def _too_many(files: list[bytes]) -> tuple[bytes, int, str]:
    return whole(files + [b""] * (3001 - len(files))), 413, "too-many-parts"


def _wrong_digest(files: list[bytes]) -> tuple[bytes, int, str]:
    wrong = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
    parts = [part(data, number) for number, data in enumerate(files[:-1])]
    last = part(files[-1], 99, f"Content-Digest: sha-256=:{wrong}:")
    return form(*parts, last), 400, "digest-mismatch"


def _malformed(files: list[bytes]) -> tuple[bytes, int, str]:
    return whole(files)[: -len(B) - 6] + b"--%b\nx" % B, 400, "malformed"


FAULTS: list[Callable[[list[bytes]], tuple[bytes, int, str]]] = [_too_large, _too_many, _wrong_digest, _malformed]


@each_way
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_limit_a_digest_and_the_grammar_hold_at_the_last_part(
    gateway: RunningGateway, destination: Destination, way: Way, fault: Callable[..., tuple[bytes, int, str]]
) -> None:
    body, status, slug = fault(way.files())
    answer = await send(gateway, way, body)
    assert (answer.status, answer.json()["type"]) == (status, f"/problems/{slug}")
    await nothing_is_left(gateway, destination)


@each_way
async def test_a_right_digest_is_confirmed_and_the_next_part_owes_none(gateway: RunningGateway, way: Way) -> None:
    files = way.files()
    right = base64.b64encode(hashlib.sha256(files[0]).digest()).decode()
    first = part(files[0], 0, f"Content-Digest: sha-256=:{right}:")
    rest = [part(data, number) for number, data in enumerate(files[1:], 1)]
    for target in ("/upload", "/each"):
        answer = await send(gateway, way, form(first, *rest), target)
        assert answer.status == 201
        assert [entry.get("verified") for entry in answer.json()["parts"]] == [["sha256"], *[None] * len(rest)]


@each_way
async def test_if_one_sink_fails_none_keeps_anything(
    gateway: RunningGateway, destination: Destination, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Jobs, *arguments: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(Jobs, "publish", full)
    answer = await send(gateway, way, whole(way.files()))
    assert (answer.status, answer.json()["type"]) == (502, "/problems/incomplete")  # the relay commits first
    assert gateway.stored() == []


@each_way
async def test_what_is_acknowledged_was_flushed(
    start_gateway: StartGateway, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(
        routes=[{"path": "/upload", "parts": [{"sinks": ["disk"]}]}], limits={"max_parts": 3000}, fsync=True
    )
    flushed: set[str] = set()
    fsync = os.fsync

    def spying(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", spying)
    files = way.files()
    answer = await send(gateway, way, whole(files))
    assert answer.status == 201
    manifest: dict[str, Any] = answer.json()
    wanted = {str(number) for number in range(len(files))} | {"manifest.json", gateway.root.name}
    assert wanted <= flushed
    assert f".{manifest['upload']}.incoming" in flushed
