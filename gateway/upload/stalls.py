"""Who takes nothing although the next move is theirs: found by one timer per upload, and told as an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from gateway.concurrency.pipe import Progress
from gateway.concurrency.tasks import start
from gateway.concurrency.timer import RearmingTimer
from gateway.errors import FlowStalled, GatewayError, SinkTimeout
from gateway.flows import FlowChain
from gateway.upload.keep_each import AllOrNothing
from gateway.upload.lanes import RequiredLane

__all__ = ["StallWatch"]


class StallWatch:
    """Looks when somebody could first be late; the error is raised in a task of `tasks`. `limit` is in seconds."""

    def __init__(
        self,
        lanes: Sequence[RequiredLane],
        flowing: Mapping[FlowChain, Progress],
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
        self._timer.stop()

    def _look(self) -> float | None:
        now, limit = asyncio.get_running_loop().time(), self._limit
        owing: list[tuple[float, RequiredLane | None, FlowChain | None]] = [
            *((lane.progress.moved_at, lane, None) for lane in self._lanes if lane.progress.owed),
            *((progress.moved_at, None, chain) for chain, progress in self._flowing.items() if progress.owed),
        ]
        # Who has not moved for longest is the one that the others wait for.
        since, lane, chain = min(owing, key=lambda one: one[0], default=(now, None, None))
        if now - since < limit:
            return since + limit - now
        if lane is not None:
            error: GatewayError = _sink_stalled(lane, limit)
        else:
            assert chain is not None
            error = _flow_stalled(chain, limit)
            if self._failures.forgo(chain.file.index, error):
                return 0
        with suppress(RuntimeError):  # the upload is failing already
            start(self._tasks, _fail(error))
        return None


def _sink_stalled(lane: RequiredLane, limit: float) -> SinkTimeout:
    what, clock = ("did not confirm the whole upload", "first_byte") if lane.committing else ("took nothing", "write")
    of_relays = {"clock": clock} if lane.is_relay else {}
    return SinkTimeout(f"sink {lane.name} {what} for {limit:g} seconds", sink=lane.name, limit=limit, **of_relays)


def _flow_stalled(chain: FlowChain, limit: float) -> FlowStalled:
    name, part = chain.running, chain.file.index
    return FlowStalled(f"flow {name} took nothing for {limit:g} seconds", flow=name, part=part, limit=limit)


async def _fail(error: GatewayError) -> None:
    raise error
