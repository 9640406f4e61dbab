"""What a sweep removes, what it leaves alone, and that one replica sweeps at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from gateway.model import Upload
from gateway.sinks.objects import sweep as sweep_module
from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.sweep import Turn, sweep
from tests.contract import file, source
from tests.sinks.objects.conftest import EVERYWHERE
from tests.support.buckets import Place, in_memory

pytestmark = pytest.mark.sockets


def ulid(number: int) -> str:
    """Of an upload that began years ago."""
    return f"01JD{number:022d}"


@pytest.fixture(params=EVERYWHERE)
async def bucket(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Bucket:
    place = place_of(request.param)
    return Bucket("bucket", place.url, place.prefix, stall_seconds=30)


async def put(bucket: Bucket, *keys: str) -> None:
    for key in keys:
        await bucket.put(key, b"x")


async def keys_in(bucket: Bucket) -> list[str]:
    return [one.key async for one in bucket.listed()]


async def test_uploads_of_which_the_time_is_over_go_and_so_does_what_was_left(bucket: Bucket) -> None:
    whole = [f"{ulid(1)}/0", f"{ulid(1)}/manifest.json"]
    left = [f"{ulid(2)}/{index}" for index in range(3)]
    others = ["README", "backup/0", f"{ulid(3).lower()}/0"]
    running = "7" + ulid(4)[1:]  # began later than anything that could be due
    await put(bucket, *whole, *left, *others, f"{running}/0")
    later = time.time() + 10
    assert await sweep(bucket, published_before=time.time() - 60, touched_before=time.time() - 60) == 0
    assert len(await keys_in(bucket)) == 9
    assert await sweep(bucket, touched_before=later) == 1
    assert await keys_in(bucket) == sorted([*whole, *others, f"{running}/0"])
    assert await sweep(bucket, published_before=later) == 1
    assert await keys_in(bucket) == sorted([*others, f"{running}/0"])


async def test_what_is_counted_for_owners_is_not_looked_through(bucket: Bucket) -> None:
    await put(bucket, ".owners/a/b-1", ".sweeps/left-1", f"{ulid(1)}/0", "README")
    assert [one.key async for one in bucket.listed(after="0")] == [f"{ulid(1)}/0", "README"]


async def test_of_those_who_sweep_one_does_and_the_next_turn_is_anybodys(bucket: Bucket) -> None:
    async with Turn(bucket, "left", 60, now=600) as first, Turn(bucket, "left", 60, now=659) as second:
        assert (first, second) == (True, False)
        assert await keys_in(bucket) == [".sweeps/left-10"]
        async with Turn(bucket, "expired", 60, now=600) as of_another_kind:
            assert of_another_kind
    assert await keys_in(bucket) == []


async def test_who_dies_while_he_sweeps_has_wasted_his_turn_only(bucket: Bucket) -> None:
    with pytest.raises(LookupError):
        async with Turn(bucket, "left", 60, now=600):
            raise LookupError
    async with Turn(bucket, "left", 60, now=630) as same:
        assert not same
    async with Turn(bucket, "left", 60, now=660) as following:
        assert following
    assert await keys_in(bucket) == []


async def test_who_is_told_to_end_while_he_sweeps_gives_his_turn_back(bucket: Bucket) -> None:
    async def sweeping() -> None:
        async with Turn(bucket, "left", 60, now=600) as is_ours:
            assert is_ours
            sweeps.set()
            await asyncio.Event().wait()

    sweeps = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sweeping())
        await sweeps.wait()
        task.cancel()
    assert await keys_in(bucket) == []
    async with Turn(bucket, "left", 60, now=630) as same:
        assert same


async def test_an_upload_that_runs_for_longer_than_a_day_is_not_taken_for_one_that_was_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_module, "LEFT_SECONDS", 1.2)
    async with in_memory().sink() as sink:
        async with sink.open(Upload(ulid(1), "/upload")) as delivery:
            await sink._bucket.put(f"{ulid(2)}/0", b"left by somebody else")
            await delivery.accept(file(0), source(b"x"))
            for _ in range(12):
                await asyncio.sleep(0.3)
                sink._swept._timer.look()
            assert f"{ulid(1)}/running" in await keys_in(sink._bucket)
            assert f"{ulid(2)}/0" not in await keys_in(sink._bucket)
            delivery.keep_manifest(b"{}")
            await delivery.commit()
        keys = [key for key in await keys_in(sink._bucket) if not key.startswith(".sweeps/")]
        assert keys == [f"{ulid(1)}/0", f"{ulid(1)}/manifest.json"]


async def test_an_upload_that_has_ended_shows_no_life() -> None:
    """A sweep may have chosen it before."""
    async with in_memory().sink() as sink:
        async with sink.open(Upload(ulid(1), "/upload")) as delivery:
            await delivery.accept(file(0), source(b"x"))
        await delivery.show_life()
        assert [key for key in await keys_in(sink._bucket) if not key.startswith(".sweeps/")] == []
