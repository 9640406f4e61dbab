"""Sinks that are stuck, fail or lie, and what is kept when a commit fails: through a whole gateway on real sockets."""

from __future__ import annotations

import errno
import logging
import time
from typing import Any

import pytest

from gateway.sinks.disk.jobs import Jobs
from tests.conftest import StartGateway
from tests.contract import nothing_left_running
from tests.support.doubles import EarlyReturnSink, ForgetfulSink, HonestUpstream, MemorySink, MuteUpstream
from tests.upload.test_dispatch import Wire, double, files, keeping_nothing, post, route, sink_of

# -- sinks that misbehave


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("others", [(), ("disk", "none")], ids=["alone", "among others"])
@pytest.mark.parametrize("kind", ["StuckSink", "StuckCommitSink"])
async def test_a_stuck_sink_becomes_a_timeout(
    start_gateway: StartGateway, kind: str, others: tuple[str, ...], size: int
) -> None:
    gateway = await start_gateway(
        sinks={"stuck": double(kind)}, routes=route("stuck", *others), limits={"stall_seconds": 0.5}
    )
    async with keeping_nothing(gateway):
        began = time.monotonic()
        status, problem = await post(gateway, *files(3, size))
        assert (status, problem["type"], problem["sink"]) == (504, "/problems/sink-timeout", "stuck")
        assert time.monotonic() - began < 8


async def test_a_sink_that_never_opens_becomes_a_timeout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"stuck": double("StuckOpenSink")},
        routes=route("disk", "stuck"),
        limits={"stall_seconds": 0.5},
        server={"drain_seconds": 0.1},
    )
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(1, 10))
        assert (status, problem["type"], problem["sink"]) == (504, "/problems/sink-timeout", "stuck")


@pytest.mark.tracebacks
@pytest.mark.parametrize("kind", ["UnleavableSink", "SwallowingSink"])
async def test_what_goes_wrong_in_leaving_a_sink_changes_no_answer(start_gateway: StartGateway, kind: str) -> None:
    sinks = {"odd": double(kind), "stuck": double("StuckSink")}
    gateway = await start_gateway(sinks=sinks, routes=route("odd", "disk"))
    status, manifest = await post(gateway, *files(2, 10))
    assert status == 201
    assert list(sink_of(gateway, "odd", MemorySink).kept) == [manifest["upload"]]
    assert (gateway.root / manifest["upload"]).exists()
    gateway = await start_gateway(sinks=sinks, routes=route("disk", "odd", "stuck"), limits={"stall_seconds": 0.5})
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(2, 10))
        assert (status, problem["sink"]) == (504, "stuck")
    assert sink_of(gateway, "odd", MemorySink).open_deliveries == 0


async def test_of_several_sinks_the_one_that_is_stuck_is_named(start_gateway: StartGateway) -> None:
    """More files than may be open at once: the others' bytes wait for a slot that the stuck sink holds."""
    gateway = await start_gateway(
        sinks={"stuck": double("StuckSink")}, routes=route("disk", "none", "stuck"), limits={"stall_seconds": 0.1}
    )
    for _ in range(20):  # within a few milliseconds all of them are over the limit
        async with keeping_nothing(gateway):
            status, problem = await post(gateway, *files(20, 10))
            assert (status, problem["sink"]) == (504, "stuck")


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_sink_that_is_cancelled_by_itself_did_not_take_its_part(start_gateway: StartGateway, size: int) -> None:
    gateway = await start_gateway(sinks={"bad": double("SelfCancellingSink")}, routes=route("bad", "disk"))
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(1, size))
        assert (status, problem.get("type")) == (503, "/problems/sink-unavailable")


@pytest.mark.tracebacks
@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("kind", ["FailingSink", "FailingCommitSink", "RaisingOpenSink"])
async def test_a_sink_that_raises_is_unavailable_and_logged_once(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, kind: str, size: int
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(sinks={"bad": double(kind)}, routes=route("disk", "bad"))
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(1, size))
        assert (status, problem["type"], problem["sink"]) == (503, "/problems/sink-unavailable", "bad")
    loud = [record.getMessage() for record in caplog.records if record.exc_info or record.levelno > logging.WARNING]
    assert loud == ["sink bad failed"]
    assert "a failing" not in str(problem)


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 503)])
async def test_a_sinks_system_error_is_told_by_its_number(
    start_gateway: StartGateway, number: int, status: int
) -> None:
    bad = double("FailingSink", at=500_000, errno=number)
    gateway = await start_gateway(sinks={"bad": bad}, routes=route("bad", "disk"))
    async with keeping_nothing(gateway):
        answered, problem = await post(gateway, *files(1, 2_000_000))
        assert (answered, problem["sink"]) == (status, "bad")


