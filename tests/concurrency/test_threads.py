"""Jobs in threads: which of them a last one waits for, and that a cancellation comes out only when a job has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.concurrency.threads import TrackedExecutor, uninterrupted

SECONDS = 30


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What jobs wait for; opened at the end, so that none outlives its test."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_last_job_runs_when_those_that_run_have_ended(pool: ThreadPoolExecutor, gate: threading.Event) -> None:
    jobs = TrackedExecutor(pool)
    done: list[str] = []

    def run() -> None:
        gate.wait(SECONDS)
        done.append("running")

    running = jobs.submit(run)
    last = jobs.after_all(lambda: done.append("last"))
    assert not running.done()
    assert not last.done()
    gate.set()
    last.result(SECONDS)
    assert done == ["running", "last"]


def test_a_last_job_keeps_those_that_have_not_begun_from_beginning(gate: threading.Event) -> None:
    with ThreadPoolExecutor(1) as pool:
        jobs, begun = TrackedExecutor(pool), threading.Event()

        def run() -> None:
            begun.set()
            gate.wait(SECONDS)

        jobs.submit(run)
        assert begun.wait(SECONDS)
        waiting = jobs.submit(lambda: 1)
        last = jobs.after_all(lambda: "last")
        assert waiting.cancelled()
        gate.set()
        assert last.result(SECONDS) == "last"


def test_a_last_job_does_not_wait_for_those_of_others_on_the_same_pool(
    pool: ThreadPoolExecutor, gate: threading.Event
) -> None:
    ours, theirs = TrackedExecutor(pool), TrackedExecutor(pool)
    running = theirs.submit(gate.wait, SECONDS)
    assert ours.after_all(lambda: "last").result(SECONDS) == "last"
    assert not running.done()


def test_a_job_after_those_before_waits_for_them_and_they_are_begun(gate: threading.Event) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = TrackedExecutor(pool)
        done: list[int] = []

        def run(number: int) -> None:
            gate.wait(SECONDS)
            done.append(number)

        for number in range(4):
            jobs.submit(run, number)
        after = jobs.after_those_before(lambda: sorted(done))
        gate.set()
        assert after.result(SECONDS) == [0, 1, 2, 3]


async def test_a_cancellation_comes_out_when_the_job_has_ended(pool: ThreadPoolExecutor, gate: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(uninterrupted(pool.submit(gate.wait, SECONDS)))
        for _ in range(3):
            await asyncio.sleep(0.01)
            waiting.cancel()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.set()
    assert waiting.cancelled()


async def test_without_one_the_result_or_the_error_comes_out(pool: ThreadPoolExecutor) -> None:
    assert await uninterrupted(pool.submit(lambda: 1)) == 1
    with pytest.raises(ZeroDivisionError):
        await uninterrupted(pool.submit(lambda: 1 // 0))
