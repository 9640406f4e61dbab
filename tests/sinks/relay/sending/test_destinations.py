"""The choice among urls, with a clock of the test's own; the checks over real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest
from aiohttp import web

from gateway.sinks.relay.sending.destinations import Attempt, Destination, Destinations, check_health
from tests.conftest import StartDestination, StartGateway
from tests.contract import answer_of, eventually, form, nothing_left_running
from tests.support.doubles import HonestUpstream, closed_port


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def three(clock: Clock | None = None, failures_to_open: int = 3) -> Destinations:
    return Destinations(["a", "b", "c"], failures_to_open=failures_to_open, open_seconds=10, clock=clock or Clock())


def attempt(destinations: Destinations, *tried: Destination) -> Attempt:
    chosen = destinations.choose(tried)
    assert chosen is not None
    return chosen


def names(*attempts: Attempt) -> str:
    return "".join(one.destination.url for one in attempts)


def fail(destinations: Destinations, name: str, times: int) -> None:
    one = next(one for one in destinations.all if one.url == name)
    for _ in range(times):
        destinations.failed(one)


def test_the_log_names_a_destination_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gateway.destinations")
    destinations = Destinations(["http://h/in?sig=secret"], failures_to_open=1, clock=Clock())
    destinations.failed(destinations.all[0])
    destinations.answered(destinations.all[0])
    assert [record.getMessage() for record in caplog.records] == [
        "destination http://h/in failed 1 times in a row",
        "destination http://h/in answers again",
    ]


# -- whose turn it is


def test_equals_take_turns() -> None:
    destinations = three()
    order = ""
    for _ in range(6):
        one = attempt(destinations)
        order += names(one)
        one.leave()
    assert order == "abcabc"


def test_the_least_busy_one_is_chosen() -> None:
    destinations = three()
    first = [attempt(destinations) for _ in range(6)]
    assert Counter(names(*first)) == {"a": 2, "b": 2, "c": 2}
    for one in first:
        if one.destination.url == "b":
            one.leave()
            one.leave()  # the second time says nothing
    assert names(attempt(destinations), attempt(destinations)) == "bb"


def test_an_upload_goes_nowhere_twice() -> None:
    destinations = three()
    a, b, c = (attempt(destinations).destination for _ in range(3))
    assert names(attempt(destinations, a, c)) == "b"
    assert destinations.choose((a, b, c)) is None


# -- circuits


def test_failures_in_a_row_take_a_destination_out_and_others_do_not() -> None:
    destinations = three()
    fail(destinations, "b", 2)
    destinations.answered(destinations.all[1])
    fail(destinations, "b", 2)
    assert "b" in names(*(attempt(destinations) for _ in range(3)))
    fail(destinations, "b", 1)
    assert Counter(names(*(attempt(destinations) for _ in range(6)))) == {"a": 3, "c": 3}


def test_after_its_time_one_upload_may_try_and_its_success_lets_all_in() -> None:
    clock = Clock()
    destinations = three(clock)
    fail(destinations, "b", 3)
    clock.now += 10
    several = [attempt(destinations) for _ in range(6)]
    assert Counter(names(*several))["b"] == 1
    probe = next(one for one in several if one.destination.url == "b")
    probe.answered()
    assert Counter(names(*(attempt(destinations) for _ in range(3))))["b"] >= 2


def test_a_probe_that_fails_takes_it_out_again_and_one_that_is_given_up_leaves_its_place() -> None:
    clock = Clock()
    destinations = three(clock)
    fail(destinations, "b", 3)
    clock.now += 10
    tried = [attempt(destinations) for _ in range(3)]
    probe = next(one for one in tried if one.destination.url == "b")
    probe.leave()
    again = [attempt(destinations) for _ in range(2)]
    assert "b" in names(*again)
    next(one for one in again if one.destination.url == "b").failed()
    clock.now += 9
    assert "b" not in names(*(attempt(destinations) for _ in range(6)))


def test_where_none_is_healthy_they_are_tried_as_they_are_due() -> None:
    clock = Clock()
    destinations = three(clock)
    for name in "bca":
        fail(destinations, name, 3)
        clock.now += 1
    tried: list[Attempt] = []
    for _ in range(3):
        tried.append(attempt(destinations, *(one.destination for one in tried)))
    assert names(*tried) == "bca"
    assert destinations.choose(destinations.all) is None


def test_a_single_destination_is_never_refused_unseen() -> None:
    destinations = Destinations(["only"], clock=Clock())
    for _ in range(10):
        one = attempt(destinations)
        one.failed()
        one.leave()


def test_circuits_can_be_off() -> None:
    destinations = three(failures_to_open=0)
    fail(destinations, "b", 100)
    assert "b" in names(*(attempt(destinations) for _ in range(3)))


# -- checks


async def test_checks_find_who_is_not_well_and_who_is_well_again(start_destination: StartDestination) -> None:
    status = 200

    async def health(request: web.Request) -> web.Response:
        assert request.query_string == "deep=1"
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/healthz", health)
    well = await start_destination(app)
    destinations = Destinations([well.url + "/deep/upload?x=1", closed_port()])
    async with nothing_left_running(), aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        checks = group.create_task(
            check_health(destinations, session, path="/healthz?deep=1", every_seconds=0.02, patience=5)
        )
        await eventually(lambda: [one.down for one in destinations.all] == [False, True])
        status = 500
        await eventually(lambda: [one.down for one in destinations.all] == [True, True])
        status = 302
        await eventually(lambda: [one.down for one in destinations.all] == [False, True])
        checks.cancel()


async def test_one_that_failed_its_check_gets_no_upload_and_the_gateway_stops_cleanly(
    start_gateway: StartGateway,
) -> None:
    async with HonestUpstream(200, b"{}") as upstream, aiohttp.ClientSession() as session:
        urls = [closed_port(), upstream.url]
        async with nothing_left_running():
            gateway = await start_gateway(sinks={"api": {"urls": urls, "health_path": "/", "health_seconds": 60}})
            destinations = gateway.services.sinks["api"].sender.destinations  # type: ignore[attr-defined]
            await eventually(lambda: destinations.all[0].down)
            for _ in range(4):
                assert (await answer_of(session, gateway.url + "/proxy", form((b"f", b"a", b"x"))))[0] == 200
            assert destinations.all[0].failures == 0
            await gateway.runner.cleanup()
