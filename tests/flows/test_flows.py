"""Per-file flows: the contract, through the gateway over real sockets."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import io
import random
import threading
import time
from typing import Any

import aiohttp
import pytest

from gateway.concurrency.pipe import Progress
from gateway.config.messages import ConfigError
from gateway.flows import FlowFile, in_thread, working
from tests.conftest import StartDestination, StartGateway
from tests.support.flow_support import OURS, fetch, form, post, route


async def test_a_users_flow_changes_name_and_bytes_and_leaves_findings(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        flows={"redact": {"use": f"{OURS}:redact", "words": ["secret"]}}, routes=route("redact")
    )
    status, manifest = await post(gateway, form(("a.txt", b"a secret\nno secrets secret"), ("b.txt", b"")))
    assert status == 201
    part = manifest["parts"][0]
    assert (part["filename"], part["size"]) == ("a.txt", 26)  # what came in
    assert part["findings"] == {"redact": {"hits": 3}}
    (receipt,) = part["receipts"]
    stored = await fetch(gateway, receipt["location"])
    assert stored == b"a ******\nno ******s ******"
    assert receipt["filename"] == "redacted-a.txt"
    assert (receipt["size"], receipt["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert receipt["location"].endswith("/redacted-a.txt")


async def test_flows_run_in_the_order_given_and_each_sees_the_name_that_the_one_before_gave(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(
        flows={"rename": {"use": f"{OURS}:renaming", "filename": "x.bin"}}, routes=route("rename", "gzip", "zstd")
    )
    status, manifest = await post(gateway, form(("a", b"data" * 1000)))
    assert status == 201
    assert manifest["parts"][0]["receipts"][0]["filename"] == "x.bin.gz.zst"


@pytest.mark.tracebacks
@pytest.mark.parametrize(
    ("flow", "options", "status", "slug"),
    [
        ("failing", {}, 500, "flow-failed"),
        ("failing", {"after_bytes": 5}, 500, "flow-failed"),
        ("late_renaming", {}, 500, "flow-failed"),
        ("uncountable", {}, 500, "flow-failed"),
        ("stalling", {}, 504, "flow-stalled"),
        ("stalling_at_end", {}, 504, "flow-stalled"),
        ("rejecting", {}, 422, "rejected"),
        ("rejecting", {"at_end": True}, 422, "rejected"),
        ("renaming", {"filename": "a\0b"}, 500, "flow-failed"),
        ("renaming", {"content_type": "a/b\r\nX: y"}, 500, "flow-failed"),
        ("cancelling_itself", {}, 500, "flow-failed"),
        ("cancelling_itself", {"first": True}, 500, "flow-failed"),
        ("leaving", {}, 500, "flow-failed"),
        ("yielding", {"what": 5}, 500, "flow-failed"),
        ("yielding", {"what": "text"}, 500, "flow-failed"),
        ("finding_nan", {}, 500, "flow-failed"),
    ],
)
@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_flow_that_goes_wrong_aborts_the_upload_and_leaves_nothing(
    start_gateway: StartGateway,
    start_destination: StartDestination,
    flow: str,
    options: dict[str, Any],
    status: int,
    slug: str,
    size: int,
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        api=destination.url,
        limits={"stall_seconds": 0.4},
        flows={"wrong": {"use": f"{OURS}:{flow}", **options}},
        routes=route("wrong", sinks=("disk", "api")),
    )
    tasks = asyncio.all_tasks()
    answered, problem = await post(gateway, form(("first", b"x" * 100_000), ("a.txt", bytes(size))))
    assert (answered, problem["type"]) == (status, f"/problems/{slug}")
    assert problem["flow"] == "wrong"
    assert problem["part"] in (0, 1)
    assert gateway.stored() == []
    async with aiohttp.ClientSession() as session, session.get(destination.url + "/seen") as response:
        assert (await response.json())["completed"] == 0
    await asyncio.sleep(0.1)
    assert {task for task in asyncio.all_tasks() - tasks if "dispatch" in repr(task) or "pump" in repr(task)} == set()


async def test_a_flow_that_yields_nothing_gives_a_file_of_0_bytes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route(f"{OURS}:silent"))
    status, manifest = await post(gateway, form(("a.txt", bytes(3_000_000)), ("b.txt", b"b")))
    assert status == 201
    for part, size in zip(manifest["parts"], [3_000_000, 1], strict=True):
        assert part["size"] == size
        assert part["receipts"][0]["size"] == 0
        assert await fetch(gateway, part["receipts"][0]["location"]) == b""


async def test_what_a_flow_leaves_unread_is_drained(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route(f"{OURS}:peeking"))
    status, manifest = await post(gateway, form(("a.txt", b"a" * 5_000_000), ("b.txt", b"b" * 5_000_000)))
    assert status == 201
    assert [part["size"] for part in manifest["parts"]] == [5_000_000] * 2
    assert [await fetch(gateway, part["receipts"][0]["location"]) for part in manifest["parts"]] == [b"a", b"b"]


@pytest.mark.parametrize("nap", ["napping", "napping_first"])
@pytest.mark.parametrize("size", [1000, 1 << 20])
async def test_files_are_worked_on_side_by_side(start_gateway: StartGateway, nap: str, size: int) -> None:
    gateway = await start_gateway(routes=route(f"{OURS}:{nap}", kind="convert"))
    began = time.monotonic()
    status, results = await post(gateway, form(*((f"{number}", bytes([number]) * size) for number in range(8))))
    assert time.monotonic() - began < 7  # one by one it would be 8
    assert status == 200
    assert [result["index"] for result in results] == list(range(8))


async def test_flows_do_not_change_the_order_at_a_relay(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        api=destination.url,
        flows={"slow": {"use": f"{OURS}:napping_first", "seconds": 0.3}},
        routes=[
            {
                "path": "/in",
                "kind": "relay",
                "parts": [
                    {"match": {"filename": "slow*"}, "flows": ["slow"], "sinks": ["api"]},
                    {"sinks": ["api"]},
                ],
            }
        ],
    )
    data = form(("slow-1", bytes(2_000_000)), ("quick-1", b"q"))
    data.add_field("field", "value")
    data.add_field("file", b"s", filename="slow-2")
    data.add_field("file", io.BytesIO(bytes(2_000_000)), filename="slow-3")
    data.add_field("last", "value")
    data.add_field("file", io.BytesIO(bytes(2_000_000)), filename="quick-2")
    status, seen = await post(gateway, data)
    assert status == 200
    assert [part["filename"] or part["name"] for part in seen["parts"]] == [
        "slow-1", "quick-1", "field", "slow-2", "slow-3", "last", "quick-2",
    ]  # fmt: skip


async def test_a_flow_that_makes_much_out_of_little_is_slowed_down_by_its_sink(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        api=destination.url + "/?rate_bytes=3000000",
        flows={"babble": {"use": f"{OURS}:babbling", "times": 200}},
        routes=[{"path": "/in", "kind": "relay", "parts": [{"flows": ["babble"], "sinks": ["api"]}]}],
    )
    began = time.monotonic()
    status, seen = await post(gateway, form(("a", bytes(100_000))))
    assert status == 200
    assert seen["parts"][0]["size"] == 20_000_000
    assert time.monotonic() - began > 2


async def test_convert_answers_the_list_of_results(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    data = form(("a.bin", b"A" * 100_000))
    data.add_field("note", "not listed")
    data.add_field("file", b"%PDF-1.7\n", filename="b.pdf", content_type="application/pdf")
    data.add_field("file", b"", filename="")
    data.add_field("file", b"", filename="empty.txt")
    async with aiohttp.ClientSession() as session, session.post(gateway.url + "/convert", data=data) as response:
        assert response.status == 200
        assert response.headers["Location"].startswith("/uploads/")
        results = await response.json()
    assert [result["index"] for result in results] == [0, 2, 4]
    bodies = [b"A" * 100_000, b"%PDF-1.7\n", b""]
    for result, body in zip(results, bodies, strict=True):
        assert list(result) == ["index", "input", "findings", "output"]
        assert list(result["input"]) == ["name", "filename", "content_type", "size", "sha256"]
        assert list(result["output"]) == ["filename", "content_type", "size", "sha256", "location"]
        assert (result["input"]["size"], result["input"]["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        output = await fetch(gateway, result["output"]["location"])
        assert gzip.decompress(output) == body
        assert (result["output"]["size"], result["output"]["sha256"]) == (
            len(output), hashlib.sha256(output).hexdigest(),
        )  # fmt: skip
        assert result["output"]["filename"] == result["input"]["filename"] + ".gz"
    assert results[1]["findings"]["sniff"]["content_type"] == "application/pdf"


async def test_convert_takes_a_raw_body(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    status, (result,) = await post(gateway, b"raw bytes", "/convert")
    assert status == 200
    assert result["output"]["filename"] == "file.gz"
    assert gzip.decompress(await fetch(gateway, result["output"]["location"])) == b"raw bytes"


@pytest.mark.tracebacks
@pytest.mark.parametrize("verdict", ["rejecting", "failing", "cancelling_itself"])
@pytest.mark.parametrize("later", ["silent", "peeking", "swallowing"])
async def test_a_later_flow_cannot_pass_over_the_verdict_of_an_earlier_one(
    start_gateway: StartGateway, verdict: str, later: str
) -> None:
    gateway = await start_gateway(
        flows={
            "verdict": {"use": f"{OURS}:{verdict}", **({"at_end": True} if verdict == "rejecting" else {})},
            "later": {"use": f"{OURS}:{later}"},
        },
        routes=route("verdict", "later"),
    )
    status, problem = await post(gateway, form(("a", bytes(1_000_000))))
    assert (status, problem["flow"]) == (422 if verdict == "rejecting" else 500, "verdict")
    assert gateway.stored() == []


async def test_a_flow_that_swallows_its_cancellation_holds_nothing_up(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(server={"max_uploads": 1}, routes=route(f"{OURS}:swallowing"))
    async with asyncio.timeout(20):
        status, problem = await post(
            gateway, io.BytesIO(bytes(3_000_000)), **{"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        )
        assert (status, problem["type"]) == (400, "/problems/digest-mismatch")
        assert gateway.stored() == []
        assert (await post(gateway, io.BytesIO(b"next")))[0] == 201


async def test_a_flow_that_takes_slowly_but_steadily_is_not_stalled(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        limits={"stall_seconds": 0.6},
        flows={"much": {"use": f"{OURS}:babbling", "times": 10}, "slow": {"use": f"{OURS}:slow_taking"}},
        routes=route("much", "slow"),
    )
    status, manifest = await post(gateway, form(("a", b"abc")))
    assert status == 201
    assert await fetch(gateway, manifest["parts"][0]["receipts"][0]["location"]) == b"30"


async def test_waiting_for_a_thread_is_no_stall(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"stall_seconds": 1}, routes=route("gzip", "gunzip", "zstd", "unzstd"))
    body = random.Random(7).randbytes(200_000)
    files = [(f"{number}", body) for number in range(5)]
    answers = await asyncio.gather(*(post(gateway, form(*files)) for _ in range(16)))
    assert {status for status, _ in answers} == {201}


@pytest.mark.parametrize("is_watched", [True, False], ids=["in a chain", "alone"])
async def test_an_error_in_a_thread_that_nobody_waits_for_any_more_is_not_logged(
    caplog: pytest.LogCaptureFixture, is_watched: bool
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        goes_on.wait(20)
        raise ValueError("junk")

    working.set(Progress() if is_watched else None)
    async with asyncio.TaskGroup() as group:
        at_work = group.create_task(in_thread(fail))
        await asyncio.to_thread(begun.wait, 20)
        at_work.cancel()
        goes_on.set()
    # and where both come in the same turn of the loop, the cancellation first
    begun.clear()
    async with asyncio.TaskGroup() as group:
        at_work = group.create_task(in_thread(fail))
        await asyncio.sleep(0)
        assert begun.wait(20)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is not to see the error before the cancellation
        at_work.cancel()
    await asyncio.sleep(0.1)
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("name", ["a\tb.txt", "a\r\nb.txt", "caf\x92.txt", "\x85", "C:\\x\\y.txt", 'a"b', "naïve ☃"])
async def test_a_name_that_a_client_may_use_goes_through_flows_that_rename(
    start_gateway: StartGateway, name: str
) -> None:
    gateway = await start_gateway()
    data = b"".join([
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="',
        name.encode("latin-1" if "\x7f" < max(name) < "\xa0" else "utf-8").replace(b'"', b"%22")
        .replace(b"\r", b"%0D").replace(b"\n", b"%0A"),
        b'"\r\n\r\nabc\r\n--b--\r\n',
    ])  # fmt: skip
    status, results = await post(gateway, data, "/convert", **{"Content-Type": "multipart/form-data; boundary=b"})
    assert status == 200
    assert results[0]["output"]["filename"] == name + ".gz"
    assert gzip.decompress(await fetch(gateway, results[0]["output"]["location"])) == b"abc"


@pytest.mark.parametrize("name", ["c" * 196 + ".txt", "漢" * 70 + ".txt", "c" * 300 + ".tar"])
async def test_a_name_that_a_flow_makes_too_long_keeps_the_extension_of_the_flow(
    start_gateway: StartGateway, name: str
) -> None:
    gateway = await start_gateway(routes=route("gzip"))
    _, manifest = await post(gateway, form((name, b"abc")))
    (receipt,) = manifest["parts"][0]["receipts"]
    assert receipt["filename"] == name + ".gz"
    assert receipt["location"].endswith(name[-4:] + ".gz")
    assert gzip.decompress(await fetch(gateway, receipt["location"])) == b"abc"


def test_a_flow_cannot_give_a_name_that_a_client_may_not_give() -> None:
    file = FlowFile(index=0, name="file", filename="a", content_type=None)
    for name in ("a\x00", "a\\", "a\\;b", "\x7f"):
        with pytest.raises(ValueError, match=r"control|backslash"):
            file.filename = name
    for good in ("C:\\x\\y", 'a"b', "..\\a", None, ""):
        file.filename = good
        assert file.filename == (good or None)


async def test_the_same_flow_twice_has_its_findings_twice(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route("lines", "lines"))
    _, manifest = await post(gateway, form(("a", b"1\r\n2\r\n")))
    assert manifest["parts"][0]["findings"] == {"lines": {"line_ends": 2}, "lines#2": {"line_ends": 2}}


async def test_a_function_without_a_yield_is_no_flow(start_gateway: StartGateway) -> None:
    with pytest.raises(ConfigError, match="yield"):
        await start_gateway(routes=route(f"{OURS}:no_generator"))


async def test_a_flow_that_only_relabels_has_the_digest_of_what_came_in(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=route(f"{OURS}:labelling"))
    files = [(f"{number}", random.Random(number).randbytes(100_000)) for number in range(6)]
    for _ in range(3):  # some of them are hashed last of all
        status, manifest = await post(gateway, form(*files))
        assert status == 201
        for (_, data), entry in zip(files, manifest["parts"], strict=True):
            digest = hashlib.sha256(data).hexdigest()
            assert entry["sha256"] == digest
            assert [(one["filename"], one["sha256"]) for one in entry["receipts"]] == [("labelled", digest)]