@pytest.mark.parametrize("after", [0, 500_000])
async def test_a_sink_that_has_enough_holds_nobody_up(start_gateway: StartGateway, after: int) -> None:
    gateway = await start_gateway(
        sinks={"early": double("EarlyReturnSink", after=after)}, routes=route("early", "disk")
    )
    status, manifest = await post(gateway, *files(6, 3_000_000))
    assert status == 201
    kept = sink_of(gateway, "early", EarlyReturnSink).kept[manifest["upload"]]
    assert all(after <= len(data) < 3_000_000 for data in kept.values())
    for index in range(6):
        assert (gateway.root / manifest["upload"] / str(index)).stat().st_size == 3_000_000


async def test_a_forgetful_sink_gets_plain_receipts(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"forgetful": double("ForgetfulSink")}, routes=route("forgetful"))
    status, manifest = await post(gateway, *files(2, 10), (b"note", None, b"x"))
    assert status == 201
    plain = [{"sink": "forgetful", "location": None}]
    assert [part["receipts"] for part in manifest["parts"]] == [plain, plain, []]
    assert list(sink_of(gateway, "forgetful", ForgetfulSink).kept[manifest["upload"]]) == [0, 1]


# -- commits


async def test_relays_commit_first_and_disks_last(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    publish = Jobs.publish

    def publishing(self: Jobs, *arguments: Any) -> Any:
        order.append("disk")
        return publish(self, *arguments)

    async def committing(self: MemorySink, *arguments: Any) -> list[Any]:
        order.append(self.name)
        return []

    class Watching(HonestUpstream):
        def received(self, exchange: Any) -> None:
            if exchange.complete:
                order.append("relay")
            super().received(exchange)

    monkeypatch.setattr(Jobs, "publish", publishing)
    monkeypatch.setattr(MemorySink, "commit", committing)
    async with Watching() as upstream:
        gateway = await start_gateway(
            api=upstream.url, sinks={"memory": double("MemorySink")}, routes=route("disk", "memory", "api")
        )
        assert (await post(gateway, *files(2, 100)))[0] == 201
    assert order == ["relay", "memory", "disk"]


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_when_a_relay_refuses_nothing_else_is_kept(start_gateway: StartGateway, size: int) -> None:
    async with HonestUpstream(409, b"no") as upstream:
        gateway = await start_gateway(
            api=upstream.url, sinks={"memory": double("MemorySink")}, routes=route("disk", "memory", "api")
        )
        async with keeping_nothing(gateway):
            status, problem = await post(gateway, *files(2, size))
            assert (status, problem["type"], problem["sink_status"]) == (502, "/problems/sink-refused", 409)
        assert sink_of(gateway, "memory", MemorySink).committed == 0


async def test_while_a_relay_has_not_answered_nothing_else_is_committed(start_gateway: StartGateway) -> None:
    async with MuteUpstream() as upstream:
        gateway = await start_gateway(
            api=upstream.url,
            sinks={"memory": double("MemorySink")},
            routes=route("memory", "api"),
            limits={"stall_seconds": 0.5},
        )
        async with keeping_nothing(gateway):
            assert (await post(gateway, *files(2, 10)))[0] == 504
        assert sink_of(gateway, "memory", MemorySink).committed == 0


def _full(self: Jobs, *arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([(b"file", b"0.bin", b"x")], [{"part": 0, "sink": "api", "location": None, "status": 201}]),
        (
            [(b"n", None, b"x"), (b"file", b"0.bin", b"x" * 700_000)],
            [{"part": 1, "sink": "api", "location": None, "status": 201}],
        ),
        ([(b"n", None, b"only a field")], []),
    ],
    ids=["small", "large", "fields only"],
)
async def test_a_failure_after_a_relay_has_committed_is_told_with_what_is_kept(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, parts: list[Wire], kept: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(Jobs, "publish", _full)
    async with HonestUpstream(201) as upstream:
        gateway = await start_gateway(api=upstream.url, routes=route("disk", "api"))
        async with keeping_nothing(gateway):
            status, problem = await post(gateway, *parts)
            assert upstream.exchanges[0].complete
            assert (status, problem["type"]) == (502, "/problems/incomplete")
            assert (problem["sink"], problem["kept"]) == ("disk", kept)


async def test_a_stall_after_a_commit_is_told_with_what_is_kept(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        sinks={"first": double("MemorySink", stage=0), "stuck": double("StuckCommitSink")},
        routes=route("stuck", "first", "disk"),
        limits={"stall_seconds": 0.5},
    )
    async with nothing_left_running():
        status, problem = await post(gateway, *files(1, 10))
    assert (status, problem["type"], problem["sink"]) == (502, "/problems/incomplete", "stuck")
    assert problem["kept"] == [{"part": 0, "sink": "first", "location": "memory:0", "status": None}]
    assert gateway.stored() == []


async def test_what_was_only_counted_and_dropped_is_nothing_that_is_kept(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Jobs, *arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Jobs, "publish", full)
    gateway = await start_gateway(routes=route("none", "disk"))
    async with keeping_nothing(gateway):
        status, problem = await post(gateway, *files(2, 10))
    assert (status, problem["type"], problem["sink"]) == (507, "/problems/sink-full", "disk")
    assert "kept" not in problem
