"""A request for each file: the contract where it waits for the commit, and what a destination gets in either way."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from gateway.errors import LengthRequired, Malformed, SinkRefused
from gateway.model import Part, Upload
from gateway.multipart.codec import Decoder, Kind
from gateway.sinks import Delivery
from gateway.sinks.relay.per_part import PartsDelivery
from gateway.sinks.relay.sink import RelaySink
from tests.conftest import RunningGateway, StartGateway
from tests.contract import BrokenSource, SinkContract, Subject, delivering, nothing_left_running, sha256, source
from tests.contract import field as field_part
from tests.contract import file as file_part
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
from tests.support.doubles import (
    ChoosyUpstream,
    Exchange,
    HonestUpstream,
    LengthDemandingUpstream,
    MuteUpstream,
    RefusingUpstream,
    SlowUpstream,
    SteadyUpstream,
    Upstream,
    closed_port,
)

MIB = 1 << 20
Seen = list[tuple[str, str | None, bytes]]
"""(name, file name, bytes) of each part of a request."""


def seen(exchange: Exchange) -> Seen:
    boundary = dict(exchange.headers)["content-type"].partition("boundary=")[2]
    decoder, parts, data = Decoder(boundary.encode()), [], b""
    part: Part | None = None
    for event in decoder.receive(bytes(exchange.body)):
        if event.kind in (Kind.BEGIN, Kind.WHOLE):
            part, data = event.part, b""
        data += event.data
        if event.kind in (Kind.END, Kind.WHOLE):
            assert part is not None
            parts.append((part.name, part.filename, data))
    decoder.finish()
    return parts


def whole(upstream: Upstream) -> list[Seen]:
    """The requests that were completed, in the order of their files' names."""
    found = [seen(exchange) for exchange in upstream.exchanges if exchange.complete]
    return sorted(found, key=lambda parts: [str(filename) for _, filename, _ in parts if filename])


def files(upstream: Upstream) -> dict[str, bytes]:
    """What arrived, by file name."""
    found = [(filename, data) for parts in whole(upstream) for _, filename, data in parts if filename is not None]
    assert len(found) == len(dict(found)), "a file came twice"
    return dict(found)


def field(name: str, value: bytes) -> bytes:
    return b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s' % (BOUNDARY, name.encode(), value)


def declaring(length: int | str, data: bytes, filename: str = "a.bin") -> bytes:
    """A file part with a Content-Length of its own."""
    return file(data, filename).replace(b"\r\n\r\n", f"\r\nContent-Length: {length}\r\n\r\n".encode(), 1)


async def each(start_gateway: StartGateway, upstream: Upstream, *sinks: Any, **keys: Any) -> RunningGateway:
    """A gateway with a route that keeps each part."""
    limits, flows = keys.pop("limits", {}), keys.pop("flows", [])
    return await start_gateway(
        sinks={"api": {"url": upstream.url, "per": "part", **keys}},
        routes=[{"path": "/upload", "keep": "each", "parts": [{"flows": flows, "sinks": ["api", *sinks]}]}],
        limits=limits,
    )


async def all_or_nothing(start_gateway: StartGateway, upstream: Upstream, *sinks: Any, **keys: Any) -> RunningGateway:
    limits, flows = keys.pop("limits", {}), keys.pop("flows", [])
    return await start_gateway(
        sinks={"api": {"url": upstream.url, "per": "part", "length": "spool", **keys}},
        routes=[{"path": "/upload", "parts": [{"flows": flows, "sinks": ["api", *sinks]}]}],
        limits=limits,
    )


EITHER = pytest.mark.parametrize("start", [each, all_or_nothing], ids=["each", "all"])


async def post(gateway: RunningGateway, *parts: bytes) -> Answer:
    return await ask(gateway.port, "/upload", "POST", form(*parts))


def problems(answer: Answer) -> list[str | None]:
    parts = answer.json()["parts"]
    return [part["problem"]["type"].rpartition("/")[2] if "problem" in part else None for part in parts]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


