"""One sink's share of one upload: two ways in, turns, receipts, errors as ours."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterable, Sequence

import pytest

from gateway.errors import SinkFull, SinkUnavailable, TooLarge
from gateway.model import Part, Receipt
from gateway.sinks import Delivery, Stage
from gateway.upload.lanes import PartPermits
from gateway.upload.required_lane import RequiredLane


class Recorder(Delivery):
    """A delivery that writes down what it is given."""

    def __init__(self, *, fail_with: Exception | None = None, receipts: Sequence[Receipt] = ()) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self._fail_with = fail_with
        self._receipts = list(receipts)

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        data = b"".join([chunk async for chunk in chunks])
        if self._fail_with is not None:
            raise self._fail_with
        self.seen.append((part.index, data))

    async def commit(self) -> list[Receipt]:
        return self._receipts


class BulkRecorder(Recorder):
    takes_batches = True

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        await asyncio.sleep(0)
        self.seen += [(part.index, data) for part, data in parts]


def part(index: int) -> Part:
    return Part(index, b"file", b"name", None, is_file=True)


async def test_a_batch_is_handed_over_in_one_go_and_in_order() -> None:
    delivery = BulkRecorder()
    lane = RequiredLane("a", Stage.OTHER, delivery, 1000)
    async with asyncio.TaskGroup() as tasks:
        for index in range(3):
            lane.add(part(index), b"%d" % index)
        await lane.hand_over(tasks, PartPermits(1))
        assert delivery.seen == []
    assert delivery.seen == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert not lane.progress.owed
    assert lane.progress.total == 3


async def test_only_sinks_that_can_take_many_go_the_short_way() -> None:
    assert RequiredLane("a", Stage.OTHER, BulkRecorder(), 1).takes_batches
    assert not RequiredLane("a", Stage.OTHER, Recorder(), 1).takes_batches


async def test_a_slot_is_free_again_when_all_tasks_of_its_part_have_ended() -> None:
    permits, gate = PartPermits(1), asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    async def nothing() -> None:
        pass

    async with asyncio.TaskGroup() as tasks:
        await permits.take()
        permits.give_back_after([tasks.create_task(wait()), tasks.create_task(nothing())])
        second = tasks.create_task(permits.take())
        await asyncio.sleep(0.01)
        assert not second.done()
        gate.set()
        await second


async def test_a_relay_waits_for_the_turn_of_what_flows_still_work_on_and_others_do_not() -> None:
    for stage, waits in ((Stage.RELAY, True), (Stage.OTHER, False)):
        lane = RequiredLane("a", stage, Recorder(), 1000)
        before, done = lane.keep_turn(part(0))
        assert before is None
        async with asyncio.TaskGroup() as tasks:
            turn = tasks.create_task(lane.wait_for_turn())
            await asyncio.sleep(0.01)
            assert turn.done() is not waits
            done.set_result(None)
        next_before, _ = lane.keep_turn(part(0))
        assert next_before is done


async def test_each_file_has_a_receipt_though_the_sink_says_nothing_of_it() -> None:
    lane = RequiredLane("a", Stage.OTHER, Recorder(receipts=[Receipt(2, "a", "/two")]), 1000)
    lane.files += [1, 2]
    assert lane.completed(await lane.delivery.commit()) == [Receipt(1, "a"), Receipt(2, "a", "/two")]


@pytest.mark.tracebacks
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.ENOSPC, "full"), SinkFull),
        (OSError(errno.EIO, "broken"), SinkUnavailable),
        (KeyError("a sink's own mistake"), SinkUnavailable),
        (TooLarge("ours already"), TooLarge),
    ],
)
async def test_a_sinks_errors_are_told_as_ours(raised: Exception, told: type[Exception]) -> None:
    lane = RequiredLane("a", Stage.OTHER, Recorder(fail_with=raised), 1000)
    with pytest.RaisesGroup(told):
        async with asyncio.TaskGroup() as tasks:
            pipe, accept = lane.open(part(0))
            tasks.create_task(accept())
            await pipe.send(b"x")
            pipe.finish()


async def test_a_batch_that_was_taken_while_a_slot_was_waited_for_is_not_delivered_twice() -> None:
    class Counting(BulkRecorder):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[int] = []
            self.gate = asyncio.Event()

        async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
            self.batches.append(len(parts))
            await self.gate.wait()
            await super().accept_all(parts)

    delivery = Counting()
    lane, permits = RequiredLane("a", Stage.OTHER, delivery, 1 << 20), PartPermits(1)
    async with asyncio.TaskGroup() as tasks:
        lane.add(part(0), b"0")
        await lane.hand_over(tasks, permits)
        lane.add(part(1), b"1")
        waiting = tasks.create_task(lane.hand_over(tasks, permits, at_once=True))
        await asyncio.sleep(0)
        delivery.gate.set()
        await waiting
        async with asyncio.timeout(30):
            await permits.take()
    assert delivery.batches == [1, 1]
    assert delivery.seen == [(0, b"0"), (1, b"1")]


async def test_what_gathers_behind_a_part_of_the_long_way_is_not_taken_before_that_has_begun() -> None:
    class Prompt(BulkRecorder):
        """Takes a batch without waiting for anything."""

        async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
            self.seen += [(part.index, data) for part, data in parts]

        async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
            self.seen.append((part.index, b"begun"))

    delivery = Prompt()
    lane, permits = RequiredLane("a", Stage.RELAY, delivery, 1 << 20), PartPermits(4)
    async with asyncio.TaskGroup() as tasks:
        lane.add(part(0), b"0")
        await lane.hand_over(tasks, permits)
        pipe, accept = lane.open(part(1))
        tasks.create_task(accept())  # before any of the tasks has begun
        lane.add(part(2), b"2")
        await lane.hand_over(tasks, permits)
        pipe.finish()
    assert delivery.seen == [(0, b"0"), (1, b"begun"), (2, b"2")]


@pytest.mark.parametrize("stage", [Stage.RELAY, Stage.STORE])
@pytest.mark.parametrize("committing", [False, True])
async def test_a_relay_that_confirms_nothing_may_have_acted_on_the_whole_of_it(stage: Stage, committing: bool) -> None:
    lane = RequiredLane("a", stage, Recorder(), 1)
    lane.committing = committing
    assert ("may_have_acted" in lane.stalled(3).members) == (committing and stage is Stage.RELAY)
