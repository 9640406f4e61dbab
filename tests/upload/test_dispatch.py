"""Parts to sinks, concurrently: through a whole gateway on real sockets. When a sink fails: test_dispatch_failures."""

from __future__ import annotations

import asyncio
import hashlib
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import ClientSession

from gateway.concurrency.pipe import Progress, Window
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.contract import answer_of, eventually, form, nothing_left_running, sha256
from tests.support.doubles import (
    GatedSink,
    HonestUpstream,
    MemorySink,
    SlowSink,
)

Wire = tuple[bytes, bytes | None, bytes]

_PATIENCE_SECONDS = 10  # a hang is longer, the slowest here takes 2
WINDOW_BYTES = 1 << 20
S = TypeVar("S", bound=MemorySink)


def double(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"tests.support.doubles:{kind}", **arguments}


def route(*sinks: str, **members: Any) -> list[dict[str, Any]]:
    return [{"path": "/upload", "parts": [{"sinks": list(sinks)}], **members}]


def sink_of(gateway: RunningGateway, name: str, kind: type[S]) -> S:
    sink = gateway.services.sinks[name]
    assert isinstance(sink, kind)
    return sink


async def post(gateway: RunningGateway, *parts: Wire) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session:
        return await answer_of(session, gateway.url + "/upload", form(*parts))


def files(count: int, size: int) -> list[Wire]:
    return [(b"file", b"%d.bin" % index, bytes([index]) * size) for index in range(count)]


@asynccontextmanager
async def keeping_nothing(gateway: RunningGateway) -> AsyncIterator[None]:
    """Whatever happens within leaves no task, no file, and no delivery that is open."""
    async with nothing_left_running():
        yield
        await eventually(lambda: gateway.services.gate.in_flight == 0)
    assert gateway.stored() == []
    for sink in gateway.services.sinks.values():
        if isinstance(sink, MemorySink):
            assert (sink.kept, sink.open_deliveries, sink.open_parts) == ({}, 0, 0)


# -- concurrency


@pytest.mark.parametrize("size", [10, WINDOW_BYTES, WINDOW_BYTES + 1000], ids=["tiny", "a window", "more"])
async def test_slow_sinks_work_on_several_parts_at_once(start_gateway: StartGateway, size: int) -> None:
    gateway = await start_gateway(
        sinks={"slow": double("SlowSink", seconds=1)}, routes=route("slow"), limits={"parallel_parts": 4}
    )
    began = time.monotonic()
    status, manifest = await post(gateway, *files(8, size))
    assert time.monotonic() - began < 7  # one by one it would be 8
    assert status == 201
    slow = sink_of(gateway, "slow", SlowSink)
    assert slow.most_open_parts == 4
    assert slow.kept[manifest["upload"]] == {index: bytes([index]) * size for index in range(8)}


@pytest.mark.parametrize("parallel_parts", [1, 2, 0])
async def test_no_more_parts_are_open_than_allowed(start_gateway: StartGateway, parallel_parts: int) -> None:
    gateway = await start_gateway(
        sinks={"slow": double("SlowSink", seconds=0.1)},
        routes=route("slow", "disk"),
        limits={"parallel_parts": parallel_parts},
    )
    assert (await post(gateway, *files(6, 1000)))[0] == 201
    assert sink_of(gateway, "slow", SlowSink).most_open_parts == (parallel_parts or 6)


async def test_a_sink_may_wait_for_other_parts_than_the_one_that_is_received(start_gateway: StartGateway) -> None:
    """A part goes on arriving while the sinks of those before it are at work."""
    gateway = await start_gateway(sinks={"gated": double("GatedSink")}, routes=route("gated"))
    gated = sink_of(gateway, "gated", GatedSink)
    async with asyncio.TaskGroup() as group:
        posting = group.create_task(post(gateway, *files(4, 200_000)))
        await eventually(lambda: gated.open_parts == 4)
        gated.gate.set()
    assert posting.result()[0] == 201


# -- memory


async def test_a_sink_that_takes_nothing_stops_the_client(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"gated": double("GatedSink")}, routes=route("gated"))
    gated, sent = sink_of(gateway, "gated", GatedSink), 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        async for chunk in form((b"file", b"a.bin", b"x" * (48 << 20))):
            yield chunk
            sent += len(chunk)

    async with asyncio.timeout(_PATIENCE_SECONDS), ClientSession() as session, asyncio.TaskGroup() as group:
        posting = group.create_task(answer_of(session, gateway.url + "/upload", body()))
        await eventually(lambda: gated.open_parts == 1)
        await asyncio.sleep(0.5)
        stopped_at = sent
        await asyncio.sleep(0.3)
        assert sent == stopped_at < 24 << 20  # a window, and what the sockets hold
        gated.gate.set()
    assert posting.result()[0] == 201


