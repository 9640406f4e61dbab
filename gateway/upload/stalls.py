"""Who takes nothing although the next move is theirs: found by one timer per upload, and told as an error."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress

from gateway.concurrency.tasks import start
from gateway.concurrency.timer import RearmingTimer
from gateway.errors import GatewayError
from gateway.upload.flow_run import Passage
from gateway.upload.keep_each import AllOrNothing
from gateway.upload.required_lane import RequiredLane

__all__ = ["StallWatch"]


class StallWatch:
    """Looks when somebody could first be late; the error is raised in a task of `tasks`. `limit` is in seconds."""

    def __init__(
        self,
        lanes: Sequence[RequiredLane],
        flowing: Collection[Passage],
        failures: AllOrNothing,
        limit: float,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._lanes = lanes
        self._flowing = flowing
        self._failures = failures
        self._limit = limit
        self._tasks = tasks
        self._timer = RearmingTimer(self._look)
        if limit:
            self._timer.look_in(limit)

    def stop(self) -> None:
        """For good."""
        self._timer.stop()

    def _look(self) -> float | None:
        now, limit = asyncio.get_running_loop().time(), self._limit
        watched: list[RequiredLane | Passage] = [*self._lanes, *self._flowing]
        owing = [who for who in watched if who.progress.owed]
        # Who has not moved for longest is the one that the others wait for.
        slowest = min(owing, key=lambda who: who.progress.moved_at, default=None)
        since = now if slowest is None else slowest.progress.moved_at
        if slowest is None or now - since < limit:
            return since + limit - now
        error = slowest.stalled(limit)
        if self._failures.forgo(error):
            return 0
        with suppress(RuntimeError):  # the upload is failing already
            start(self._tasks, _fail(error))
        return None


async def _fail(error: GatewayError) -> None:
    raise error
