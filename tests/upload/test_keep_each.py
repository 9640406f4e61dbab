"""`keep = "each"`: a part that fails is reported, and the others are kept; over real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.model import Part, Upload
from tests.conftest import RunningGateway, StartGateway
from tests.contract import nothing_left_running, sha256
from tests.support.clients import (
    BOUNDARY,
    Answer,
    Client,
    VanishingClient,
    ask,
    eventually,
    file,
    form,
    head,
    random_bytes,
)
from tests.support.doubles import GatedSink, MemoryDelivery, MemorySink

MIB = 1 << 20
FIELD = b'--%s\r\nContent-Disposition: form-data; name="note"\r\n\r\nlong' % BOUNDARY
SIZES = pytest.mark.parametrize("size", [10, 100_000, 3 * MIB], ids=["tiny", "small", "large"])


def double(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"tests.support.doubles:{kind}", **arguments}


def route(*sinks: str | dict[str, Any], path: str = "/upload", **members: Any) -> list[dict[str, Any]]:
    rule = {"sinks": list(sinks), "flows": members.pop("flows", []), "match": members.pop("match", {})}
    return [{"path": path, "keep": "each", "parts": [rule], **members}]


async def post(gateway: RunningGateway, *parts: bytes, path: str = "/upload") -> Answer:
    return await ask(gateway.port, path, "POST", form(*parts))


def problems(manifest: dict[str, Any]) -> list[str | None]:
    """The last segment of each part's problem type."""
    return [part["problem"]["type"].rpartition("/")[2] if "problem" in part else None for part in manifest["parts"]]


async def check_kept(gateway: RunningGateway, answer: Answer, kept: dict[int, bytes]) -> None:
    """These parts, under their numbers, and nothing else; the manifest is stored as it was answered."""
    manifest = answer.json()
    assert answer.headers["location"] == f"/uploads/{manifest['upload']}"
    assert (await ask(gateway.port, answer.headers["location"])).json() == manifest
    directory = gateway.root / manifest["upload"]
    stored = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
    assert {name: sha256(data) for name, data in stored.items()} == {
        str(index): sha256(data) for index, data in kept.items()
    }
    for part in manifest["parts"]:
        assert bool(part["receipts"]) == (part["index"] in kept)


# -- what may be wrong with one part


@SIZES
async def test_a_file_that_no_rule_takes(start_gateway: StartGateway, size: int) -> None:
    gateway = await start_gateway(routes=route("disk", match={"filename": "*.pdf"}))
    data = random_bytes(size)
    async with nothing_left_running():
        answer = await post(gateway, file(data, "a.pdf"), file(data, "b.exe"), file(data, "c.pdf"))
    assert answer.status == 207
    assert answer.json()["parts"][1] == {
        "index": 1,
        "name": "file",
        "filename": "b.exe",
        "content_type": "text/x-test",
        "size": size,
        "sha256": sha256(data),
        "problem": {
            "type": "/problems/no-route",
            "title": "No rule takes this file",
            "status": 422,
            "detail": "no rule takes this file",
            "part": 1,
        },
        "receipts": [],
    }
    await check_kept(gateway, answer, {0: data, 2: data})


@pytest.mark.parametrize("size", [1001, 100_000, 3 * MIB])
async def test_a_file_that_is_too_large(start_gateway: StartGateway, size: int) -> None:
    gateway = await start_gateway(routes=route("disk", "none"), limits={"max_file_bytes": 1000})
    answer = await post(gateway, file(b"x" * 1000), file(bytes(size)), file(b"last"))
    assert answer.status == 207
    assert problems(answer.json()) == [None, "too-large", None]
    assert [part["size"] for part in answer.json()["parts"]] == [1000, size, 4]
    await check_kept(gateway, answer, {0: b"x" * 1000, 2: b"last"})