# -- where all or nothing is kept: the contract


@pytest.mark.sockets
class TestContract(SinkContract):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        keys: dict[str, Any] = {"add_before": {"of": "{upload}"}, "add_after": {"index": "{index}"}}
        async with (
            HonestUpstream(201) as upstream,
            RelaySink(name="api", url=upstream.url, per="part", length="spool", **keys) as sink,
        ):

            def arrived() -> list[tuple[str, int, bytes]]:
                assert all(exchange.complete for exchange in upstream.exchanges)
                every = [{name: data for name, _, data in seen(exchange)} for exchange in upstream.exchanges]
                return sorted((one["of"].decode(), int(one["index"]), one["file"]) for one in every)

            async def visible() -> int:
                return len({upload for upload, _, _ in arrived()})

            async def digests(upload: Upload, _: Delivery) -> list[str]:
                return [sha256(data) for one, _, data in arrived() if one == upload.id]

            yield Subject(sink, visible, digests)


# -- what a destination gets


@EITHER
@pytest.mark.parametrize("size", [0, 10, 100_000, 3 * MIB])
async def test_each_file_comes_with_the_fields_before_it(start_gateway: StartGateway, start: Any, size: int) -> None:
    data = random_bytes(size)
    async with HonestUpstream(201) as upstream:
        gateway = await start(
            start_gateway,
            upstream,
            rename={"note": "remark", "file": "upload"},
            drop=["secret"],
            add_before={"source": "gateway", "of": "{upload}"},
            add_after={"done": "yes", "{name}_size": "{size}", "sum": "{index} {sha256}"},
        )
        async with nothing_left_running():
            answer = await post(
                gateway,
                field("note", b"1"),
                field("secret", b"x"),
                file(data, "a"),
                file(data, "left out", "secret"),
                field("other", b"2" * 200_000),
                file(data + b"b", "b"),
                field("note", b"3"),
            )
        manifest = answer.json()
        assert answer.status == 201
        own: Seen = [("source", None, b"gateway"), ("of", None, manifest["upload"].encode())]
        noted: Seen = [("remark", None, b"1")]
        after: list[Seen] = [
            [
                ("upload_size", None, b"%d" % len(sent)),
                ("sum", None, f"{index} {sha256(sent)}".encode()),
                ("done", None, b"yes"),
            ]
            for index, sent in ((2, data), (5, data + b"b"))
        ]
        assert whole(upstream) == [
            [*own, *noted, ("upload", "a", data), *after[0]],
            [*own, *noted, ("other", None, b"2" * 200_000), ("upload", "b", data + b"b"), *after[1]],
        ]
    receipt = [{"sink": "api", "location": None, "status": 201}]
    assert [part["receipts"] for part in manifest["parts"]] == [[], [], receipt, [], [], receipt, []]
    assert [part["name"] for part in manifest["parts"]][:4] == ["note", "secret", "file", "secret"]


@EITHER
async def test_without_files_there_is_no_request(start_gateway: StartGateway, start: Any) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream)
        for parts in ([], [field("a", b"1")], [field("a", b"1"), file(b"", "")]):
            assert (await post(gateway, *parts)).status == 201
    assert upstream.exchanges == []


FIELD_BYTES = 60_000


@EITHER
@pytest.mark.parametrize(("ratio", "is_taken"), [(3, False), (12, True), (0, True)])
async def test_fields_do_not_multiply_without_bound(
    start_gateway: StartGateway, start: Any, ratio: int, is_taken: bool
) -> None:
    """A field of 60 KB goes along with ten files of a byte."""
    parts = [field("a", b"f" * FIELD_BYTES), *(file(b"x", str(number)) for number in range(10))]
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream, max_outbound_ratio=ratio)
        answer = await post(gateway, *parts)
        if is_taken:
            assert answer.status == 201
            assert len(whole(upstream)) == 10
        elif start is each:
            assert answer.status == 207
            kept = [part for part in answer.json()["parts"] if part["receipts"]]
            told = [part["problem"] for part in answer.json()["parts"] if "problem" in part]
            assert {(problem["status"], problem["limit"]) for problem in told} == {(413, ratio)}
            assert (len(kept), len(kept) + len(told)) == (len(whole(upstream)), 10)
            assert sum(len(exchange.body) for exchange in upstream.exchanges) < (ratio + 1) * (64 << 10)
        else:
            assert (answer.status, answer.json()["limit"]) == (413, ratio)
            assert upstream.exchanges == []


