"""Tasks of groups that may be failing while one is started, and tasks of callbacks, which can wait for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["OwnTasks", "start"]


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
    """Tasks that callbacks of the loop begin: held until they end, which is soon."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """What it raises is logged as a mistake in code."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
