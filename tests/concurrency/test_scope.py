"""A block that others may end: before, during and after, and what goes through it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.concurrency.scope import Scope


async def test_a_block_that_is_ended_is_left_as_if_it_had_come_to_its_end() -> None:
    scope, reached = Scope(), False
    async with asyncio.timeout(10):
        async with scope:
            scope.end()
            await asyncio.Event().wait()
            reached = True
    assert not reached
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_that_was_ended_before_ends_at_its_first_wait() -> None:
    scope = Scope()
    scope.end()
    async with asyncio.timeout(10):
        async with scope:
            await asyncio.Event().wait()


async def test_ending_twice_or_afterwards_does_no_harm() -> None:
    scope = Scope()
    async with asyncio.timeout(10):
        async with scope:
            scope.end()
            scope.end()
            try:
                await asyncio.Event().wait()
            finally:
                scope.end()
    scope.end()


async def test_one_that_is_to_end_later_may_stay() -> None:
    scope = Scope()
    async with scope:
        scope.end(0.01)
        scope.stay()
        await asyncio.sleep(0.05)
        stayed = True
    assert stayed


async def test_errors_go_through() -> None:
    scope = Scope()
    with pytest.raises(TimeoutError, match="of its own"):
        async with scope:
            raise TimeoutError("of its own")


async def test_a_cancellation_of_the_task_goes_through() -> None:
    async def work() -> None:
        async with Scope():
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