@EITHER
async def test_an_empty_file_input_goes_nowhere(start_gateway: StartGateway, start: Any) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream)
        assert (await post(gateway, file(b"", ""), file(b"data", "a"))).status == 201
        assert whole(upstream) == [[("file", "a", b"data")]]


@EITHER
async def test_a_raw_body_is_a_part_as_well(start_gateway: StartGateway, start: Any) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream, add_after={"n": "{size}"})
        for name, data in (("a", b""), ("b", b"x"), ("c", random_bytes(2 * MIB))):
            answer = await ask(gateway.port, f"/upload/{name}", "PUT", data, content_type="text/x")
            assert answer.status == 201
            assert files(upstream)[name] == data


@EITHER
@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_what_flows_made_of_a_file_is_what_is_told_of_it(
    start_gateway: StartGateway, start: Any, size: int
) -> None:
    async with HonestUpstream() as upstream:
        told = {"t": "{filename} {content_type} {size} {sha256}"}
        gateway = await start(start_gateway, upstream, flows=["gzip"], add_after=told)
        answer = await post(gateway, *[file(random_bytes(size), f"{index:02}") for index in range(9)])
        assert answer.status == 201
        for number, parts in enumerate(whole(upstream)):
            (_, filename, data), (_, _, said) = parts
            assert filename == f"{number:02}.gz"
            assert said.decode() == f"{filename} application/gzip {len(data)} {sha256(data)}"
        assert len(upstream.exchanges) == 9


@EITHER
async def test_a_destination_that_wants_a_length_gets_one(start_gateway: StartGateway, start: Any) -> None:
    async with LengthDemandingUpstream() as upstream:
        gateway = await start(start_gateway, upstream)
        assert (await post(gateway, *[file(b"data", str(index)) for index in range(10)])).status == 201
        assert len(upstream.exchanges) <= 10 + 4  # those that went before it was known
        upstream.exchanges = [one for one in upstream.exchanges if one.length is not None]
        assert len(files(upstream)) == 10


@EITHER
async def test_an_attempt_that_no_answer_came_to_is_made_elsewhere(start_gateway: StartGateway, start: Any) -> None:
    data = {str(index): random_bytes(200_000) for index in range(10)}
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream, url=None, urls=[closed_port(), upstream.url])
        answer = await post(gateway, *[file(value, name) for name, value in data.items()])
        assert answer.status == 201
        assert files(upstream) == data


# -- how many at a time


@EITHER
@pytest.mark.parametrize("size", [10, 300_000])
async def test_300_files_go_so_many_at_a_time(start_gateway: StartGateway, start: Any, size: int) -> None:
    data = random_bytes(size)
    async with SlowUpstream(0.01) as upstream:
        gateway = await start(start_gateway, upstream, limits={"parallel_parts": 3})
        with no_descriptor_left():
            async with nothing_left_running():
                answer = await post(gateway, *[file(data, str(index)) for index in range(300)])
        assert answer.status == 201
        assert len(files(upstream)) == 300
        assert set(files(upstream).values()) == {data}
        assert upstream.most_at_once == 3
    assert [part["receipts"][0]["status"] for part in answer.json()["parts"]] == [200] * 300


