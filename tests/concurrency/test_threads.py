"""Threads that nobody has to wait for, jobs that come after others, and what goes on behind who gave up."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

import pytest

from gateway.concurrency import threads as threads_module
from gateway.concurrency.pipe import Progress
from gateway.concurrency.threads import CleanUps, DaemonThreads, TrackedExecutor

_SECONDS = 20


@pytest.fixture
def pool() -> Iterator[DaemonThreads]:
    pool = DaemonThreads(2, name="test")
    yield pool
    assert pool.stop(_SECONDS)


@contextmanager
def hanging(executor: DaemonThreads | TrackedExecutor, count: int = 1) -> Iterator[list[Future[bool]]]:
    """So many jobs that have begun, and do not end before the block does."""
    goes_on = threading.Event()
    begun = [threading.Event() for _ in range(count)]

    def hang(event: threading.Event) -> bool:
        event.set()
        return goes_on.wait(_SECONDS)

    jobs = [executor.submit(hang, event) for event in begun]
    assert all(event.wait(_SECONDS) for event in begun)
    try:
        yield jobs
    finally:
        goes_on.set()


class TestDaemonThreads:
    def test_results_and_errors_come_out_as_they_are(self, pool: DaemonThreads) -> None:
        assert pool.submit(pow, 2, 10).result(_SECONDS) == 1024
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result(_SECONDS)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(self._interrupted).result(_SECONDS)
        assert pool.submit(int, "11", base=2).result(_SECONDS) == 3

    @staticmethod
    def _interrupted() -> None:
        raise KeyboardInterrupt

    def test_no_more_than_so_many_run_at_once_and_each_of_those_has_a_thread(self, pool: DaemonThreads) -> None:
        with hanging(pool, 2):
            waiting = pool.submit(int)
            time.sleep(0.1)
            assert not waiting.running()
        assert waiting.result(_SECONDS) == 0

    def test_a_thread_that_has_nothing_to_do_takes_the_next_job(self, pool: DaemonThreads) -> None:
        names = set()
        for _ in range(20):
            names.add(pool.submit(lambda: threading.current_thread().name).result(_SECONDS))
            time.sleep(0.01)
        assert names <= {"test_0", "test_1"}

    def test_many_jobs_from_many_threads_are_all_done(self, pool: DaemonThreads) -> None:
        done: list[int] = []
        submitting = [
            threading.Thread(target=lambda: [pool.submit(done.append, number) for number in range(500)])
            for _ in range(4)
        ]
        for thread in submitting:
            thread.start()
        for thread in submitting:
            thread.join()
        assert pool.stop(_SECONDS)
        assert sorted(done) == sorted([*range(500)] * 4)

    def test_a_job_that_is_cancelled_forgets_at_once_what_it_would_have_worked_on(self, pool: DaemonThreads) -> None:
        class Data:
            pass

        with hanging(pool, 2):
            data = Data()
            gone = weakref.ref(data)
            job = pool.submit(id, data)
            del data
            assert gone() is not None
            assert job.cancel()
            assert gone() is None
        with pytest.raises(CancelledError):
            job.result(_SECONDS)

    def test_a_job_that_fails_is_gone_with_its_result_and_waits_for_no_collector(self, pool: DaemonThreads) -> None:
        def fail() -> None:
            raise KeyError

        gc.collect()
        gc.disable()
        try:
            job = pool.submit(fail)
            gone = weakref.ref(job)
            with pytest.raises(KeyError):
                job.result(_SECONDS)
            assert pool.stop(_SECONDS)
            del job
            assert gone() is None
        finally:
            gc.enable()

    def test_stopping_does_what_waits_and_takes_no_more(self, pool: DaemonThreads) -> None:
        with hanging(pool, 2):
            waiting = pool.submit(int)
            assert pool.stop(0.05) is False
            with pytest.raises(RuntimeError):
                pool.submit(int)
        assert pool.stop(_SECONDS)
        assert waiting.result(0) == 0

    @pytest.mark.sockets  # it starts a process
    def test_the_process_ends_though_a_job_hangs(self) -> None:
        program = (
            "import time\n"
            "from gateway.concurrency.threads import DaemonThreads\n"
            "DaemonThreads(1, name='x').submit(time.sleep, 60)\n"
            "time.sleep(0.1)\n"
        )
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True, timeout=_SECONDS)
        assert time.monotonic() - started < _SECONDS


class TestJobsThatComeAfter:
    def test_the_last_job_runs_when_the_running_ones_have_ended_and_the_others_never(self, pool: DaemonThreads) -> None:
        mine, order = TrackedExecutor(pool), list[str]()
        with hanging(mine, 2):
            waiting = mine.submit(order.append, "it ought not to begin")
            last = mine.after_all(lambda: order.append("last"))
            time.sleep(0.1)
            assert not last.done()
        last.result(_SECONDS)
        assert waiting.cancelled()
        assert order == ["last"]

    def test_waiting_for_a_job_that_hangs_takes_no_thread(self, pool: DaemonThreads) -> None:
        mine, others = TrackedExecutor(pool), TrackedExecutor(pool)
        with hanging(mine):
            last, after = mine.after_all(int), mine.after_those_before(int)
            assert others.submit(int).result(_SECONDS) == 0
            assert not last.done()
            assert not after.done()
        assert last.result(_SECONDS) == after.result(_SECONDS) == 0

    def test_a_last_job_does_not_wait_for_those_of_others_on_the_same_threads(self, pool: DaemonThreads) -> None:
        ours, theirs = TrackedExecutor(pool), TrackedExecutor(pool)
        with hanging(theirs) as (running,):
            assert ours.after_all(lambda: "last").result(_SECONDS) == "last"
            assert not running.done()

    def test_a_job_after_many_before_it_sees_all_of_their_work(self, pool: DaemonThreads) -> None:
        mine, done = TrackedExecutor(pool), list[int]()
        with hanging(mine):
            for number in range(4):
                mine.submit(done.append, number)
            after = mine.after_those_before(lambda: sorted(done))
        assert after.result(_SECONDS) == [0, 1, 2, 3]

    def test_a_job_after_those_before_lets_them_begin(self, pool: DaemonThreads) -> None:
        mine, order = TrackedExecutor(pool), list[str]()
        with hanging(mine, 2):
            mine.submit(order.append, "before")
            after = mine.after_those_before(lambda: order.append("after"))
            last = mine.after_all(lambda: order.append("last"))
        last.result(_SECONDS)
        assert after.done()
        assert order[-1] == "last"

    def test_it_cannot_be_cancelled_and_its_error_comes_out(self, pool: DaemonThreads) -> None:
        last = TrackedExecutor(pool).after_all(lambda: 1 // 0)
        assert not last.cancel()
        with pytest.raises(ZeroDivisionError):
            last.result(_SECONDS)

    def test_where_the_threads_were_stopped_meanwhile_it_ends_with_an_error(self) -> None:
        pool = DaemonThreads(1, name="test")
        mine = TrackedExecutor(pool)
        with hanging(mine):
            last = mine.after_all(int)
            pool.stop(0)
        with pytest.raises(RuntimeError):
            last.result(_SECONDS)


class TestWaitingForAThread:
    async def test_who_waits_moves_while_others_move(self, pool: DaemonThreads) -> None:
        mine, progress = TrackedExecutor(pool), Progress()
        mine.progress = progress
        with hanging(pool, 2):
            waiting = mine.submit(int)
            progress.moved_at = 0
            pool.moved()
            assert progress.moved_at > 0
            progress.moved_at = 0
            await asyncio.sleep(0.1)
            assert progress.moved_at == 0, "nobody has moved"
        await asyncio.wrap_future(waiting)
        assert progress.moved_at > 0, "its turn came"
        progress.moved_at = 0
        await asyncio.sleep(0.1)
        pool.moved()
        assert progress.moved_at == 0, "it waits no longer"

    async def test_so_does_who_waits_for_jobs_before_it_and_then_for_a_thread(self, pool: DaemonThreads) -> None:
        mine, progress = TrackedExecutor(pool), Progress()
        mine.progress = progress
        with hanging(pool, 2):
            mine.after_those_before(int)
            progress.moved_at = 0
            pool.moved()
            assert progress.moved_at > 0

    async def test_who_has_given_up_waiting_is_told_no_more(self, pool: DaemonThreads) -> None:
        mine, progress = TrackedExecutor(pool), Progress()
        mine.progress = progress
        with hanging(pool, 2):
            assert mine.submit(int).cancel()
            progress.moved_at = 0
            pool.moved()
            assert progress.moved_at == 0


class TestCleanUps:
    async def test_a_job_that_ends_is_waited_for(self, pool: DaemonThreads) -> None:
        cleanups = CleanUps()
        assert await cleanups.settle(pool.submit(time.sleep, 0.1), "it")
        assert cleanups.unfinished == []
        assert await cleanups.settle(pool.submit(lambda: 1 / 0), "an error is not ours")

    async def test_one_that_hangs_goes_on_behind_and_can_be_waited_for(
        self, pool: DaemonThreads, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads_module, "PATIENCE_SECONDS", 0.1)
        cleanups = CleanUps()
        with hanging(pool) as (job,):
            assert not await cleanups.settle(job, "what hangs")
            assert cleanups.unfinished == ["what hangs"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await cleanups.finished()
        async with asyncio.timeout(_SECONDS):
            await cleanups.finished()
        assert cleanups.unfinished == []
        assert job.result(0)

    async def test_a_cancellation_is_passed_on_when_the_waiting_is_over_and_not_before(
        self, pool: DaemonThreads
    ) -> None:
        cleanups, job = CleanUps(), pool.submit(time.sleep, 0.2)

        async def settle() -> None:
            await cleanups.settle(job, "it")

        async with asyncio.TaskGroup() as group:
            settling = group.create_task(settle())
            await asyncio.sleep(0.05)
            settling.cancel()
            await asyncio.sleep(0.05)
            settling.cancel()
            await asyncio.wait([settling])
            assert job.done()
            assert settling.cancelled()

    def test_a_job_that_outlives_the_loop_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(threads_module, "PATIENCE_SECONDS", 0.05)
        pool = DaemonThreads(1, name="test")
        with hanging(pool) as (job,):
            asyncio.run(CleanUps().settle(job, "it"))
        assert pool.stop(_SECONDS)
        assert caplog.records == []