@SIZES
@pytest.mark.parametrize("flows", [[], ["gzip"]], ids=["plain", "flow"])
async def test_bytes_that_are_not_those_declared(start_gateway: StartGateway, size: int, flows: list[str]) -> None:
    gateway = await start_gateway(routes=route("disk", flows=flows))
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    lying = file(random_bytes(size)).replace(b"\r\n\r\n", b"\r\nContent-Digest: sha-256=:%b:\r\n\r\n" % digest.encode())
    answer = await post(gateway, lying, file(b"kept"))
    assert answer.status == 207
    assert problems(answer.json()) == ["digest-mismatch", None]
    assert answer.json()["parts"][0]["sha256"] != sha256(b"other")
    assert os.listdir(gateway.root / answer.json()["upload"]) in (["1", "manifest.json"], ["manifest.json", "1"])


@pytest.mark.tracebacks
@SIZES
@pytest.mark.parametrize(
    ("flow", "options", "slug"),
    [
        ("rejecting", {}, "rejected"),
        ("rejecting", {"at_end": True}, "rejected"),
        ("failing", {}, "flow-failed"),
        ("failing", {"after_bytes": 2 * MIB}, "flow-failed"),
        ("uncountable", {}, "flow-failed"),
    ],
)
async def test_a_file_that_flows_refuse_or_fail_on(
    start_gateway: StartGateway, size: int, flow: str, options: dict[str, Any], slug: str
) -> None:
    rules = [
        {"match": {"filename": "bad*"}, "flows": ["sniff", "bad"], "sinks": ["disk", "none"]},
        {"flows": ["sniff"], "sinks": ["disk", "none"]},
    ]
    gateway = await start_gateway(
        flows={"bad": {"use": f"tests.support.flows_of_ours:{flow}", **options}},
        routes=[{"path": "/upload", "keep": "each", "parts": rules}],
    )
    data = random_bytes(size)
    fails = slug != "flow-failed" or flow != "failing" or size > options.get("after_bytes", 0)
    async with nothing_left_running():
        answer = await post(gateway, *[file(data, "bad" if index % 2 else "good") for index in range(12)])
    assert answer.status == (207 if fails else 201)
    assert problems(answer.json()) == [None, slug if fails else None] * 6
    bad = answer.json()["parts"][1]
    if fails:
        assert (bad["problem"]["part"], bad["problem"]["flow"], bad["receipts"]) == (1, "bad", [])
    await check_kept(gateway, answer, {index: data for index in range(12) if not fails or index % 2 == 0})


@SIZES
@pytest.mark.parametrize("flow", ["stalling", "stalling_at_end"])
async def test_a_file_that_flows_stall_on(start_gateway: StartGateway, size: int, flow: str) -> None:
    rules = [
        {"match": {"filename": "bad*"}, "flows": [f"tests.support.flows_of_ours:{flow}"], "sinks": ["disk"]},
        {"sinks": ["disk"]},
    ]
    gateway = await start_gateway(
        routes=[{"path": "/upload", "keep": "each", "parts": rules}],
        limits={"stall_seconds": 0.5, "parallel_parts": 2},
    )
    data = random_bytes(size)
    async with nothing_left_running():
        answer = await post(gateway, *[file(data, "bad" if index % 2 else "good") for index in range(6)])
    assert answer.status == 207
    assert problems(answer.json()) == [None, "flow-stalled"] * 3
    await check_kept(gateway, answer, {0: data, 2: data, 4: data})


@pytest.mark.tracebacks
@pytest.mark.parametrize("size", [2000, 100_000, 3 * MIB])
@pytest.mark.parametrize("flows", [[], ["sniff"]], ids=["plain", "flow"])
async def test_a_file_that_a_sink_fails_on_is_dropped_by_all(
    start_gateway: StartGateway, size: int, flows: list[str]
) -> None:
    gateway = await start_gateway(
        sinks={"picky": double("FailingSink", at=1000, name="picky"), "m": double("MemorySink", name="m")},
        routes=route("disk", "m", "picky", flows=flows),
    )
    async with nothing_left_running():
        answer = await post(gateway, file(b"first"), file(bytes(size)), file(b"last"), file(bytes(size)))
    assert answer.status == 207
    manifest = answer.json()
    assert problems(manifest) == [None, "sink-unavailable"] * 2
    assert manifest["parts"][1]["problem"]["sink"] == "picky"
    assert [receipt["sink"] for receipt in manifest["parts"][0]["receipts"]] == ["disk", "m", "picky"]
    await check_kept(gateway, answer, {0: b"first", 2: b"last"})
    for name in ("m", "picky"):
        sink = gateway.services.sinks[name]
        assert isinstance(sink, MemorySink)
        assert sink.kept == {manifest["upload"]: {0: b"first", 2: b"last"}}
        assert sorted(sink.dropped) == [1, 3]


