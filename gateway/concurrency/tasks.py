"""Tasks of groups that may be failing while one is started, and tasks that are in none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["OwnTasks", "start"]

T = TypeVar("T")


def start(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task of the group that does this work.

    Raises RuntimeError where the group takes no more, since one of its tasks has failed: whoever starts it is about to
    be told. The work is closed then, for asyncio would complain that nobody ever awaited it.
    """
    try:
        return group.create_task(work)
    except RuntimeError:
        work.close()
        raise


class OwnTasks:
    """Tasks that are no one else's: those that callbacks of the loop begin, or that go on though nobody waits any more.

    They are held until they end, which is soon.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """What it raises is logged as a mistake in code."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns, or raises. Who is cancelled while he waits for it leaves it to go on."""
        task = self.start(work)
        task.add_done_callback(_look_at)
        return await asyncio.shield(task)

    def __len__(self) -> int:
        """How many of them run."""
        return len(self._tasks)

    async def ended(self) -> None:
        """Wait until none of them runs; to be cancelled cancels none of them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Whoever would have been told its error may be gone, and that is no mistake."""
    if not task.cancelled():
        task.exception()
