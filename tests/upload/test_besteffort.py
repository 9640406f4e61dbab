"""Fan-out to required and best-effort sinks: who paces, who is dropped and why, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.config.memory import memory_bound_bytes
from gateway.config.settings import Settings
from gateway.model import Part, Upload
from gateway.sinks import Stage
from gateway.upload.backlog import PART_BYTES
from gateway.upload.besteffort import BestEffortLane
from gateway.upload.routes import BestEffort
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.contract import answer_of, form, nothing_left_running, sha256
from tests.support.clients import BOUNDARY, Client, VanishingClient, ask, eventually, file, head, random_bytes
from tests.support.clients import form as whole_form
from tests.support.doubles import (
    DeafUpstream,
    DyingUpstream,
    EarlyOkUpstream,
    GatedSink,
    HonestUpstream,
    MemorySink,
    MuteUpstream,
    RefusingUpstream,
    SteadyUpstream,
    Upstream,
)
from tests.support.processes import gateway_process

Wire = tuple[bytes, bytes | None, bytes]
MIB = 1 << 20
PATIENCE_SECONDS = 60


def relay(url: str) -> dict[str, Any]:
    return {"type": "relay", "url": url}


def double(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"tests.support.doubles:{kind}", **arguments}


def spare(sink: str = "b", **terms: Any) -> dict[str, Any]:
    return {"sink": sink, "mode": "best_effort", **terms}


def route(*sinks: str | dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    flows = members.pop("flows", [])
    return [{"path": "/upload", "parts": [{"sinks": list(sinks), "flows": flows}], **members}]


async def post(gateway: RunningGateway, *parts: Wire) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(PATIENCE_SECONDS), ClientSession() as session:
        return await answer_of(session, gateway.url + "/upload", form(*parts))


def receipts_of(manifest: dict[str, Any], sink: str) -> list[dict[str, Any]]:
    return [receipt for part in manifest["parts"] for receipt in part["receipts"] if receipt["sink"] == sink]


async def stored_manifest(gateway: RunningGateway, manifest: dict[str, Any]) -> Any:
    return (await ask(gateway.port, f"/uploads/{manifest['upload']}")).json()


def dropped_by_metric(gateway: RunningGateway) -> dict[tuple[str, str], float]:
    found = re.findall(
        r'gateway_sink_dropped_total\{reason="(\w+)",sink="(\w+)"\} ([\d.]+)', gateway.services.metrics.text().decode()
    )
    return {(sink, reason): float(count) for reason, sink, count in found}


# -- who paces


async def test_a_required_destination_of_1_MB_per_second_paces_the_upload(start_gateway: StartGateway) -> None:
    data = random_bytes(6 * MIB)
    async with HonestUpstream() as fast, SteadyUpstream(MIB) as slow:
        gateway = await start_gateway(
            sinks={"a": relay(fast.url), "b": relay(slow.url)}, routes=route("disk", "a", "b")
        )
        began = time.monotonic()
        status, manifest = await post(gateway, (b"file", b"a.bin", data))
        assert time.monotonic() - began > 4
    assert status == 201
    assert [receipt["sink"] for receipt in manifest["parts"][0]["receipts"]] == ["disk", "a", "b"]
    assert slow.saw_a_whole_body


@pytest.mark.parametrize("parts", [1, 100], ids=["one", "many"])
async def test_a_best_effort_one_is_dropped_and_the_others_finish_at_full_speed(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, parts: int
) -> None:
    caplog.set_level(logging.INFO)
    data = random_bytes(40 * MIB // parts)
    async with nothing_left_running(), HonestUpstream() as fast, SteadyUpstream(MIB) as slow:
        gateway = await start_gateway(
            sinks={"a": relay(fast.url), "b": relay(slow.url)},
            routes=route("disk", spare(lag_bytes=4 * MIB), "a"),
        )
        began = time.monotonic()
        status, manifest = await post(gateway, *[(b"file", b"a.bin", data)] * parts)
        assert time.monotonic() - began < 20  # it would be 40
        assert status == 201
        await asyncio.wait_for(slow.gone.wait(), PATIENCE_SECONDS)
        assert not slow.saw_a_whole_body
        assert fast.saw_a_whole_body
    location = f"/files/{manifest['upload']}/0/a.bin"
    assert manifest["parts"][0]["receipts"] == [
        {"sink": "disk", "location": location},
        {"sink": "b", "dropped": "lag"},
        {"sink": "a", "status": 200, "location": None},
    ]
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "lag"}] * parts
    assert await stored_manifest(gateway, manifest) == manifest
    assert (gateway.root / manifest["upload"] / "0").read_bytes() == data
    assert dropped_by_metric(gateway) == {("b", "lag"): 1}
    assert [record.__dict__["dropped"] for record in caplog.records if "dropped" in record.__dict__] == [{"b": "lag"}]


async def test_one_that_keeps_up_gets_everything_and_gives_its_receipts(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        sinks={"b": relay(destination.url), "c": double("MemorySink", name="c")},
        routes=route("disk", spare(lag_bytes=64 * MIB), spare("c", lag_bytes=64 * MIB)),
    )
    sizes = [(index * 7919) % 400 if index % 20 else 700_000 + index for index in range(200)]
    parts: list[Wire] = [
        (b"p%d" % index, None if index % 3 == 0 and size < 400 else b"%d.bin" % index, bytes([index]) * size)
        for index, size in enumerate(sizes)
    ]
    parts.append((b"empty", b"", b""))
    status, manifest = await post(gateway, *parts)
    assert status == 201
    files = [index for index, (_, filename, _) in enumerate(parts) if filename]
    assert receipts_of(manifest, "b") == [{"sink": "b", "status": 200, "location": None}] * len(files)
    assert [receipt["location"] for receipt in receipts_of(manifest, "c")] == [f"memory:{index}" for index in files]
    assert await stored_manifest(gateway, manifest) == manifest
    seen = (await ask(destination.port, "/seen")).json()["last"]["parts"]
    assert [(part["name"], part["size"], part["sha256"]) for part in seen] == [
        (name.decode(), len(data), sha256(data)) for name, _, data in parts
    ]
    memory = gateway.services.sinks["c"]
    assert isinstance(memory, MemorySink)
    assert memory.kept[manifest["upload"]] == {index: parts[index][2] for index in files}
    assert dropped_by_metric(gateway) == {}
    # the first manifest was replaced, and nothing else is there
    names = {path.name for path in (gateway.root / manifest["upload"]).iterdir()}
    assert names == {*map(str, files), "manifest.json"}


async def test_a_second_disk_may_be_best_effort(start_gateway: StartGateway, tmp_path: Path) -> None:
    second = {"type": "disk", "root": str(tmp_path / "second"), "fsync": False}
    gateway = await start_gateway(sinks={"b": second}, routes=route("disk", spare(lag_bytes=64 * MIB)))
    parts: list[Wire] = [(b"file", b"%d" % index, bytes(1000 * index)) for index in range(50)]
    status, manifest = await post(gateway, *parts)
    assert status == 201
    assert [receipt["location"] is not None for receipt in receipts_of(manifest, "b")] == [True] * 50
    assert await stored_manifest(gateway, manifest) == manifest
    assert sorted(int(path.name) for path in (tmp_path / "second" / manifest["upload"]).iterdir()) == [*range(50)]


async def test_a_route_of_kind_relay_mirrors_what_it_relays(start_gateway: StartGateway) -> None:
    async with HonestUpstream(202, b"first") as first, HonestUpstream(200, b"mirror") as mirror:
        gateway = await start_gateway(
            sinks={"a": relay(first.url), "b": relay(mirror.url)}, routes=route("a", spare(), kind="relay")
        )
        answer = await ask(gateway.port, "/upload", "POST", whole_form(file(b"x")))
        assert (answer.status, answer.body) == (202, b"first")
        assert mirror.saw_a_whole_body


async def test_the_order_of_the_wire_is_kept_where_flows_delay_a_part(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    rules = [
        {"match": {"filename": "slow*"}, "flows": ["nap"], "sinks": ["disk", spare()]},
        {"sinks": ["disk", spare()]},
    ]
    gateway = await start_gateway(
        sinks={"b": relay(destination.url)},
        flows={"nap": {"use": "tests.support.flows_of_ours:napping_first", "seconds": 0.3}},
        routes=[{"path": "/upload", "parts": rules}],
    )
    parts: list[Wire] = [
        (b"0", b"slow", b"zero"),
        (b"1", b"quick", b"one"),
        (b"2", None, b"two"),
        (b"3", b"slow", b"3" * 700_000),
        (b"4", b"quick", b"4" * 700_000),
    ]
    status, manifest = await post(gateway, *parts)
    assert status == 201
    assert [receipt.get("status") for receipt in receipts_of(manifest, "b")] == [200] * 4
    seen = (await ask(destination.port, "/seen")).json()["last"]["parts"]
    assert [(part["name"], part["size"]) for part in seen] == [(name.decode(), len(data)) for name, _, data in parts]


# -- who is dropped


FAILING: dict[str, dict[str, Any]] = {
    "open": double("RaisingOpenSink", name="b"),
    "accept": double("FailingSink", name="b"),
    "accept as a relay": double("FailingSink", name="b", stage=0),
    "full": double("FailingSink", name="b", errno=28),
    "cancels itself": double("SelfCancellingSink", name="b"),
    "commit": double("FailingCommitSink", name="b"),
    "nobody listens": relay("http://127.0.0.1:9/"),
}


@pytest.mark.tracebacks
@pytest.mark.parametrize("flows", [[], ["sniff"]], ids=["plain", "flows"])
@pytest.mark.parametrize("size", [10, 3 * MIB], ids=["tiny", "large"])
@pytest.mark.parametrize("what", FAILING)
async def test_one_that_fails_is_dropped(start_gateway: StartGateway, what: str, size: int, flows: list[str]) -> None:
    async with nothing_left_running():
        gateway = await start_gateway(
            sinks={"b": FAILING[what]}, routes=route("disk", spare(lag_bytes=64 * MIB), flows=flows)
        )
        status, manifest = await post(gateway, *[(b"file", b"a.bin", bytes(size))] * 3)
        assert status == 201
        assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "failed"}] * 3
        assert [receipt["location"] is not None for receipt in receipts_of(manifest, "disk")] == [True] * 3
        assert await stored_manifest(gateway, manifest) == manifest
        assert dropped_by_metric(gateway) == {("b", "failed"): 1}
    sink = gateway.services.sinks["b"]
    if isinstance(sink, MemorySink):
        assert (sink.kept, sink.open_deliveries, sink.open_parts) == ({}, 0, 0)


@pytest.mark.parametrize(
    "upstream",
    [
        RefusingUpstream(),
        RefusingUpstream(after=MIB),
        HonestUpstream(503),
        DyingUpstream(after=100),
        EarlyOkUpstream(complete=True),
    ],
    ids=["refuses", "refuses midway", "refuses at the end", "dies", "lies"],
)
async def test_a_destination_that_fails_is_dropped(start_gateway: StartGateway, upstream: Upstream) -> None:
    async with nothing_left_running(), upstream:
        gateway = await start_gateway(sinks={"b": relay(upstream.url)}, routes=route("disk", spare(lag_bytes=64 * MIB)))
        status, manifest = await post(gateway, (b"file", b"a.bin", bytes(3 * MIB)))
        assert status == 201
        assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "failed"}]
        assert await stored_manifest(gateway, manifest) == manifest


LATE: dict[str, dict[str, Any]] = {
    "open": double("StuckOpenSink", name="b"),
    "accept": double("StuckSink", name="b"),
    "accept as a relay": double("StuckSink", name="b", stage=0),
    "thinking": double("SlowSink", name="b", seconds=60),
    "commit": double("StuckCommitSink", name="b"),
}


@pytest.mark.parametrize("what", LATE)
async def test_one_that_does_not_finish_is_late(start_gateway: StartGateway, what: str) -> None:
    async with nothing_left_running():
        gateway = await start_gateway(sinks={"b": LATE[what]}, routes=route("disk", spare(lag_seconds=0.3)))
        began = time.monotonic()
        status, manifest = await post(gateway, (b"file", b"a.bin", b"tiny"), (b"file", b"b.bin", bytes(400_000)))
        assert 0.3 <= time.monotonic() - began < 20
        assert status == 201
        assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}] * 2
        assert await stored_manifest(gateway, manifest) == manifest
        assert dropped_by_metric(gateway) == {("b", "late"): 1}


@pytest.mark.parametrize("upstream", [MuteUpstream(), DeafUpstream()], ids=["mute", "deaf"])
async def test_a_destination_that_never_answers_is_late(start_gateway: StartGateway, upstream: Upstream) -> None:
    async with nothing_left_running(), upstream:
        gateway = await start_gateway(
            sinks={"b": relay(upstream.url)}, routes=route("disk", spare(lag_seconds=0.3, lag_bytes=64 * MIB))
        )
        status, manifest = await post(gateway, (b"file", b"a.bin", bytes(8 * MIB)))
        assert status == 201
        assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}]
        await asyncio.wait_for(upstream.gone.wait(), PATIENCE_SECONDS) if isinstance(upstream, MuteUpstream) else None


async def test_one_that_takes_its_time_may_finish_within_its_seconds(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"b": double("SlowSink", name="b", seconds=0.5)}, routes=route("disk", spare(lag_seconds=30))
    )
    status, manifest = await post(gateway, (b"file", b"a.bin", b"data"))
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "location": "memory:0"}]
    assert await stored_manifest(gateway, manifest) == manifest


async def test_parts_without_bytes_count_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"b": double("StuckOpenSink", name="b")}, routes=route("disk", spare(lag_bytes=100 * PART_BYTES))
    )
    status, manifest = await post(gateway, *[(b"file", b"%d" % index, b"") for index in range(200)])
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "lag"}] * 200
    status, manifest = await post(gateway, *[(b"file", b"%d" % index, b"") for index in range(50)])
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}] * 50


@pytest.mark.tracebacks
async def test_a_file_after_the_drop_has_its_receipt_too(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"b": double("FailingSink", name="b")}, routes=route("none", spare()))
    async with Client(gateway.port) as client:
        begin, rest = file(b"first") + b"\r\n", file(b"second") + b"\r\n--%s--\r\n" % BOUNDARY
        await client.send(head(content_length=len(begin) + len(rest)) + begin)
        await asyncio.sleep(0.2)
        await client.send(rest)
        manifest = (await client.answer()).json()
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "failed"}] * 2


@pytest.mark.parametrize("kind", ["StuckExitSink", "RaisingExitSink"])
async def test_one_that_has_committed_and_cannot_be_left_has_committed(start_gateway: StartGateway, kind: str) -> None:
    gateway = await start_gateway(
        sinks={"b": double(kind, name="b")},
        routes=route("disk", spare(lag_seconds=0.3)),
        limits={"stall_seconds": 0.3},
    )
    async with nothing_left_running():
        status, manifest = await post(gateway, (b"file", b"a.bin", b"data"))
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "location": "memory:0"}]


async def test_one_that_overlooks_that_it_was_cancelled_is_cancelled_again(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"b": {"type": "tests.upload.test_besteffort:StubbornSink", "name": "b", "times": 1}},
        routes=route("disk", spare(lag_seconds=0.3)),
        limits={"stall_seconds": 0.3},
    )
    async with nothing_left_running():
        status, manifest = await post(gateway, (b"file", b"a.bin", b"data"))
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}]


async def test_one_that_does_not_let_itself_be_cancelled_is_told_of_and_the_manifest_is_settled(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway(
        sinks={
            "b": {"type": "tests.upload.test_besteffort:StubbornSink", "name": "b", "times": 1 << 30},
            "c": double("MemorySink", name="c"),
        },
        routes=route("disk", spare(lag_seconds=0.3), spare("c", lag_seconds=0.3)),
        limits={"stall_seconds": 0.3},
    )
    stubborn = gateway.services.sinks["b"]
    assert isinstance(stubborn, StubbornSink)

    def settled() -> bool:
        found = [json.loads(path.read_text()) for path in gateway.stored() if path.name == "manifest.json"]
        return any(receipts_of(manifest, "c") == [{"sink": "c", "location": "memory:0"}] for manifest in found)

    async with nothing_left_running(), asyncio.TaskGroup() as group:
        posting = group.create_task(post(gateway, (b"file", b"a.bin", b"data")))
        try:
            await eventually(settled)
            assert "best-effort sink b does not end" in caplog.text
        finally:
            stubborn.enough.set()
    status, manifest = posting.result()
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}]
    assert await stored_manifest(gateway, manifest) == manifest


class StubbornSink(MemorySink):
    """Carries on where it is cancelled, so many times, or until it has had `enough`."""

    def __init__(self, *, name: str, times: int) -> None:
        super().__init__(name=name)
        self._times = times
        self.enough = asyncio.Event()

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        for _ in range(self._times):
            with contextlib.suppress(asyncio.CancelledError):
                await self.enough.wait()
                break
        await self.enough.wait()
        return b""


async def test_who_forgets_a_part_that_is_under_way_goes_on_with_the_others() -> None:
    class Sink(GatedSink):
        async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
            try:
                return await super().take(part, chunks) if part.index == 0 else b""
            finally:
                if part.index == 0:
                    await self.gate.wait()  # it takes its time to let go

    lane, sink = BestEffortLane("b", Stage.OTHER, BestEffort(lag_bytes=MIB, lag_seconds=60), 4), Sink()
    first, second = Part(0, b"f", b"f", None, is_file=True), Part(1, b"f", b"f", None, is_file=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lane.live(sink, Upload("id", "/upload", "upload")))
        lane.add(first, b"data")
        await eventually(lambda: sink.began == [0])
        await lane.forget(first)
        lane.add(second, b"data")
        try:
            await eventually(lambda: sink.began == [0, 1])
            assert sink.dropped == []
        finally:
            sink.gate.set()
        await eventually(lambda: sink.dropped == [0])
        lane.end()
        lane.allow_commit([])
    assert sink.kept == {"id": {1: b""}}


async def test_a_drain_does_not_wait_for_it_beyond_its_seconds(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"b": double("StuckCommitSink", name="b")},
        routes=route("disk", spare(lag_seconds=600)),
        server={"drain_seconds": 0.3},
    )
    async with nothing_left_running(), Client(gateway.port) as client:
        body = whole_form(file(b"data"))
        await client.send(head(content_length=len(body)) + body)
        await eventually(lambda: any(path.name == "manifest.json" for path in gateway.stored()))
        await gateway.runner.cleanup()
        with pytest.raises(ConnectionError):
            await client.answer()
    (manifest,) = (json.loads(path.read_text()) for path in gateway.stored() if path.name == "manifest.json")
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}]


async def test_a_part_that_is_dropped_never_looks_whole() -> None:
    """What lay in its pipe is gone, and it was finished: a sink that completes parts one by one would send it so."""
    lane = BestEffortLane("b", Stage.OTHER, BestEffort(lag_bytes=4 * PART_BYTES, lag_seconds=1), 4)
    part = Part(0, b"f", b"f", None, is_file=True)
    pipe, _ = lane.open(part)
    await pipe.send(b"first")
    pipe.finish()
    lane.add(part, bytes(4 * PART_BYTES))
    assert lane.excluded == "lag"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(pipe)


# -- bounds


@pytest.mark.sockets
async def test_memory_stays_bounded_beside_one_that_never_reads(tmp_path: Path) -> None:
    config = """
    [[routes]]
    path = "/upload"
    digests = []
    parts = [{ sinks = ["none", {sink = "b", mode = "best_effort", lag_bytes = 16777216}] }]
    [sinks.b]
    type = "tests.support.doubles:StuckSink"
    """
    block, begin, end = random_bytes(MIB), file(b""), b"\r\n--%s--\r\n" % BOUNDARY

    async def send(port: int, mib: int) -> Any:
        async with Client(port) as client:
            await client.send(head(content_length=len(begin) + mib * MIB + len(end)) + begin)
            for _ in range(mib):
                await client.send(block)
            await client.send(end)
            return (await client.answer(60)).json()

    with gateway_process(tmp_path, config, PYTHONPATH=str(Path(__file__).parents[2])) as process:
        await send(process.port, 8)
        before = process.peak_rss_bytes()
        manifest = await send(process.port, 512)
        after = process.peak_rss_bytes()
        assert '"dropped": {"b": "lag"}' in process.log.read_text()
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "lag"}]
    assert after - before < 32 * MIB


async def test_what_waits_never_exceeds_the_lag() -> None:
    lane = BestEffortLane("b", Stage.OTHER, BestEffort(lag_bytes=10 * PART_BYTES, lag_seconds=1), 4)
    part = Part(0, b"f", b"f", None, is_file=True)
    pipe, _ = lane.open(part)
    for _ in range(8):
        await pipe.send(bytes(PART_BYTES))
    lane.add(part, b"")
    assert (lane.excluded, lane._backlog._lag.used) == (None, 10 * PART_BYTES)
    lane.add(part, b"")
    assert lane.excluded == "lag"
    assert [receipt.missed for receipt in lane.account()] == ["lag"]
    await pipe.send(bytes(PART_BYTES))  # passes by
    lane.add(part, b"x")
    assert not lane._backlog._queue


def test_the_lag_is_in_the_memory_bound() -> None:
    def bound(*sinks: str | dict[str, Any]) -> int:
        document: dict[str, Any] = {"routes": route(*sinks)}
        return memory_bound_bytes(Settings(**document))[0]

    assert bound("disk", spare("api", lag_bytes=5 << 20)) - bound("disk", spare("api", lag_bytes=1 << 20)) == 4 << 20


# -- it depends on the others, they never on it


@pytest.mark.tracebacks
@pytest.mark.parametrize("stage", [0, 1])
async def test_it_does_not_commit_where_a_required_sink_fails(start_gateway: StartGateway, stage: int) -> None:
    gateway = await start_gateway(
        sinks={"a": double("FailingCommitSink", name="a"), "b": double("MemorySink", name="b", stage=stage)},
        routes=route("disk", "a", spare()),
    )
    async with nothing_left_running():
        status, problem = await post(gateway, (b"file", b"a.bin", b"data"))
    assert (status, problem["sink"]) == (503, "a")
    memory = gateway.services.sinks["b"]
    assert isinstance(memory, MemorySink)
    assert (memory.committed, memory.open_deliveries) == (0, 0)
    assert gateway.stored() == []


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_vanishes_leaves_nothing_anywhere(
    start_gateway: StartGateway, start_destination: StartDestination, how: Any
) -> None:
    required, mirror = await start_destination(), await start_destination()
    gateway = await start_gateway(
        sinks={"a": relay(required.url), "b": relay(mirror.url)}, routes=route("disk", "a", spare())
    )
    body = whole_form(file(b"first", "a"), file(b"x" * 400_000, "b"), file(b"last", "c"))
    request = head(content_length=len(body)) + body
    cuts = [*range(len(request) - 70, len(request), 7), *range(len(head()), len(request) - 70, 37_001)]
    async with nothing_left_running():
        for cut in cuts:
            async with VanishingClient(gateway.port) as client:
                await client.send(request[:cut])
                await asyncio.sleep(0.02)  # so that the destinations have been reached
                await client.vanish_after(b"", how)
        await eventually(lambda: not gateway.services.requests)
    assert gateway.services.gate.in_flight == 0
    assert gateway.stored() == []
    for destination in (required, mirror):
        seen: dict[str, int] = {"started": 0, "aborted": -1}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while seen["started"] != seen["aborted"]:
                await asyncio.sleep(0.01)
                seen = (await ask(destination.port, "/seen")).json()
        assert seen["started"] > 0
        assert seen["completed"] == 0
    answer = await ask(gateway.port, "/upload", "POST", body)
    assert [receipt["status"] for receipt in receipts_of(answer.json(), "b")] == [200] * 3


async def test_a_manifest_that_cannot_be_replaced_stays_and_is_what_is_answered(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full just then: what was said first claims too little, and never too much."""

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr("gateway.sinks.disk.jobs.Jobs.rewrite", full)
    gateway = await start_gateway(sinks={"b": double("MemorySink", name="b")}, routes=route("disk", spare()))
    status, manifest = await post(gateway, (b"file", b"a.bin", b"data"))
    assert status == 201
    assert receipts_of(manifest, "b") == [{"sink": "b", "dropped": "late"}]
    assert await stored_manifest(gateway, manifest) == manifest


