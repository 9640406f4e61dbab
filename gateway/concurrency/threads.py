"""Jobs in threads that can be waited for, whoever awaited them and gave up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

__all__ = ["TrackedExecutor", "uninterrupted"]

T = TypeVar("T")


class TrackedExecutor(Executor):
    """One owner's jobs on a pool that is shared."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._jobs: set[Future[Any]] = set()

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        job = self._executor.submit(function, *args, **kwargs)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def after_all(self, function: Callable[[], T]) -> Future[T]:
        """Run a last job when no other runs any more; those that have not begun are not begun."""
        running = [job for job in list(self._jobs) if not job.cancel()]

        def last() -> T:
            wait(running)  # they are on other threads of the pool, so this one does not keep them from ending
            return function()

        return self._executor.submit(last)

    def after_those_before(self, function: Callable[[], T]) -> Future[T]:
        """Run a job when none that was submitted before it runs any more; they are begun all the same."""
        before = list(self._jobs)

        def last() -> T:
            wait(before)  # the pool takes its jobs in order, so none of them waits for this one's thread
            return function()

        return self.submit(last)


async def uninterrupted(job: Future[T]) -> T:
    """Wait for a job to its end, and pass on a cancellation that came meanwhile only then.

    For removals: half of one would stay. They are short, and on threads of our own.
    """
    future = asyncio.wrap_future(job)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()
