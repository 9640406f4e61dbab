"""Server-Timing: where the time of an upload went, for its client, where that is wanted."""

from __future__ import annotations

import re

from gateway.server.server_timing import server_timing
from gateway.upload.timeline import SinkTimes, Timeline
from tests.conftest import StartGateway
from tests.support.clients import Answer, ask, file, form
from tests.support.doubles import HonestUpstream

WHOLE = form(file(b"abc"))
TWO = [{"path": "/both", "parts": [{"sinks": ["api", "disk"]}]}]
ON = {"server_timing": True}


def _timings(answer: Answer) -> dict[str, float]:
    """As a browser reads them; each name once."""
    metrics = answer.headers["server-timing"].split(", ")
    found = [re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+);dur=(\d+\.\d+)", metric) for metric in metrics]
    assert all(found)
    timings = {match[1]: float(match[2]) for match in found if match}
    assert len(timings) == len(metrics)
    return timings


async def test_nobody_is_told_unless_it_is_configured(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    answer = await ask(gateway.port, "/upload", "POST", WHOLE)
    assert answer.status == 201
    assert "server-timing" not in answer.headers


async def test_the_answer_to_an_upload_tells_its_arrival_its_sinks_and_the_commit(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON, routes=TWO)
        answer = await ask(gateway.port, "/both", "POST", WHOLE)
    assert answer.status == 201
    timings = _timings(answer)
    assert list(timings) == ["arrival", "sink-api", "sink-disk", "commit"]
    assert all(0 <= milliseconds < 30_000 for milliseconds in timings.values())
    assert timings["commit"] <= timings["sink-disk"]


async def test_an_upload_that_fails_is_told_how_far_it_came(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(tracing=ON, limits={"max_file_bytes": 2})
    answer = await ask(gateway.port, "/upload", "POST", WHOLE)
    assert answer.status == 413
    assert list(_timings(answer)) == ["arrival", "sink-disk"]


async def test_what_is_no_upload_or_was_not_let_in_has_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(tracing=ON, limits={"max_body_bytes": 2})
    for answer in (await ask(gateway.port, "/healthz"), await ask(gateway.port, "/upload", "POST", WHOLE)):
        assert "server-timing" not in answer.headers


async def test_what_a_destination_says_of_itself_stays_ahead_of_it(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}", ("Server-Timing", "db;dur=1.5")) as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON)
        answer = await ask(gateway.port, "/proxy", "POST", WHOLE)
    assert answer.status == 200
    assert answer.headers["server-timing"].startswith("db;dur=1.5, arrival;dur=")


def test_what_is_not_over_counts_up_to_now() -> None:
    timeline = Timeline(began=10.0, arrived=12.0, sinks=[SinkTimes("disk", 10.5, commit_began=12.5)])
    assert server_timing(timeline, now=13.0) == "arrival;dur=2000.000, sink-disk;dur=2500.000, commit;dur=500.000"


def test_a_commit_of_several_sinks_is_from_the_first_to_the_last() -> None:
    sinks = [
        SinkTimes("api", 10.0, commit_began=11.0, commit_ended=12.0),
        SinkTimes("disk", 10.0, commit_began=12.0, commit_ended=14.0),
        SinkTimes("mirror", 10.0, given_up=10.5),
    ]
    told = server_timing(Timeline(began=10.0, arrived=11.0, ended=15.0, sinks=sinks), now=99.0)
    assert told.endswith("sink-disk;dur=4000.000, sink-mirror;dur=500.000, commit;dur=3000.000")
