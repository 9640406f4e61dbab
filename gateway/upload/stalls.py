"""Who takes nothing although the next move is theirs: found by one timer per upload, and told as an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit, self._look) if limit else None

    def stop(self) -> None:
        # A timer that was cancelled has forgotten us: what an upload held goes with it, not with the next collection.
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now, limit = self._loop.time(), self._limit
        owing: list[tuple[float, Lane | FlowChain]] = [
            *((lane.progress.moved_at, lane) for lane in self._lanes if lane.progress.owed),
            *((progress.moved_at, chain) for chain, progress in self._pump.flowing.items() if progress.owed),
        ]
        # Who has not moved for longest is the one that the others wait for.
        since, slowest = min(owing, key=lambda one: one[0], default=(now, None))
        if slowest is None or now - since < limit:
            self._timer = self._loop.call_later(max(since + limit - now, 0.01), self._look)
            return
        error = _stalled(slowest, limit)
        if isinstance(slowest, FlowChain) and self._pump.forgo(slowest, error):
            self._timer = self._loop.call_later(0.01, self._look)
            return
        failing = _fail(error)
        try:
            self._tasks.create_task(failing)
        except RuntimeError:  # the group is failing already
            failing.close()


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