async def test_many_descriptors_are_not_needed_for_many_files_that_wait(start_gateway: StartGateway) -> None:
    async with MuteUpstream() as upstream:
        gateway = await all_or_nothing(start_gateway, upstream)
        before = len(os.listdir("/proc/self/fd"))
        async with Client(gateway.port) as client:
            body = form(*[file(random_bytes(50_000), str(index)) for index in range(200)])
            await client.send(head(content_length=len(body)) + body[:-10])
            await asyncio.sleep(0.5)
            assert len(os.listdir("/proc/self/fd")) <= before + 4
        assert upstream.exchanges == []
        await eventually(lambda: not gateway.services.requests)


async def test_a_request_is_complete_when_its_part_is_and_not_before(start_gateway: StartGateway) -> None:
    data = random_bytes(MIB)
    body = form(file(data, "a"), file(b"small", "b"), file(data, "c"))
    first, second = body.index(b'filename="b"'), body.index(b'filename="c"')
    async with HonestUpstream() as upstream:
        gateway = await each(start_gateway, upstream)
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(body), connection="close") + body[: first - 100])
            await asyncio.sleep(0.3)
            assert files(upstream) == {}
            await client.send(body[first - 100 : second])
            await eventually(lambda: files(upstream) == {"a": data, "b": b"small"})
            await client.send(body[second:])
            answer = await client.answer()
        assert answer.status == 201
        assert files(upstream) == {"a": data, "b": b"small", "c": data}


async def test_no_request_begins_before_the_end_of_the_body_where_all_or_nothing_is_kept(
    start_gateway: StartGateway,
) -> None:
    body = form(*[file(random_bytes(200_000), str(index)) for index in range(5)])
    async with HonestUpstream() as upstream:
        gateway = await all_or_nothing(start_gateway, upstream)
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(body), connection="close") + body[:-3])
            await asyncio.sleep(0.3)
            assert upstream.exchanges == []
            await client.send(body[-3:])
            assert (await client.answer()).status == 201
        assert len(files(upstream)) == 5


# -- keep = "each": one part fails


@pytest.mark.parametrize("size", [100, 100_000, 3 * MIB])
@pytest.mark.parametrize(("then", "status"), [("refuse", 422), ("die", None)])
async def test_a_part_that_is_refused_has_a_problem_and_the_others_are_kept(
    start_gateway: StartGateway, size: int, then: Literal["refuse", "die"], status: int | None
) -> None:
    data = random_bytes(size)
    async with ChoosyUpstream(b'filename="bad', then) as upstream:
        gateway = await each(start_gateway, upstream, "disk", failures_to_open=0)
        names = ["a", "bad", "b", "bad too", "c"]
        with no_descriptor_left():
            async with nothing_left_running():
                answer = await post(gateway, *[file(data, name) for name in names])
        assert answer.status == 207
        assert problems(answer) == [None, "sink-refused", None, "sink-refused", None]
        manifest = answer.json()
        for index in (1, 3):
            problem = manifest["parts"][index]["problem"]
            assert (problem["sink"], problem.get("sink_status"), problem["part"]) == ("api", status, index)
            assert manifest["parts"][index]["receipts"] == []
        good = dict.fromkeys("abc", data)
        assert {name: data for name, data in files(upstream).items() if name in good} == good
    stored = sorted(path.name for path in (gateway.root / manifest["upload"]).iterdir())
    assert stored == ["0", "2", "4", "manifest.json"]
    assert [len(part["receipts"]) for part in manifest["parts"]] == [2, 0, 2, 0, 2]


