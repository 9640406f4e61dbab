"""When a timer that arms itself again looks, and what it holds after it was stopped."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from gateway.concurrency.timer import RearmingTimer
from tests.contract import eventually


async def test_it_looks_again_when_its_look_says_so_and_not_before() -> None:
    loop = asyncio.get_running_loop()
    looks: list[float] = []
    waits = iter([0.05, 0.1, None])

    def look() -> float | None:
        looks.append(loop.time())
        return next(waits)

    timer = RearmingTimer(look)
    timer.look()
    assert len(looks) == 1
    await eventually(lambda: len(looks) == 3)
    assert looks[1] - looks[0] >= 0.045
    assert looks[2] - looks[1] >= 0.095
    await asyncio.sleep(0.05)
    assert len(looks) == 3


async def test_the_first_look_may_be_later() -> None:
    looks: list[int] = []
    timer = RearmingTimer(lambda: looks.append(1))
    timer.look_in(0.05)
    await asyncio.sleep(0)
    assert not looks
    await eventually(lambda: looks == [1])


async def test_a_look_that_was_to_come_sooner_stays_and_one_that_was_to_come_later_does_not() -> None:
    loop = asyncio.get_running_loop()
    looks: list[float] = []
    waits = iter([0.2, 0.05, 5.0, None])

    def look() -> float | None:
        looks.append(loop.time())
        return next(waits)

    timer = RearmingTimer(look)
    timer.look()
    timer.look()
    timer.look()
    await asyncio.sleep(0.15)
    assert len(looks) == 4
    assert looks[3] - looks[1] >= 0.045
    await asyncio.sleep(0.15)
    assert len(looks) == 4


async def test_to_look_now_and_never_again_replaces_the_look_that_was_to_come() -> None:
    looks: list[int] = []

    def look() -> float | None:
        looks.append(1)
        return 0.05 if len(looks) == 1 else None

    timer = RearmingTimer(look)
    timer.look()
    timer.look()
    await asyncio.sleep(0.1)
    assert len(looks) == 2


@pytest.mark.parametrize("after", [None, float("inf")])
async def test_never_is_never(after: float | None) -> None:
    looks: list[int] = []

    def look() -> float | None:
        looks.append(1)
        return after

    RearmingTimer(look).look()
    await asyncio.sleep(0.05)
    assert looks == [1]


async def test_a_look_that_is_always_due_leaves_the_loop_its_time() -> None:
    looks: list[int] = []

    def look() -> float | None:
        looks.append(1)
        return 0

    timer = RearmingTimer(look)
    timer.look()
    await asyncio.sleep(0.1)
    timer.stop()
    assert 1 < len(looks) <= 12


async def test_after_stop_it_neither_looks_nor_holds_whoever_looked() -> None:
    class Owner:
        def __init__(self) -> None:
            self.timer = RearmingTimer(self.look)
            self.looks = 0

        def look(self) -> float | None:
            self.looks += 1
            return 0.01

    gc.collect()
    gc.disable()
    try:
        owner = Owner()
        timer, gone = owner.timer, weakref.ref(owner)
        timer.look()
        timer.stop()
        looks = owner.looks
        timer.look()
        await asyncio.sleep(0.05)
        assert owner.looks == looks == 1
        del owner
        assert gone() is None
    finally:
        gc.enable()


async def test_its_look_may_stop_it() -> None:
    looks: list[int] = []

    def look() -> float | None:
        looks.append(1)
        timer.stop()
        return 0.01

    timer = RearmingTimer(look)
    timer.look()
    await asyncio.sleep(0.05)
    assert looks == [1]
