"""Windows and pipes: each numbered rule of pipe.py, and that every byte arrives under any interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.concurrency.pipe import Pipe, Progress, Window, add_chunk, gathered

LONG_AGO = -1.0
"""What no clock shows: set as `moved_at`, it says whether a step touches it."""


@pytest.fixture(autouse=True, scope="module")
def _no_joining() -> Iterator[None]:
    """What a pipe does with a chunk is seen best where each stays what it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.concurrency.pipe._TINY_BYTES", -1)
        yield


async def _settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _collect(pipe: Pipe) -> list[bytes]:
    return [chunk async for chunk in pipe]


# -- rule 1: the window


async def test_a_send_returns_at_once_while_the_window_has_room() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    async with asyncio.TaskGroup() as group:
        sending = [group.create_task(pipe.send(chunk)) for chunk in (b"12345", b"67890")]
        await _settle()
        assert all(task.done() for task in sending)
    assert window.used == 10


async def test_a_send_over_the_window_waits_until_the_sink_takes_something() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    await pipe.send(b"12345678")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(pipe.send(b"abc"))
        await _settle()
        assert not sending.done()
        assert window.used == 8
        assert await anext(pipe) == b"12345678"
        await _settle()
        assert sending.done()
    assert window.used == 3
    assert await anext(pipe) == b"abc"
    assert window.used == 0


async def test_a_waiting_send_goes_on_waiting_while_what_was_taken_is_too_little() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    for chunk in (b"1", b"2345", b"67890"):
        await pipe.send(chunk)
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(pipe.send(b"abcde"))
        await _settle()
        await anext(pipe)
        await _settle()
        assert not sending.done()
        await anext(pipe)
        await _settle()
        assert sending.done()
    assert window.used == 10


async def test_a_chunk_larger_than_the_window_passes_into_an_empty_one() -> None:
    window = Window(4, Progress())
    pipe = Pipe(window)
    await pipe.send(b"larger than that")
    assert window.used == 16
    assert await anext(pipe) == b"larger than that"
    assert window.used == 0


async def test_a_chunk_larger_than_the_window_waits_until_that_is_empty() -> None:
    window = Window(4, Progress())
    pipe = Pipe(window)
    await pipe.send(b"a")
    await pipe.send(b"b")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(pipe.send(b"larger than that"))
        for _ in range(2):
            await _settle()
            assert not sending.done()
            await anext(pipe)
    assert window.used == 16


async def test_a_window_of_0_is_unlimited() -> None:
    window = Window(0, Progress())
    pipe = Pipe(window)
    for _ in range(100):
        await pipe.send(bytes(1000))
    assert window.used == window.progress.total == 100_000


async def test_all_pipes_of_a_window_draw_on_it_together() -> None:
    window = Window(10, Progress())
    first, second = Pipe(window), Pipe(window)
    await first.send(b"12345678")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(second.send(b"abc"))
        await _settle()
        assert not sending.done()
        await anext(first)
    assert await anext(second) == b"abc"
    assert window.used == 0


async def test_a_chunk_is_handed_over_by_reference() -> None:
    pipe = Pipe(Window(1 << 20, Progress()))
    chunk = bytes(1000)
    await pipe.send(chunk)
    assert await anext(pipe) is chunk


async def test_a_send_that_is_cancelled_while_it_waits_leaves_the_window_as_it_was() -> None:
    window = Window(4, Progress())
    pipe = Pipe(window)
    await pipe.send(b"1234")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(pipe.send(b"5"))
        await _settle()
        sending.cancel()
    assert await anext(pipe) == b"1234"
    await pipe.send(b"6")
    assert await anext(pipe) == b"6"
    assert (window.used, window.progress.total) == (0, 5)


# -- rule 2: a consumer that stops


async def test_closing_gives_back_what_lies_in_the_pipe() -> None:
    window = Window(10, Progress())
    pipe, other = Pipe(window), Pipe(window)
    await other.send(b"xy")
    await pipe.send(b"123")
    await pipe.send(b"456")
    pipe.close()
    assert window.used == 2


async def test_sends_into_a_closed_pipe_are_dropped_and_never_wait() -> None:
    window = Window(4, Progress())
    pipe = Pipe(window)
    pipe.close()
    for _ in range(10):
        await pipe.send(b"1234")
    assert (window.used, window.progress.total) == (0, 0)


async def test_a_producer_that_waits_goes_on_when_the_consumer_stops() -> None:
    window = Window(4, Progress())
    pipe = Pipe(window)
    await pipe.send(b"1234")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(pipe.send(b"5678"))
        await _settle()
        assert not sending.done()
        pipe.close()
    assert window.used == 0


async def test_a_pipe_that_closes_frees_a_producer_that_waits_for_room_in_another_one() -> None:
    window = Window(4, Progress())
    stopped, other = Pipe(window), Pipe(window)
    await stopped.send(b"1234")
    async with asyncio.TaskGroup() as group:
        group.create_task(other.send(b"5678"))
        await _settle()
        stopped.close()
    assert window.used == 4
    assert await anext(other) == b"5678"


async def test_closing_twice_gives_back_once() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    await pipe.send(b"123")
    pipe.finish()
    pipe.close()
    pipe.close()
    assert (window.used, window.progress.owed) == (0, False)


# -- rule 3: an end is said, never guessed


async def test_an_iteration_ends_after_finish_and_the_last_chunk() -> None:
    pipe = Pipe(Window(10, Progress()))
    await pipe.send(b"1")
    await pipe.send(b"2")
    pipe.finish()
    assert await _collect(pipe) == [b"1", b"2"]


async def test_a_part_of_no_bytes_is_an_iteration_of_no_chunks() -> None:
    pipe = Pipe(Window(10, Progress()))
    pipe.finish()
    assert await _collect(pipe) == []