@pytest.mark.parametrize("sinks", [("memory",), ("disk",), ("disk", "memory"), ("api",)])
async def test_no_window_is_ever_exceeded(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, sinks: tuple[str, ...]
) -> None:
    windows: list[Recording] = []

    class Recording(Window):
        def __init__(self, limit: int, progress: Progress) -> None:
            super().__init__(limit, progress)
            self.most, self.largest = 0, 0
            windows.append(self)

        async def reserve(self, size: int) -> None:
            await super().reserve(size)
            self.most, self.largest = max(self.most, self.used), max(self.largest, size)

    monkeypatch.setattr("gateway.upload.required_lane.Window", Recording)
    async with HonestUpstream() as upstream:
        gateway = await start_gateway(
            api=upstream.url,
            sinks={"memory": double("MemorySink")},
            routes=route(*sinks),
            limits={"window_bytes": WINDOW_BYTES},
        )
        mixed = [part for pair in zip(files(100, 20_000), files(100, 300_000), strict=True) for part in pair]
        status, manifest = await post(gateway, *mixed)
    assert (status, len(manifest["parts"])) == (201, 200)
    assert len(windows) >= len(sinks)  # one for the batches of each, and one for each pipe
    assert any(window.most for window in windows)
    for window in windows:
        assert window.most <= max(WINDOW_BYTES, window.largest)
        assert window.largest < WINDOW_BYTES  # a chunk, or a batch, is no more than was received at a time
        assert (window.used, window.progress.owed) == (0, False)


# -- fan-out, order, manifest


async def test_one_part_goes_to_several_sinks(start_gateway: StartGateway, start_destination: StartDestination) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        api=destination.url,
        routes=[
            {
                "path": "/upload",
                "parts": [
                    {"match": {"filename": "*.pdf"}, "sinks": ["disk", "api", "none"]},
                    {"match": {"filename": "*.txt"}, "sinks": ["none"]},
                    {"sinks": ["api"]},
                ],
            }
        ],
    )
    large = b"pdf" * 1_000_000
    parts: list[Wire] = [
        (b"a", b"a.pdf", large),
        (b"b", b"b.txt", b"text"),
        (b"n", None, b"note"),
        (b"c", b"c.bin", b"bin"),
        (b"d", b"d.pdf", b"small"),
    ]
    status, manifest = await post(gateway, *parts)
    assert status == 201
    files = f"/files/{manifest['upload']}"
    api = {"sink": "api", "status": 200, "location": None}
    none = {"sink": "none", "location": None}
    receipts = [sorted(part["receipts"], key=lambda receipt: str(receipt["sink"])) for part in manifest["parts"]]
    assert receipts == [
        [api, {"sink": "disk", "location": f"{files}/0/a.pdf"}, none],
        [none],
        [],
        [api],
        [api, {"sink": "disk", "location": f"{files}/4/d.pdf"}, none],
    ]
    assert (gateway.root / manifest["upload"] / "0").read_bytes() == large
    assert (gateway.root / manifest["upload"] / "4").read_bytes() == b"small"
    async with ClientSession() as session, session.get(destination.url + "/seen") as response:
        seen = await response.json()
    got = [(part["name"], part["sha256"]) for part in seen["last"]["parts"]]
    assert got == [("a", sha256(large)), ("n", sha256(b"note")), ("c", sha256(b"bin")), ("d", sha256(b"small"))]


async def test_tiny_parts_among_large_ones_keep_their_order_and_are_all_there(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url, routes=route("disk", "api"), limits={"max_parts": 0})
    sizes = [(index * 7919) % 400 if index % 50 else 700_000 + index for index in range(1500)]
    parts: list[Wire] = [
        (b"p%d" % index, None if index % 3 == 0 and size < 400 else b"%d.bin" % index, bytes([index % 256]) * size)
        for index, size in enumerate(sizes)
    ]
    status, manifest = await post(gateway, *parts)
    assert status == 201
    expected = [(name.decode(), len(data), sha256(data)) for name, _, data in parts]
    assert [(part["name"], part["size"], part["sha256"]) for part in manifest["parts"]] == expected
    async with ClientSession() as session, session.get(destination.url + "/seen") as response:
        last = (await response.json())["last"]
    assert [(part["name"], part["size"], part["sha256"]) for part in last["parts"]] == expected
    directory = gateway.root / manifest["upload"]
    stored = {path.name: path.stat().st_size for path in directory.iterdir() if path.name != "manifest.json"}
    assert stored == {str(index): len(data) for index, (_, filename, data) in enumerate(parts) if filename is not None}


ALGORITHMS = ["sha256", "md5", "sha1", "sha512", "crc32"]


@pytest.mark.parametrize("size", [0, 3, 60_000, 300_000, 3_500_000])
async def test_digests_are_those_of_the_bytes_that_came_in(start_gateway: StartGateway, size: int) -> None:
    data = hashlib.shake_256(b"seed").digest(size)
    gateway = await start_gateway(routes=route("disk", digests=ALGORITHMS))
    _, manifest = await post(gateway, (b"file", b"a.bin", data), (b"note", None, data[:1000]))
    for part, wanted in zip(manifest["parts"], [data, data[:1000]], strict=True):
        assert part["sha256"] == sha256(wanted)
        assert part["digests"] == {
            **{name: hashlib.new(name, wanted).hexdigest() for name in ("md5", "sha1", "sha512")},
            "crc32": f"{zlib.crc32(wanted):08x}",
        }


