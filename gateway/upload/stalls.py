"""Who takes nothing although the next move is theirs: found by one timer per upload, and told as an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.concurrency.timer import RearmingTimer
from gateway.errors import FlowStalled, GatewayError, SinkTimeout
from gateway.flows import FlowChain
from gateway.upload.lanes import Lane
from gateway.upload.pump import Pump

__all__ = ["StallWatch"]


class StallWatch:
    """Looks when somebody could first be late; the error is raised in a task of `tasks`. `limit` is in seconds."""

    def __init__(self, lanes: Sequence[Lane], pump: Pump, limit: float, tasks: asyncio.TaskGroup) -> None:
        self._lanes = lanes
        self._pump = pump
        self._limit = limit
        self._tasks = tasks
        self._timer = RearmingTimer(self._look)
        if limit:
            self._timer.look_in(limit)

    def stop(self) -> None:
        self._timer.stop()

    def _look(self) -> float | None:
        now, limit = asyncio.get_running_loop().time(), self._limit
        owing: list[tuple[float, Lane | FlowChain]] = [
            *((lane.progress.moved_at, lane) for lane in self._lanes if lane.progress.owed),
            *((progress.moved_at, chain) for chain, progress in self._pump.flowing.items() if progress.owed),
        ]
        # Who has not moved for longest is the one that the others wait for.
        since, slowest = min(owing, key=lambda one: one[0], default=(now, None))
        if slowest is None or now - since < limit:
            return since + limit - now
        error = _stalled(slowest, limit)
        if isinstance(slowest, FlowChain) and self._pump.forgo(slowest, error):
            return 0
        failing = _fail(error)
        try:
            self._tasks.create_task(failing)
        except RuntimeError:  # the group is failing already
            failing.close()
        return None


def _stalled(who: Lane | FlowChain, limit: float) -> GatewayError:
    if isinstance(who, Lane):
        what, clock = (
            ("did not confirm the whole upload", "first_byte") if who.committing else ("took nothing", "write")
        )
        of_relays = {"clock": clock} if who.is_relay else {}
        return SinkTimeout(f"sink {who.name} {what} for {limit:g} seconds", sink=who.name, limit=limit, **of_relays)
    name, part = who.running, who.file.index
    return FlowStalled(f"flow {name} took nothing for {limit:g} seconds", flow=name, part=part, limit=limit)


async def _fail(error: GatewayError) -> None:
    raise error