async def test_a_part_that_is_refused_early_is_read_to_its_end(start_gateway: StartGateway) -> None:
    async with RefusingUpstream(403, after=1000) as upstream:
        gateway = await each(start_gateway, upstream, replay_bytes=0)
        async with nothing_left_running():
            answer = await post(gateway, *[file(bytes(3 * MIB), str(index)) for index in range(5)])
        assert problems(answer) == ["sink-refused"] * 5
        assert {part["problem"]["sink_status"] for part in answer.json()["parts"]} == {403}
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("size", [100, 3 * MIB])
async def test_a_destination_that_never_answers_one_part_times_out_for_that_part(
    start_gateway: StartGateway, size: int
) -> None:
    async with ChoosyUpstream(b'filename="bad', "say nothing") as upstream:
        gateway = await each(start_gateway, upstream, first_byte_seconds=0.5, failures_to_open=0)
        async with nothing_left_running():
            answer = await post(gateway, *[file(bytes(size), name) for name in ("a", "bad", "b", "c")])
        assert problems(answer) == [None, "sink-timeout", None, None]
        assert answer.json()["parts"][1]["problem"]["clock"] == "first_byte"


async def test_a_slow_destination_slows_the_client(start_gateway: StartGateway) -> None:
    async with SteadyUpstream(4 * MIB) as upstream:
        gateway = await each(start_gateway, upstream)
        async with Client(gateway.port) as client:
            piece = file(bytes(64 * MIB), "large")
            await client.send(head(transfer_encoding="chunked"))
            sending = asyncio.get_running_loop().create_task(client.send(b"%x\r\n" % len(piece) + piece))
            await asyncio.sleep(1)
            assert not sending.done()
            sending.cancel()
            await asyncio.wait([sending])
        await eventually(lambda: not gateway.services.requests)
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("size", [100, 100_000, 3 * MIB])
@pytest.mark.parametrize("flows", [[], ["sniff"], ["gzip"]], ids=["plain", "looked at", "changed"])
async def test_a_part_whose_bytes_are_not_those_declared_is_never_completed(
    start_gateway: StartGateway, size: int, flows: list[str]
) -> None:
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    lying = file(random_bytes(size), "bad").replace(
        b"\r\n\r\n", f"\r\nContent-Digest: sha-256=:{digest}:\r\n\r\n".encode(), 1
    )
    async with HonestUpstream() as upstream:
        gateway = await each(start_gateway, upstream, flows=flows)
        async with nothing_left_running():
            answer = await post(gateway, file(b"x", "a"), lying, file(b"y", "b"))
        assert problems(answer) == [None, "digest-mismatch", None]
        assert [name.removesuffix(".gz") for name in files(upstream)] == ["a", "b"]
        await eventually(lambda: all(exchange.complete or exchange.lost for exchange in upstream.exchanges))


@pytest.mark.tracebacks
async def test_a_part_that_another_sink_fails_on_has_a_problem_though_its_request_was_complete(
    start_gateway: StartGateway,
) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start_gateway(
            sinks={
                "api": {"url": upstream.url, "per": "part"},
                "picky": {"type": "tests.support.doubles:FailingSink", "at": 2 * MIB, "name": "picky"},
            },
            routes=[{"path": "/upload", "keep": "each", "parts": [{"sinks": ["api", "picky"]}]}],
        )
        async with nothing_left_running():
            answer = await post(gateway, file(b"x", "a"), file(bytes(3 * MIB), "bad"), file(b"y", "b"))
        assert problems(answer) == [None, "sink-unavailable", None]
        assert files(upstream).keys() >= {"a", "b"}
        assert [len(part["receipts"]) for part in answer.json()["parts"]] == [2, 0, 2]


@pytest.mark.tracebacks
@pytest.mark.parametrize("stage", [0, 1], ids=["before", "after"])
async def test_a_commit_that_fails_elsewhere_lists_the_parts_that_stay(start_gateway: StartGateway, stage: int) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start_gateway(
            sinks={
                "api": {"url": upstream.url, "per": "part"},
                "fails": {"type": "tests.support.doubles:FailingCommitSink", "name": "fails", "stage": stage},
            },
            routes=[{"path": "/upload", "keep": "each", "parts": [{"sinks": ["fails", "api"]}]}],
        )
        if stage:  # a relay that was given fields only has kept nothing
            assert (await post(gateway, field("a", b"1"))).status == 503
        answer = await post(gateway, file(b"x", "a"), file(b"y", "b"))
    problem = answer.json()
    assert (answer.status, problem["type"]) == (502, "/problems/incomplete")
    assert [(one["part"], one["sink"], one["status"]) for one in problem["kept"]] == [(0, "api", 200), (1, "api", 200)]


