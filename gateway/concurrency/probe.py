"""Whether a disk can be written: tried in a thread of its own, so that one that hangs holds up nobody who asks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from gateway.concurrency.threads import DaemonThreads, settled

__all__ = ["Probe"]

_FRESH_SECONDS = 1.0
"""Who asks more often is told the same again: it costs the disk a write."""
_PATIENCE_SECONDS = 5.0
"""A disk that is busy may take so long; until then what was known before is told."""


class Probe:
    """`call` is what is tried: it blocks, and raises OSError where the disk cannot be written."""

    def __init__(self, call: Callable[[], object], *, name: str) -> None:
        self._call = call
        self._threads = DaemonThreads(1, name=name)
        self._job: Future[object] | None = None
        self._began = -math.inf
        self._refused: BaseException | None = None

    async def ask(self) -> bool:
        """Whether it answers at all, within half a second. Raises OSError where it refused when it was tried last."""
        now = time.monotonic()
        if self._job is None or (self._job.done() and now - self._began > _FRESH_SECONDS):
            self._began = now
            self._job = self._threads.submit(self._call)
        if await settled(self._job):
            self._refused = self._job.exception()
        elif now - self._began > _PATIENCE_SECONDS:
            return False
        if isinstance(self._refused, OSError):
            raise OSError(*self._refused.args[:2])  # another one: each time it is raised its traceback would grow
        return True

    def stop(self) -> None:
        """Try no more; waits for nothing."""
        self._threads.stop(0)
