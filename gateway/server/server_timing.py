"""Server-Timing (W3C): where the time of an upload went, for its client. Off unless it is configured."""

from __future__ import annotations

from time import monotonic

from aiohttp import web

from gateway.server.services import TIMELINE
from gateway.upload.timeline import Timeline

__all__ = ["server_timing", "tell_server_timing"]

_NAME = "Server-Timing"


async def tell_server_timing(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler. What a destination whose answer is passed on says of itself stays, ahead of it."""
    timeline = request.get(TIMELINE)
    if timeline is not None:
        said = response.headers.getall(_NAME, ())
        response.headers[_NAME] = ", ".join([*said, server_timing(timeline, now=monotonic())])


def server_timing(timeline: Timeline, *, now: float) -> str:
    """`arrival`, `sink-NAME` for each and `commit`, as far as they came, each with its milliseconds. What is not over
    counts up to `now`.
    """
    end = timeline.ended or now
    said = [_metric("arrival", (timeline.arrived or end) - timeline.began)]
    said += [_metric(f"sink-{sink.sink}", sink.ended(end) - sink.opened) for sink in timeline.sinks]
    if begins := [sink.commit_began for sink in timeline.sinks if sink.commit_began]:
        ends = [sink.ended(end) for sink in timeline.sinks if sink.commit_began]
        said.append(_metric("commit", max(ends) - min(begins)))
    return ", ".join(said)


def _metric(name: str, seconds: float) -> str:
    return f"{name};dur={max(seconds, 0) * 1000:.3f}"
