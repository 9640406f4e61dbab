"""Jobs that wait at the same time: one hop, one answer, and none waits for what it need not."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from gateway.concurrency.groups import Call, GroupedJob, JobGroups
from gateway.concurrency.pipe import Progress
from gateway.concurrency.threads import DaemonThreads

_SECONDS = 20

Steps = Callable[[], Iterator[Sequence[Call]]]


@pytest.fixture
def threads() -> Iterator[DaemonThreads]:
    threads = DaemonThreads(3, name="test")
    yield threads
    assert threads.stop(_SECONDS)


@pytest.fixture
def groups(threads: DaemonThreads) -> JobGroups:
    return JobGroups(threads, 3)


def job(log: list[Any], name: str, *calls: Call) -> Any:
    """A job that notes when it begins and when what it waits for was made."""

    def steps() -> Iterator[Sequence[Call]]:
        log.append(f"{name} begins")
        yield calls
        log.append(f"{name} goes on")

    return steps


async def answers(*jobs: GroupedJob) -> list[BaseException | None]:
    async with asyncio.timeout(_SECONDS):
        return await asyncio.gather(*(job.answered for job in jobs), return_exceptions=True)


async def test_those_that_wait_at_the_same_time_go_step_by_step_in_one_thread(groups: JobGroups) -> None:
    log: list[str] = []
    where: list[int] = []
    one, two = (groups.submit(job(log, name, lambda: where.append(threading.get_ident()))) for name in "ab")
    assert await answers(one, two) == [None, None]
    assert log == ["a begins", "b begins", "a goes on", "b goes on"]
    assert len(where) == 2


async def test_what_several_wait_for_is_done_once(groups: JobGroups) -> None:
    done: list[str] = []

    def sync_root() -> None:
        done.append("root")

    assert await answers(*(groups.submit(job([], name, sync_root)) for name in "abc")) == [None] * 3
    assert done == ["root"]


async def test_a_call_that_fails_fails_those_that_wait_for_it_and_no_others(groups: JobGroups) -> None:
    log: list[str] = []

    def fail() -> None:
        raise OSError(5, "no")

    found = await answers(groups.submit(job(log, "a", fail)), groups.submit(job(log, "b", lambda: None)))
    assert isinstance(found[0], OSError)
    assert found[1] is None
    assert log[2:] == ["b goes on"]


async def test_one_that_fails_at_once_fails_alone(groups: JobGroups) -> None:
    def failing() -> Any:
        raise ZeroDivisionError

    found = await answers(groups.submit(failing), groups.submit(job([], "b")))
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1] is None


async def test_the_calls_of_a_group_are_made_beside_each_other(groups: JobGroups) -> None:
    together = threading.Barrier(3, timeout=_SECONDS)
    calls = [lambda: together.wait(), lambda: together.wait(), lambda: together.wait()]
    assert await answers(groups.submit(job([], "a", *calls))) == [None]


async def test_the_loop_lets_a_group_begin_undisturbed(groups: JobGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.concurrency.groups._TOGETHER_SECONDS", _SECONDS)
    log: list[str] = []
    made = threading.Event()

    def slow(name: str) -> Any:
        def steps() -> Iterator[Sequence[Call]]:
            time.sleep(0.05)  # the lock is free meanwhile, and the loop would take it
            log.append(f"{name} begins")
            yield [lambda: made.wait(_SECONDS)]

        return steps

    submitted = [groups.submit(slow(name)) for name in "ab"]
    asyncio.get_running_loop().call_soon(log.append, "the loop goes on")
    asyncio.get_running_loop().call_soon(made.set)
    assert await answers(*submitted) == [None, None]
    assert log[:3] == ["a begins", "b begins", "the loop goes on"], "and it does while calls are made"


async def test_the_loop_does_not_stand_still_again_for_as_long_as_it_did(
    groups: JobGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.concurrency.groups._TOGETHER_SECONDS", _SECONDS)

    def slow() -> Any:
        time.sleep(0.05)
        yield ()

    began_at = asyncio.get_running_loop().time()
    assert await answers(groups.submit(slow)) == [None]
    assert groups._stand_still_from >= began_at + 2 * 0.05


async def test_those_who_are_answered_go_on_before_the_next_group_begins(
    groups: JobGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TOGETHER_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(f"gateway.concurrency.groups.{name}", _SECONDS)
    log: list[str] = []
    made = threading.Event()
    first = groups.submit(job(log, "a", lambda: made.wait(_SECONDS)))
    await asyncio.sleep(0.01)  # its group has begun
    groups._stand_still_from = 0.0
    second = groups.submit(job(log, "b"))

    async def wait() -> None:
        await first.answered
        log.append("a is answered")

    async with asyncio.TaskGroup() as group:
        group.create_task(wait())
        await asyncio.sleep(0.01)
        made.set()
        assert await answers(second) == [None]
    assert log == ["a begins", "a goes on", "a is answered", "b begins", "b goes on"]


async def test_the_loop_does_not_wait_for_a_group_that_hangs_nor_for_the_next_one(
    groups: JobGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[bool] = []

    def submit() -> GroupedJob:
        goes_on = threading.Event()

        def hang() -> Any:
            log.append(goes_on.wait(_SECONDS))
            yield ()

        hanging = groups.submit(hang)
        asyncio.get_running_loop().call_soon(goes_on.set)  # behind what begins the group
        return hanging

    assert await answers(submit()) == [None]
    monkeypatch.setattr("gateway.concurrency.groups._TOGETHER_SECONDS", 3 * _SECONDS)
    monkeypatch.setattr("gateway.concurrency.groups._APART_SECONDS", 3 * _SECONDS)
    groups._stand_still_from += _SECONDS  # however busy this machine is
    assert await answers(submit()) == [None]
    assert log == [True, True]


async def test_one_that_was_given_up_before_it_began_is_not_begun(groups: JobGroups) -> None:
    log: list[str] = []
    given_up, other = groups.submit(job(log, "a")), groups.submit(job(log, "b"))
    assert given_up.cancel()
    assert await answers(other) == [None]
    assert log == ["b begins", "b goes on"]
    assert given_up.answered.cancelled()


async def test_who_waits_is_not_held_up_by_a_group_that_hangs(groups: JobGroups) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def hang() -> Any:
        begun.set()
        hangs.wait(_SECONDS)
        yield ()

    hanging = groups.submit(hang)
    try:
        assert await asyncio.to_thread(begun.wait, _SECONDS)
        assert await answers(groups.submit(job([], "b"))) == [None]
        assert not hanging.done()
    finally:
        hangs.set()
    assert await answers(hanging) == [None]


async def test_a_job_that_is_done_is_so_for_who_comes_after_it_though_its_group_goes_on(groups: JobGroups) -> None:
    hangs = threading.Event()

    def failing() -> Any:
        raise ZeroDivisionError

    quick, slow = groups.submit(failing), groups.submit(job([], "b", lambda: hangs.wait(_SECONDS)))
    try:
        assert isinstance(await asyncio.to_thread(quick.exception, _SECONDS), ZeroDivisionError)
        assert not slow.done()
        assert await answers(groups.submit(job([], "c"), weight=1000)) == [None], "what is heavy is its own group"
        assert not quick.answered.done(), "one wake-up is for all"
    finally:
        hangs.set()
    assert (await answers(quick, slow))[1] is None


async def test_whoever_waits_is_told_that_others_move(groups: JobGroups, threads: DaemonThreads) -> None:
    progress, hangs = Progress(), threading.Event()

    def hang() -> Any:
        hangs.wait(_SECONDS)
        yield ()

    jobs = [groups.submit(hang), groups.submit(job([], "b"), progress=progress)]
    before = progress.moved_at = 0.0
    threads.moved()
    assert progress.moved_at > before
    hangs.set()
    assert await answers(*jobs) == [None, None]
    assert progress not in threads.beside


async def test_after_the_end_of_the_threads_each_is_told(threads: DaemonThreads, groups: JobGroups) -> None:
    threads.stop(_SECONDS)
    (error,) = await answers(groups.submit(job([], "a")))
    assert isinstance(error, RuntimeError)


async def test_a_group_that_hangs_is_told_of_no_moves_but_its_own(groups: JobGroups, threads: DaemonThreads) -> None:
    mine, mates, hangs, begun = Progress(), Progress(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        hangs.wait(_SECONDS)

    jobs = [groups.submit(job([], "a", hang), progress=mine), groups.submit(job([], "b"), progress=mates)]
    assert await asyncio.to_thread(begun.wait, _SECONDS)
    try:
        assert min(mine.moved_at, mates.moved_at) > 0, "each step of one is a move of all of them"
        mine.moved_at = mates.moved_at = 0.0
        for _ in range(3):
            threads._told_at = 0.0
            threads.moved()
        assert mine.moved_at == mates.moved_at == 0.0
    finally:
        hangs.set()
    assert await answers(*jobs) == [None, None]


async def test_one_that_is_given_up_keeps_nothing_though_it_waits_for_ever(groups: JobGroups) -> None:
    class Held:
        """What an upload has."""

    def waiting() -> tuple[GroupedJob, weakref.ref[Held]]:
        held = Held()
        return groups.submit(job([], "g", partial(id, held))), weakref.ref(held)

    hangs = threading.Event()
    hanging = [groups.submit(job([], "h", lambda: hangs.wait(_SECONDS)), weight=1000) for _ in range(3)]
    given_up, held = waiting()
    try:
        assert given_up.cancel()
        assert held() is None
    finally:
        hangs.set()
    assert await answers(*hanging) == [None] * 3


async def test_a_mistake_of_ours_is_answered_too(groups: JobGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(groups, "_make", broken)
    found = await answers(groups.submit(job([], "a", lambda: None)), groups.submit(job([], "b", lambda: None)))
    assert [type(one) for one in found] == [MemoryError] * 2