@pytest.mark.tracebacks
async def test_a_batch_that_a_sink_fails_on_fails_as_a_whole_and_the_others_stay(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"picky": double("PickySink", name="picky")}, routes=route("disk", "picky", "none")
    )
    first, second = [file(b"a", "good"), file(b"b", "bad")], [file(b"c", "good"), file(b"d", "good")]
    body = form(*first, *second)
    middle = body.index(b"good", body.index(b"bad"))  # a part is whole when the delimiter after it is there
    async with nothing_left_running(), Client(gateway.port) as client:
        await client.send(head(content_length=len(body), connection="close") + body[:middle])
        await asyncio.sleep(0.3)
        await client.send(body[middle:])
        answer = await client.answer()
    assert answer.status == 207
    assert problems(answer.json()) == ["sink-unavailable", "sink-unavailable", None, None]
    await check_kept(gateway, answer, {2: b"c", 3: b"d"})


@pytest.mark.tracebacks
async def test_a_part_that_one_destination_refuses_is_a_sinks_failure(start_gateway: StartGateway) -> None:
    """Files one after the other, at `parallel_parts` 1: a slot that a failed part held is given back."""
    gateway = await start_gateway(
        sinks={"picky": double("FailingSink", at=1000, name="picky")},
        routes=route("disk", "picky"),
        limits={"parallel_parts": 1},
    )
    answer = await post(gateway, *[file(bytes(300_000 if index % 3 else 10)) for index in range(30)])
    assert [problem is None for problem in problems(answer.json())] == [index % 3 == 0 for index in range(30)]


async def test_open_files_of_dropped_parts_are_closed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        routes=route("disk"), limits={"max_file_bytes": 500_000, "max_parts": 0, "parallel_parts": 2}
    )

    def descriptors() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{name}").startswith(str(gateway.root))
            for name in os.listdir("/proc/self/fd")
        )

    async with Client(gateway.port) as client:
        part = file(bytes(700_000)) + b"\r\n"
        begin, end = file(b"kept") + b"\r\n", b"--%s--\r\n" % BOUNDARY
        await client.send(head(content_length=len(begin) + 20 * len(part) + len(end)) + begin + 20 * part)
        await eventually(lambda: descriptors() == 1)  # its lock
        await client.send(end)
        answer = await client.answer()
    assert problems(answer.json()) == [None, *["too-large"] * 20]
    await check_kept(gateway, answer, {0: b"kept"})


async def test_an_upload_of_which_every_part_failed_keeps_its_manifest(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("disk", match={"filename": "*.pdf"}))
    answer = await post(gateway, file(b"x", "a"), file(bytes(MIB), "b"))
    assert answer.status == 207
    await check_kept(gateway, answer, {})


async def test_an_upload_without_problems_is_a_201(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("disk"))
    answer = await post(gateway, file(b"x", "a"), file(bytes(MIB), "b"), file(b"", ""))
    assert answer.status == 201
    assert problems(answer.json()) == [None, None, None]


async def test_a_field_whose_bytes_are_not_those_declared(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("disk"))
    disposition = b'--%s\r\nContent-Disposition: form-data; name="note"\r\n' % BOUNDARY
    field = disposition + b"Content-MD5: AAAA\r\n\r\n"
    for size in (5, MIB // 2):
        answer = await post(gateway, field + b"x" * size, file(b"kept"))
        assert answer.status == 207
        assert problems(answer.json()) == ["digest-mismatch", None]
        await check_kept(gateway, answer, {1: b"kept"})


async def test_convert_has_null_for_the_output_of_a_part_that_failed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("disk", flows=["gunzip"], kind="convert", path="/in"))
    answer = await post(gateway, file(b"no gzip"), file(b"\x1f\x8b neither"), path="/in")
    assert answer.status == 207
    results = answer.json()
    assert [result["output"] for result in results] == [None, None]
    assert [result["problem"]["status"] for result in results] == [422, 422]
    assert [result["input"]["size"] for result in results] == [7, 10]
    assert answer.headers["location"].startswith("/uploads/")