# -- whose answer it is


async def _answered(gateway: RunningGateway, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
    answer = await ask(gateway.port, "/upload", "POST", whole_form(*parts))
    return answer.status, answer.headers, answer.body


@pytest.mark.parametrize("kind", ["upload", "relay"])
async def test_the_relay_that_is_named_answers(start_gateway: StartGateway, kind: str) -> None:
    async with HonestUpstream(200, b"first") as first, HonestUpstream(202, b"second", ("X-From", "b")) as second:
        gateway = await start_gateway(
            sinks={"a": relay(first.url), "b": relay(second.url)}, routes=route("a", "b", "disk", kind=kind, answer="b")
        )
        status, headers, body = await _answered(gateway, file(b"x"))
    assert (status, body, headers["x-from"]) == (202, b"second", "b")
    upload = headers["location"]
    assert (await ask(gateway.port, upload)).json()["parts"][0]["receipts"][1]["status"] == 202


async def test_a_location_of_the_destinations_own_stays(start_gateway: StartGateway) -> None:
    async with HonestUpstream(201, b"{}", ("Location", "/theirs/1")) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=route("api", "disk", answer="api"))
        status, headers, _ = await _answered(gateway, file(b"x"))
    assert (status, headers["location"]) == (201, "/theirs/1")


async def test_only_its_refusal_is_the_clients_to_read(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"yes") as yes, HonestUpstream(409, b"no") as no:
        gateway = await start_gateway(
            sinks={"a": relay(yes.url), "b": relay(no.url)},
            routes=[*route("a", "b", "disk", answer="b"), {**route("a", "b", "disk", answer="a")[0], "path": "/other"}],
        )
        status, _, body = await _answered(gateway, file(b"x"))
        assert status == 502  # `a` had committed by then
        assert json.loads(body)["type"] == "/problems/incomplete"
        answer = await ask(gateway.port, "/other", "POST", whole_form(file(b"x")))
        assert answer.status == 502
    assert gateway.stored() == []
    async with RefusingUpstream(413, b"too much") as no, HonestUpstream() as yes:
        gateway = await start_gateway(
            sinks={"a": relay(yes.url), "b": relay(no.url)}, routes=route("a", "b", "disk", answer="b")
        )
        status, _, body = await _answered(gateway, file(bytes(MIB)))
        assert (status, body) == (413, b"too much")
        await eventually(lambda: not gateway.stored())
        assert not yes.saw_a_whole_body


async def test_without_a_name_the_manifest_has_each_status(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200) as first, HonestUpstream(202) as second:
        gateway = await start_gateway(
            sinks={"a": relay(first.url), "b": relay(second.url)}, routes=route("a", "b", "disk")
        )
        status, _, body = await _answered(gateway, file(b"x"))
    assert status == 201
    assert [receipt.get("status") for receipt in json.loads(body)["parts"][0]["receipts"]] == [200, 202, None]


async def test_a_relay_that_got_nothing_has_no_answer_and_the_manifest_is_it(start_gateway: StartGateway) -> None:
    async with HonestUpstream() as upstream:
        rules = [{"match": {"filename": "*.pdf"}, "sinks": ["disk"]}, {"sinks": ["api"]}]
        gateway = await start_gateway(api=upstream.url, routes=[{"path": "/upload", "answer": "api", "parts": rules}])
        status, _, body = await _answered(gateway, file(b"x", "a.pdf"))
    assert status == 201
    assert json.loads(body)["parts"][0]["receipts"][0]["sink"] == "disk"