# -- known lengths


async def test_a_part_that_declares_its_length_goes_with_one(start_gateway: StartGateway) -> None:
    data = random_bytes(2 * MIB)
    async with HonestUpstream() as upstream:
        gateway = await each(start_gateway, upstream, length="known", add_after={"{name}": "{size} {sha256}"})
        async with nothing_left_running():
            answer = await post(
                gateway,
                field("note", b"1"),
                declaring(3, b"abc", "a"),
                declaring(len(data), data, "b"),
                declaring(0, b"", "c"),
                file(b"declares none", "d"),
                declaring(4, b"abc", "e"),
                declaring(2, b"abc", "f"),
                declaring(len(data) + 1, data, "g"),
                declaring(len(data) - 1, data, "h"),
                declaring("x", b"", "i"),
                declaring(4, b"last", "j"),
            )
        assert answer.status == 207
        assert problems(answer) == [None] * 4 + ["length-required"] + ["malformed"] * 5 + [None]
        assert [part["problem"]["part"] for part in answer.json()["parts"][4:10]] == list(range(4, 10))
        assert files(upstream) == {"a": b"abc", "b": data, "c": b"", "j": b"last"}
        assert all(exchange.length is not None for exchange in upstream.exchanges)
        assert [parts[0] for parts in whole(upstream)] == [("note", None, b"1")] * 4
        await eventually(lambda: all(exchange.complete or exchange.lost for exchange in upstream.exchanges))


async def test_a_part_that_declares_none_may_be_spooled(start_gateway: StartGateway) -> None:
    data = random_bytes(2 * MIB)
    async with HonestUpstream() as upstream:
        gateway = await each(start_gateway, upstream, length=["known", "spool"])
        with no_descriptor_left():
            answer = await post(gateway, declaring(3, b"abc", "a"), file(data, "b"), file(b"", "c"))
        assert answer.status == 201
        assert files(upstream) == {"a": b"abc", "b": data, "c": b""}
        assert all(exchange.length is not None for exchange in upstream.exchanges)


# -- keep = "all": one part fails


async def test_the_first_refusal_fails_the_upload_and_what_stays_is_listed(start_gateway: StartGateway) -> None:
    async with ChoosyUpstream(b'filename="bad', "refuse") as upstream:
        gateway = await all_or_nothing(start_gateway, upstream, "disk", limits={"parallel_parts": 1})
        names = ["a", "b", "bad", "c", "d"]
        with no_descriptor_left():
            async with nothing_left_running():
                answer = await post(gateway, *[file(random_bytes(50_000), name) for name in names])
        problem = answer.json()
        assert (answer.status, problem["type"]) == (502, "/problems/incomplete")
        assert (problem["sink"], problem["sink_status"], problem["part"]) == ("api", 422, 2)
        assert [(one["part"], one["sink"], one["status"]) for one in problem["kept"]] == [
            (0, "api", 200),
            (1, "api", 200),
        ]
        assert len(upstream.exchanges) == 3
    assert gateway.stored() == []


async def test_where_the_first_part_is_refused_nothing_stays(start_gateway: StartGateway) -> None:
    async with ChoosyUpstream(b'filename="bad', "refuse") as upstream:
        gateway = await all_or_nothing(start_gateway, upstream, "disk", limits={"parallel_parts": 1})
        answer = await post(gateway, file(b"x", "bad"), file(b"y", "b"))
        assert (answer.status, answer.json()["type"]) == (502, "/problems/sink-refused")
        assert answer.json()["sink_status"] == 422
    assert gateway.stored() == []