# -- what is wrong with the whole


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    [
        ({}, form(file(b"x", "bad"), file(b"y"))[:-10], 400),
        ({}, form(file(b"x", "bad"), b"--%s\r\nno header\r\n\r\n" % BOUNDARY), 400),
        ({"max_parts": 2}, form(file(b"x", "bad"), file(b"y"), file(b"z")), 413),
        ({"max_body_bytes": 2 * MIB}, form(file(b"x", "bad"), file(bytes(3 * MIB))), 413),
        ({"max_body_bytes": 2 * MIB}, form(file(bytes(3 * MIB), "bad")), 413),
        ({"max_field_bytes": 3}, form(file(b"x", "bad"), FIELD), 413),
    ],
)
async def test_a_body_that_is_broken_or_too_much_keeps_nothing(
    start_gateway: StartGateway, limits: dict[str, Any], body: bytes, status: int
) -> None:
    rules = [
        {"match": {"filename": "bad"}, "flows": ["tests.support.flows_of_ours:rejecting"], "sinks": ["disk"]},
        {"sinks": ["disk"]},
    ]
    gateway = await start_gateway(routes=[{"path": "/upload", "keep": "each", "parts": rules}], limits=limits)
    async with nothing_left_running():
        async with Client(gateway.port) as client:
            await client.send(head(transfer_encoding="chunked", connection="close"))
            try:
                for start in range(0, len(body), 1 << 16):
                    piece = body[start : start + (1 << 16)]
                    await client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                await client.send(b"0\r\n\r\n")
            except ConnectionError:
                pass
            answer = await client.answer()
        await eventually(lambda: not gateway.services.requests)
    assert answer.status == status
    assert gateway.stored() == []


@pytest.mark.tracebacks
@pytest.mark.parametrize(
    ("kind", "status"), [("RaisingOpenSink", 503), ("FailingCommitSink", 503), ("StuckDropSink", 504)]
)
async def test_a_sink_that_fails_as_a_whole_fails_the_upload(
    start_gateway: StartGateway, kind: str, status: int
) -> None:
    gateway = await start_gateway(
        sinks={"m": double(kind, name="m")},
        routes=route("disk", "m", flows=["tests.support.flows_of_ours:rejecting"] if kind == "StuckDropSink" else []),
        limits={"stall_seconds": 0.5},
    )
    async with nothing_left_running():
        answer = await post(gateway, file(b"x"), file(bytes(MIB)))
    assert answer.status == status
    assert gateway.stored() == []


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_vanishes_leaves_nothing(start_gateway: StartGateway, how: Any) -> None:
    rules = [
        {
            "match": {"filename": "bad*"},
            "flows": ["tests.support.flows_of_ours:rejecting"],
            "sinks": ["disk", _spare("m")],
        },
        {"match": {"filename": "good*"}, "sinks": ["disk", _spare("m")]},
    ]
    gateway = await start_gateway(
        sinks={"m": double("MemorySink", name="m")}, routes=[{"path": "/upload", "keep": "each", "parts": rules}]
    )
    names = ("good", "bad", "nobody's", "good", "bad")
    body = form(*[file(bytes(size), name) for size in (10, 400_000) for name in names])
    request = head(content_length=len(body)) + body
    cuts = [*range(len(request) - 70, len(request), 11), *range(len(head()), len(request) - 70, 61_001)]
    async with nothing_left_running():
        for cut in cuts:
            async with VanishingClient(gateway.port) as client:
                await client.send(request[:cut])
                await asyncio.sleep(0.01)
                await client.vanish_after(b"", how)
        await eventually(lambda: not gateway.services.requests)
    assert gateway.stored() == []
    memory = gateway.services.sinks["m"]
    assert isinstance(memory, MemorySink)
    assert (memory.kept, memory.open_deliveries, memory.open_parts) == ({}, 0, 0)
    answer = await ask(gateway.port, "/upload", "POST", body)
    assert problems(answer.json()) == [None, "rejected", "no-route", None, "rejected"] * 2


# -- the ways in