@pytest.mark.parametrize("digests", [[], ["md5"]])
async def test_a_digest_that_is_not_wanted_is_null(start_gateway: StartGateway, digests: list[str]) -> None:
    gateway = await start_gateway(routes=route("disk", digests=digests))
    _, manifest = await post(gateway, *files(1, 10), *files(1, 700_000), (b"note", None, b"x"))
    assert [part["sha256"] for part in manifest["parts"]] == [None, None, None]
    assert ["digests" in part for part in manifest["parts"]] == [bool(digests)] * 3


@pytest.mark.parametrize("parts", [[], [(b"a", None, b"1"), (b"a", None, b"\xff"), (b"f", b"", b"")]])
async def test_an_upload_without_files_is_one(start_gateway: StartGateway, parts: list[Wire]) -> None:
    gateway = await start_gateway()
    status, manifest = await post(gateway, *parts)
    assert status == 201
    assert [part.get("value") for part in manifest["parts"]] == ["1", None, None][: len(parts)]
    assert [part["receipts"] for part in manifest["parts"]] == [[]] * len(parts)
    assert [path.name for path in gateway.stored()] == [manifest["upload"], "manifest.json"]


async def test_the_first_disk_that_a_route_names_keeps_the_manifest(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    gateway = await start_gateway(
        routes=route("other", "disk"), sinks={"other": {"type": "disk", "root": str(other), "fsync": False}}
    )
    status, manifest = await post(gateway, (b"file", b"a.bin", b"data"))
    assert status == 201
    assert {receipt["sink"] for receipt in manifest["parts"][0]["receipts"]} == {"other", "disk"}
    assert sorted(path.name for path in (other / manifest["upload"]).iterdir()) == ["0", "manifest.json"]
    assert sorted(path.name for path in (gateway.root / manifest["upload"]).iterdir()) == ["0"]


# -- refusals


async def test_a_file_that_no_rule_takes_is_refused(start_gateway: StartGateway) -> None:
    rules = [{"path": "/upload", "parts": [{"match": {"filename": "*.pdf"}, "sinks": ["disk"]}]}]
    gateway = await start_gateway(routes=rules)
    for size in (10, 1_000_000):
        async with keeping_nothing(gateway):
            status, problem = await post(gateway, (b"a", b"a.pdf", b"x"), (b"b", b"b.exe", b"x" * size))
            assert (status, problem["type"], problem["part"]) == (422, "/problems/no-route", 1)


@pytest.mark.parametrize(
    ("limits", "parts", "limit"),
    [
        ({"max_field_bytes": 10}, [(b"a", None, b"x" * 11)], 10),
        ({"max_field_bytes": 300_000}, [(b"a", None, b"x" * 900_000)], 300_000),
        ({"max_fields_bytes": 10}, [(b"a", None, b"x" * 6), (b"b", None, b"x" * 5)], 10),
        ({"max_fields_bytes": 500_000}, [(b"a", None, b"x" * 300_000), (b"b", None, b"x" * 300_000)], 500_000),
        ({"max_file_bytes": 10}, [(b"a", b"a.bin", b"x" * 11)], 10),
        ({"max_file_bytes": 500_000}, [(b"a", b"a.bin", b"x" * 900_000)], 500_000),
        ({"max_body_bytes": 500_000}, [(b"a", b"a.bin", b"x" * 400_000), (b"a", b"a.bin", b"x" * 200_000)], 500_000),
        ({"max_parts": 2}, [(b"a", None, b"x")] * 3, 2),
    ],
)
async def test_what_is_over_a_limit_is_refused(
    start_gateway: StartGateway, limits: dict[str, int], parts: list[Wire], limit: int
) -> None:
    gateway = await start_gateway(limits=limits)
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(1, 5), *parts[: len(parts) - 1], parts[-1])
        assert (status, problem["limit"]) == (413, limit)


async def test_what_is_just_within_the_limits_is_taken(start_gateway: StartGateway) -> None:
    limits = {"max_field_bytes": 10, "max_fields_bytes": 20, "max_file_bytes": 600_000, "max_parts": 3}
    gateway = await start_gateway(limits=limits)
    parts = [(b"a", None, b"x" * 10), (b"b", None, b"x" * 10), (b"f", b"a.bin", b"x" * 600_000)]
    assert (await post(gateway, *parts))[0] == 201


async def test_a_file_with_an_empty_name_but_bytes_has_the_receipts_of_a_file(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=destination.url, routes=route("disk", "api"))
    for size in (5, 3_000_000):
        status, manifest = await post(gateway, (b"file", b"", bytes(size)), (b"file", b"", b""))
        assert status == 201
        receipts = manifest["parts"][0]["receipts"]
        assert [(receipt["sink"], receipt.get("status")) for receipt in receipts] == [("disk", None), ("api", 200)]
        assert manifest["parts"][1]["receipts"] == []