async def test_a_destination_that_is_not_there_is_unavailable(start_gateway: StartGateway) -> None:
    async with MuteUpstream() as upstream:
        gateway = await all_or_nothing(start_gateway, upstream, url=closed_port())
        async with nothing_left_running():
            answer = await post(gateway, *[file(b"x", str(index)) for index in range(10)])
        assert (answer.status, answer.json()["type"]) == (503, "/problems/sink-unavailable")


async def test_a_best_effort_one_sends_when_the_others_have_committed(start_gateway: StartGateway) -> None:
    async with ChoosyUpstream(b'filename="bad', "refuse") as upstream:
        for keep in ("all", "each"):
            gateway = await start_gateway(
                sinks={
                    "api": {
                        "url": upstream.url,
                        "per": "part",
                        "length": "spool",
                        "drop": ["secret"],
                        "add_after": {"sum": "{sha256}"},
                    }
                },
                routes=[
                    {
                        "path": "/upload",
                        "keep": keep,
                        "parts": [{"sinks": ["disk", {"sink": "api", "mode": "best_effort"}]}],
                    }
                ],
            )
            async with nothing_left_running():
                answer = await post(gateway, file(b"x", "a"), file(b"s", "s", "secret"), file(b"y" * MIB, "b"))
            assert answer.status == 201
            assert [[one["sink"] for one in part["receipts"]] for part in answer.json()["parts"]] == [
                ["disk", "api"],
                ["disk"],
                ["disk", "api"],
            ]
            assert [parts[-1] for parts in whole(upstream)] == [
                ("sum", None, sha256(data).encode()) for data in (b"x", b"y" * MIB)
            ]
            upstream.exchanges.clear()
            answer = await post(gateway, file(b"x", "bad"))
            assert answer.json()["parts"][0]["receipts"][1] == {"sink": "api", "dropped": "failed"}
            upstream.exchanges.clear()


# -- cuts


@EITHER
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_vanishes_breaks_off_what_was_not_complete(
    start_gateway: StartGateway, start: Any, how: Any
) -> None:
    sizes = {"a": 10, "b": 400_000, "c": 300_000, "d": 20}
    parts = {name: random_bytes(size) for name, size in sizes.items()}
    body = form(field("note", b"1"), *[file(data, name) for name, data in parts.items()])
    request = head(content_length=len(body)) + body
    ends = {name: request.index(data) + len(data) for name, data in parts.items()}
    cuts = [*range(len(request) - 60, len(request), 13), *range(len(head()), len(request) - 60, 67_001)]
    async with HonestUpstream() as upstream:
        gateway = await start(start_gateway, upstream, "disk")
        with no_descriptor_left():
            async with nothing_left_running():
                for cut in cuts:
                    upstream.exchanges.clear()
                    async with VanishingClient(gateway.port) as client:
                        await client.send(request[:cut])
                        await asyncio.sleep(0.01)
                        await client.vanish_after(b"", how)
                    await eventually(lambda: not gateway.services.requests)
                    await eventually(lambda: all(one.complete or one.lost for one in upstream.exchanges))
                    arrived = files(upstream)
                    assert arrived.items() <= parts.items()
                    if start is all_or_nothing:
                        assert upstream.exchanges == []
                    else:
                        assert all(ends[name] < cut for name in arrived)
        assert gateway.stored() == []
        answer = await ask(gateway.port, "/upload", "POST", body)
        assert answer.status == 201


async def test_what_was_complete_stays_when_the_body_breaks_off_later(start_gateway: StartGateway) -> None:
    body = form(file(b"first", "a"), file(bytes(MIB), "b"), file(b"last", "c"))
    cut = body.index(b'filename="b"') + 300_000
    async with HonestUpstream() as upstream:
        gateway = await each(start_gateway, upstream, "disk")
        async with nothing_left_running(), Client(gateway.port) as client:
            await client.send(head(content_length=cut, connection="close") + body[: cut - 1])
            await eventually(lambda: files(upstream) == {"a": b"first"})
            await client.send(body[cut - 1 : cut])
            answer = await client.answer()
        assert (answer.status, answer.json()["type"]) == (400, "/problems/truncated")
        await eventually(lambda: all(one.complete or one.lost for one in upstream.exchanges))
        assert files(upstream) == {"a": b"first"}
    assert gateway.stored() == []