async def test_a_raw_body_is_a_part_as_well(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("disk", match={"filename": "*.pdf"}))
    answer = await ask(gateway.port, "/upload/a.exe", "PUT", bytes(MIB), content_type="text/plain")
    assert (answer.status, problems(answer.json())) == (207, ["no-route"])
    answer = await ask(gateway.port, "/upload/a.pdf", "PUT", bytes(MIB), content_type="text/plain")
    assert (answer.status, problems(answer.json())) == (201, [None])


async def test_a_slow_client(start_gateway: StartGateway) -> None:
    """What is held of a small part begins its long way after a moment; and what failed does not."""
    gateway = await start_gateway(routes=route("disk", match={"filename": "*.pdf"}), limits={"max_file_bytes": 150_000})
    data = random_bytes(100_000)
    body = form(file(data, "a.pdf"), file(data, "b.exe"), file(data + data, "c.pdf"), file(b"", "d.pdf"))
    async with nothing_left_running(), Client(gateway.port) as client:
        await client.send(head(content_length=len(body), connection="close"))
        for start in range(0, len(body), 70_000):
            await client.send(body[start : start + 70_000])
            await asyncio.sleep(0.1)
        answer = await client.answer()
    assert problems(answer.json()) == [None, "no-route", "too-large", None]
    assert [part["sha256"] for part in answer.json()["parts"][:3]] == [sha256(data), sha256(data), sha256(data + data)]
    await check_kept(gateway, answer, {0: data, 3: b""})


# -- together with best effort


async def test_a_best_effort_sink_gets_every_byte_however_late(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"m": double("GatedSink", name="m")}, routes=[*route("none", _spare("m")), *route(_spare("m"), path="/m")]
    )
    gated = gateway.services.sinks["m"]
    assert isinstance(gated, GatedSink)
    data = random_bytes(3 * MIB)
    for path in ("/upload", "/m"):
        gated.gate.clear()
        async with asyncio.TaskGroup() as group:
            posting = group.create_task(post(gateway, file(data), file(data), path=path))
            await asyncio.sleep(0.5)
            gated.gate.set()
        answer = posting.result()
        assert answer.status == 201
        assert gated.kept[answer.json()["upload"]] == {0: data, 1: data}


@SIZES
async def test_a_best_effort_sink_forgets_as_the_others_do(start_gateway: StartGateway, size: int) -> None:
    rules = [
        {"match": {"filename": "bad*"}, "flows": ["bad"], "sinks": ["disk", _spare("m"), _spare("d")]},
        {"sinks": ["disk", _spare("m"), _spare("d")]},
    ]
    gateway = await start_gateway(
        sinks={"m": double("MemorySink", name="m"), "d": {"type": "discard"}},
        flows={"bad": {"use": "tests.support.flows_of_ours:rejecting", "at_end": True}},
        routes=[{"path": "/upload", "keep": "each", "parts": rules}],
    )
    data = random_bytes(size)
    async with nothing_left_running():
        answer = await post(gateway, *[file(data, "bad" if index % 2 else "good") for index in range(8)])
    assert problems(answer.json()) == [None, "rejected"] * 4
    receipts = [[receipt["sink"] for receipt in part["receipts"]] for part in answer.json()["parts"]]
    assert receipts == [["disk", "m", "d"], []] * 4
    await check_kept(gateway, answer, {0: data, 2: data, 4: data, 6: data})
    memory = gateway.services.sinks["m"]
    assert isinstance(memory, MemorySink)
    assert set(memory.kept[answer.json()["upload"]]) == {0, 2, 4, 6}


