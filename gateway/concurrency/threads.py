"""Jobs in threads that can be waited for, whoever awaited them and gave up; and that nobody waits for for ever.

A call to a disk that hangs does not return, and cannot be cancelled. So:
1. Its thread is a daemon's: it holds up neither the answer nor the end of the process.
2. What has to be done after it is a job of its own, which begins when it ends, and holds no thread meanwhile.
3. Whoever waits for such a job does so for `PATIENCE_SECONDS`; then it goes on behind him, and is counted if it removes
   something.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

from gateway.concurrency.pipe import Progress

__all__ = ["PATIENCE_SECONDS", "CleanUps", "DaemonThreads", "TrackedExecutor", "settled"]

PATIENCE_SECONDS = 0.5
"""How long an answer waits for what is removed behind it: disks that work need milliseconds for that."""
_MANY = 100
"""Removals that go on at a time, each behind an answer: on a disk that works there is hardly ever one."""
_TELL_SECONDS = 0.05
"""Those who wait for a thread are told so often that others move: clocks for stalls are no finer."""

T = TypeVar("T")


class _Job(Future[Any]):
    """A call that waits for a thread. Cancelled, it forgets what it would have been called with at once."""

    call: Callable[[], Any] | None = None
    progress: Progress | None = None
    """Of whoever waits; None, too, if a thread was free."""

    def cancel(self) -> bool:
        is_cancelled = super().cancel()
        if is_cancelled:
            self.call = None
        return is_cancelled


class DaemonThreads(Executor):
    """At most `count` threads, each begun when it is needed. Jobs begin in the order in which they were submitted.

    concurrent.futures' own pool is joined when the interpreter ends: one call that hangs holds up the end for ever.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: deque[_Job] = deque()
        self._change = threading.Condition()
        self._idle = 0
        self._stopped = False
        self._told_at = 0.0
        self.beside: set[Progress] = set()
        """Of those whose jobs wait to be among many that a thread does at once: told of the moves of others, too."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """What an Executor has. Raises what `add` does."""
        return self.add(partial(function, *args, **kwargs))

    def add(self, call: Callable[[], T], progress: Progress | None = None) -> Future[T]:
        """The same; `progress` is told of the moves of others for as long as the call waits for a thread.

        Raises RuntimeError after `stop`, and where the system has no thread for us at all.
        """
        job = _Job()
        job.call = call
        with self._change:
            if self._stopped:
                raise RuntimeError("the threads are stopped")
            if len(self._jobs) >= self._idle:
                job.progress = progress
                if len(self._threads) < self._count:
                    self._begin_thread()
            self._jobs.append(job)
            self._change.notify()
        return job

    def moved(self) -> None:
        """In a thread: some job has got on. Then those that wait do not hang."""
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            with self._change:
                waiting = [job.progress for job in self._jobs if job.progress is not None and not job.cancelled()]
            for progress in (*waiting, *list(self.beside)):  # a copy, for the loop adds to it meanwhile
                progress.moved()

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has none to give; those that there are take the job, too
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if job.set_running_or_notify_cancel():
                call, job.call = job.call, None
                assert call is not None
                if job.progress is not None:  # from now on it tells of its moves itself
                    job.progress.moved()
                _run_into(job, call)
                del call
            del job  # its result is not to stay until the next one comes

    def _next(self) -> _Job | None:
        with self._change:
            while not self._jobs:
                if self._stopped:
                    return None
                self._idle += 1
                self._change.wait()
                self._idle -= 1
            return self._jobs.popleft()

    def stop(self, patience_seconds: float | None) -> bool:
        """Take no more jobs, and end those that there are. Blocks, for so long at most; whether all have ended."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """What an Executor has; `cancel_futures`: jobs that have not begun are not begun."""
        if cancel_futures:
            for job in list(self._jobs):
                job.cancel()
        self.stop(None if wait else 0)


class TrackedExecutor(Executor):
    """One owner's jobs on threads that are shared. With `progress`, to wait for a thread is no stall of its own."""

    def __init__(self, threads: DaemonThreads) -> None:
        self._threads = threads
        self._jobs: set[Future[Any]] = set()
        self.progress: Progress | None = None

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Raises what `DaemonThreads.add` does."""
        job = self._threads.add(partial(function, *args, **kwargs), self.progress)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def track(self, job: Future[Any]) -> None:
        """One of the owner's, though somebody else has submitted it."""
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def after_all(self, function: Callable[[], T]) -> Future[T]:
        """Run a last job when no other runs any more; those that have not begun are not begun."""
        return self._after([job for job in list(self._jobs) if not job.cancel()], function)

    def after_those_before(self, function: Callable[[], T]) -> Future[T]:
        """Run a job when none that was submitted before it runs any more; they are begun all the same."""
        after = self._after(list(self._jobs), function)
        self.track(after)
        return after

    def _after(self, jobs: Sequence[Future[Any]], function: Callable[[], T]) -> Future[T]:
        """It can be waited for, and not cancelled: what it does has to be done."""
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()
        left = len(jobs) + 1
        counting = threading.Lock()

        def one_has_ended(_: object) -> None:
            nonlocal left
            with counting:
                left -= 1
                if left:
                    return
            try:
                self._threads.add(partial(_run_into, result, function), self.progress)
            except RuntimeError as error:  # the threads are stopped: the process is about to end
                result.set_exception(error)

        for job in jobs:
            job.add_done_callback(one_has_ended)
        one_has_ended(None)
        return result


def _run_into(result: Future[T], function: Callable[[], T]) -> None:
    try:
        value = function()
    except BaseException as error:
        result.set_exception(error)
        del result, function  # or they go round with the error, whose traceback has this frame, and keep what they hold
    else:
        result.set_result(value)


class CleanUps:
    """Jobs that have to be done, each behind whoever has waited long enough for it."""

    def __init__(self) -> None:
        self._unfinished: dict[Future[Any], str] = {}

    @property
    def are_many(self) -> bool:
        """Whether so many go on that nothing more ought to be begun that may hang as well: each costs memory."""
        return len(self._unfinished) >= _MANY

    @property
    def unfinished(self) -> list[str]:
        """What is being cleaned up, as `settle` was told."""
        return list(self._unfinished.values())

    async def settle(self, job: Future[Any], what: str) -> bool:
        """As `settled`; until it has ended the job is one of those that are counted."""
        self._unfinished[job] = what
        job.add_done_callback(self._ended)
        return await settled(job)

    def _ended(self, job: Future[Any]) -> None:
        self._unfinished.pop(job, None)

    async def finished(self) -> None:
        """Wait until all of it has ended."""
        while self._unfinished:
            await asyncio.wait([_told_of_end(job) for job in list(self._unfinished)])


async def settled(job: Future[Any]) -> bool:
    """Wait for a job until it has ended, for `PATIENCE_SECONDS` at most; whether it has.

    A cancellation that comes meanwhile is passed on then. An error of the job is not: who began it sees to that.
    """
    loop = asyncio.get_running_loop()
    ended, deadline = _told_of_end(job), loop.time() + PATIENCE_SECONDS
    cancelled: asyncio.CancelledError | None = None
    while not ended.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([ended], timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return ended.done()


def _told_of_end(job: Future[Any]) -> asyncio.Future[None]:
    """Done when the job is, and nothing more: to cancel it, or to forget it, changes nothing for the job."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    def ended(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have ended before the job
            loop.call_soon_threadsafe(tell)

    job.add_done_callback(ended)
    return told
