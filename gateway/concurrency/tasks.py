"""Tasks of groups that may be failing while one is started."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["start"]


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