@pytest.mark.tracebacks
async def test_a_best_effort_sink_that_fails_on_one_part_is_dropped_and_the_part_is_kept(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(
        sinks={"m": double("FailingSink", at=1000, name="m")}, routes=route("disk", _spare("m"))
    )
    answer = await post(gateway, file(b"x"), file(bytes(2000)))
    assert answer.status == 201
    assert [part["receipts"][1] for part in answer.json()["parts"]] == [{"sink": "m", "dropped": "failed"}] * 2


async def test_a_part_that_is_forgotten_while_it_waits_for_its_slot_never_begins(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"m": double("GatedSink", name="m")},
        routes=route("disk", _spare("m")),
        limits={"parallel_parts": 1, "max_file_bytes": MIB},
    )
    gated = gateway.services.sinks["m"]
    assert isinstance(gated, GatedSink)
    async with nothing_left_running():
        answer = await _post_and_open(gateway, gated.gate, file(b"data"), file(bytes(2 * MIB)))
    assert problems(answer.json()) == [None, "too-large"]
    assert answer.json()["parts"][0]["receipts"][1] == {"sink": "m", "location": "memory:0"}
    assert (gated.began, gated.dropped) == ([0], [1])
    assert gated.kept[answer.json()["upload"]] == {0: b"data"}


@pytest.mark.tracebacks
async def test_nor_does_one_of_a_batch(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"a": double("PickySink", name="a"), "m": double("GatedSink", name="m")},
        routes=_bad_ones_also_to("a"),
        limits={"parallel_parts": 1},
    )
    gated = gateway.services.sinks["m"]
    assert isinstance(gated, GatedSink)
    async with nothing_left_running():
        answer = await _post_and_open(gateway, gated.gate, file(b"0", "good"), file(b"1", "bad"), file(b"2", "good"))
    assert problems(answer.json()) == [None, "sink-unavailable", None]
    assert (gated.began, gated.dropped) == ([0, 2], [1])
    assert gated.kept[answer.json()["upload"]] == {0: b"0", 2: b"2"}


@pytest.mark.tracebacks
async def test_a_part_of_a_batch_is_forgotten_when_the_batch_is_done(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={
            "a": double("PickySink", name="a"),
            "m": {"type": "tests.upload.test_keep_each:GatedBulkSink", "name": "m"},
        },
        routes=_bad_ones_also_to("a"),
    )
    gated = gateway.services.sinks["m"]
    assert isinstance(gated, GatedBulkSink)
    async with nothing_left_running():
        answer = await _post_and_open(gateway, gated.gate, file(b"0", "good"), file(b"1", "bad"), file(b"2", "good"))
    assert problems(answer.json()) == [None, "sink-unavailable", None]
    assert gated.kept[answer.json()["upload"]] == {0: b"0", 2: b"2"}
    assert (gated.dropped, gated.dropped_early) == ([1], [])
    await check_kept(gateway, answer, {0: b"0", 2: b"2"})


def _bad_ones_also_to(sink: str) -> list[dict[str, Any]]:
    """Everything to the disk and, at best effort, to m."""
    rules = [
        {"match": {"filename": "bad*"}, "sinks": ["disk", sink, _spare("m")]},
        {"sinks": ["disk", _spare("m")]},
    ]
    return [{"path": "/upload", "keep": "each", "parts": rules}]


class GatedBulkSink(GatedSink):
    """Takes many parts in one go, when its gate is open, and notes what it is told to forget before."""

    def __init__(self, *, name: str) -> None:
        super().__init__(name=name)
        self.dropped_early: list[int] = []

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        yield _GatedBulkDelivery(self, upload)


class _GatedBulkDelivery(MemoryDelivery):
    takes_batches = True

    def __init__(self, sink: GatedBulkSink, upload: Upload) -> None:
        super().__init__(sink, upload)
        self._gated = sink
        self._taking: set[int] = set()

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        indices = {part.index for part, _ in parts}
        self._taking |= indices
        await self._gated.gate.wait()
        self._taking -= indices
        self._parts.update((part.index, data) for part, data in parts)

    async def drop(self, part: Part) -> None:
        if part.index in self._taking:
            self._gated.dropped_early.append(part.index)
        await super().drop(part)


async def _post_and_open(gateway: RunningGateway, gate: asyncio.Event, *parts: bytes) -> Answer:
    """The gate is opened when the required sinks have committed, so that all that failed was forgotten."""
    async with asyncio.TaskGroup() as group:
        posting = group.create_task(post(gateway, *parts))
        await eventually(lambda: any(path.name == "manifest.json" for path in gateway.stored()))
        gate.set()
    return posting.result()


def _spare(sink: str) -> dict[str, Any]:
    return {"sink": sink, "mode": "best_effort", "lag_bytes": 64 * MIB}