async def test_finish_wakes_a_consumer_that_waits() -> None:
    pipe = Pipe(Window(10, Progress()))
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(_collect(pipe))
        await pipe.send(b"1")
        await _settle()
        assert not collecting.done()
        pipe.finish()
    assert collecting.result() == [b"1"]


async def test_silence_is_no_end_and_a_broken_source_cancels_the_consumer() -> None:
    pipe = Pipe(Window(10, Progress()))
    await pipe.send(b"all that ever came")
    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(_collect(pipe))
        await _settle()
        assert not collecting.done()
        collecting.cancel()
    assert collecting.cancelled()


# -- whose move it is


async def test_a_sink_owes_nothing_until_it_has_bytes() -> None:
    window = Window(10, Progress())
    assert not window.progress.owed
    pipe = Pipe(window)
    await pipe.send(b"1")
    assert window.progress.owed
    await anext(pipe)
    assert not window.progress.owed


async def test_a_sink_that_has_a_whole_part_owes_its_word_until_the_pipe_is_closed() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    await pipe.send(b"1")
    await anext(pipe)
    pipe.finish()
    assert window.progress.owed
    with pytest.raises(StopAsyncIteration):
        await anext(pipe)
    assert window.progress.owed
    pipe.close()
    assert not window.progress.owed


async def test_a_part_that_finishes_after_its_consumer_stopped_owes_nothing() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    pipe.close()
    pipe.finish()
    assert not window.progress.owed


async def test_the_clock_starts_when_the_sink_begins_to_owe_and_not_with_every_byte_it_is_given() -> None:
    window = Window(10, Progress())
    pipe = Pipe(window)
    window.progress.moved_at = LONG_AGO
    await pipe.send(b"1")
    assert window.progress.moved_at > 0
    window.progress.moved_at = LONG_AGO
    await pipe.send(b"2")
    pipe.finish()
    assert window.progress.moved_at == LONG_AGO


async def test_every_move_of_the_sink_is_noted() -> None:
    window = Window(10, Progress())
    pipe, other = Pipe(window), Pipe(window)
    for chunk in (b"1", b"2"):
        await pipe.send(chunk)
    window.progress.moved_at = LONG_AGO
    await anext(pipe)
    assert window.progress.moved_at > 0
    pipe.finish()
    window.progress.moved_at = LONG_AGO
    pipe.close()
    assert window.progress.moved_at > 0
    other.finish()
    window.progress.moved_at = LONG_AGO
    other.close()
    assert window.progress.moved_at > 0


# -- tiny chunks


def test_tiny_chunks_are_joined_and_others_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.concurrency.pipe._TINY_BYTES", 4096)
    large = b"x" * 4096
    chunks: list[bytes] = []
    for chunk in (b"a", b"b", large, b"c", b"d"):
        add_chunk(chunks, chunk)
    assert chunks == [b"ab", large, b"cd"]
    assert chunks[1] is large


# -- all of it at once


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(0, 12),
    parts=st.lists(
        st.tuples(
            st.lists(st.binary(max_size=8), max_size=8),
            st.none() | st.integers(0, 4),
            st.lists(st.integers(0, 3), min_size=1, max_size=4),
        ),
        max_size=6,
    ),
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
async def test_all_bytes_arrive_in_order_and_everything_is_given_back(
    limit: int, parts: Sequence[tuple[list[bytes], int | None, list[int]]], pauses: list[int]
) -> None:
    """`parts`: (chunks, after how many the consumer stops, its pauses). One producer, as the pump is."""
    window = Window(limit, Progress())
    taken: list[list[bytes]] = [[] for _ in parts]

    async def consume(pipe: Pipe, number: int) -> None:
        _, stop_after, waits = parts[number]
        try:
            if stop_after == 0:
                return
            async for chunk in pipe:
                taken[number].append(chunk)
                if len(taken[number]) == stop_after:
                    return
                await _pause(waits, len(taken[number]))
        finally:
            pipe.close()

    steps = 0
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for number, (chunks, _, _) in enumerate(parts):
            pipe = Pipe(window)
            group.create_task(consume(pipe, number))
            for chunk in chunks:
                await pipe.send(chunk)
                # over the limit only by one chunk that had the window for itself (and empty ones)
                assert not limit or window.used <= max(limit, len(chunk))
                steps += 1
                await _pause(pauses, steps)
            pipe.finish()

    for (chunks, stop_after, _), got in zip(parts, taken, strict=True):
        assert got == chunks[:stop_after]
    assert (window.used, window.progress.owed) == (0, False)


async def _pause(turns: Sequence[int], step: int) -> None:
    for _ in range(turns[step % len(turns)]):
        await asyncio.sleep(0)


async def test_a_batch_is_what_is_there_and_only_its_first_chunk_is_waited_for() -> None:
    progress = Progress()
    pipe = Pipe(Window(100_000, progress))
    for _ in range(3):
        await pipe.send(b"x" * 10_000)
    batches = gathered(pipe, 20_000)
    assert await anext(batches) == ([b"x" * 10_000] * 2, 20_000)
    assert await anext(batches) == ([b"x" * 10_000], 10_000)
    waiting = asyncio.ensure_future(anext(batches))  # noqa: TID251 - there is nothing else to fail
    await asyncio.sleep(0)
    assert not waiting.done()
    await pipe.send(b"last")
    assert await waiting == ([b"last"], 4)
    assert not progress.owed
    pipe.finish()
    assert [batch async for batch in batches] == []


async def test_a_batch_of_anything_else_than_a_pipe_is_a_chunk() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    assert [batch async for batch in gathered(chunks(), 10)] == [([b"a"], 1), ([b"b"], 1)]