# -- the delivery alone


def alone(index: int = 0) -> Upload:
    return Upload(f"01ALONE{index:019}", "/upload", parts_alone=True)


async def test_small_parts_that_are_whole_may_come_in_one_go(start_gateway: StartGateway) -> None:
    async with HonestUpstream(201) as upstream, RelaySink(name="api", url=upstream.url, per="part") as sink:
        async with nothing_left_running(), delivering(sink, alone()) as delivery:
            assert isinstance(delivery, PartsDelivery)
            await delivery.accept_all([(field_part(0), b"1"), (file_part(1, b"a"), b"A"), (file_part(2, b""), b"")])
            assert files(upstream) == {"a": b"A"}
            await delivery.accept_all([(field_part(3), b"2"), (file_part(4, b"b"), b"B")])
            receipts = await delivery.commit()
        assert [(receipt.part, receipt.status) for receipt in receipts] == [(1, 201), (4, 201)]
        assert [[data for _, _, data in parts] for parts in whole(upstream)] == [[b"1", b"A"], [b"1", b"2", b"B"]]


@pytest.mark.sockets
async def test_a_part_that_is_dropped_has_no_receipt_and_one_that_was_not_complete_is_broken_off() -> None:
    async with (
        HonestUpstream() as upstream,
        RelaySink(name="api", url=upstream.url, per="part") as sink,
        nothing_left_running(),
        delivering(sink, alone()) as delivery,
        asyncio.TaskGroup() as group,
    ):
        assert isinstance(delivery, PartsDelivery)
        await delivery.accept(file_part(0, b"a"), source(b"A"))
        await delivery.accept(file_part(1, b"b"), source(b"B"))
        broken = BrokenSource(bytes(MIB))
        accepting = group.create_task(delivery.accept(file_part(2), broken))
        await broken.reached.wait()
        accepting.cancel()
        await asyncio.wait([accepting])
        for index in (1, 2, 3):  # the last one was never given
            await delivery.drop(file_part(index))
        assert [receipt.part for receipt in await delivery.commit()] == [0]
        assert files(upstream) == {"a": b"A", "b": b"B"}
        await eventually(lambda: all(one.complete or one.lost for one in upstream.exchanges))


@pytest.mark.sockets
async def test_what_is_wrong_with_a_part_says_which_one() -> None:
    async with ChoosyUpstream(b"bad") as upstream:
        async with RelaySink(name="api", url=upstream.url, per="part") as sink, delivering(sink, alone()) as delivery:
            with pytest.raises(SinkRefused) as refused:
                await delivery.accept(file_part(7), source(b"bad"))
            assert refused.value.members == {"sink": "api", "sink_status": 422, "part": 7}
        async with (
            RelaySink(name="api", url=upstream.url, per="part", length="known") as sink,
            delivering(sink, alone()) as delivery,
        ):
            with pytest.raises(LengthRequired) as required:
                await delivery.accept(file_part(7), source(b"x"))
            assert required.value.members == {"sink": "api", "part": 7}
            lying = Part(7, b"file", b"a", None, [(b"content-length", b"2")], is_file=True)
            for data in (b"", b"x", b"xxx", bytes(MIB)):
                with pytest.raises(Malformed) as malformed:
                    await delivery.accept(lying, source(data))
                assert malformed.value.members == {"part": 7}
            twice = Part(7, b"file", b"a", None, [(b"content-length", b"2")] * 2, is_file=True)
            with pytest.raises(Malformed):
                await delivery.accept(twice, source(b"xx"))
        assert upstream.whole_bodies == [body for body in upstream.whole_bodies if b"bad" in body]
