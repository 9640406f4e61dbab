"""Whose a prefix is, of those who choose one id and those who remove what is there; whatever the store says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.errors import Conflict, SinkFault, SinkRefused
from gateway.model import Upload
from gateway.server.probing import probe
from gateway.sinks.objects.bucket import Bucket, Stored
from gateway.sinks.objects.claim import Claim, claimed
from gateway.sinks.objects.sink import ObjectSink
from gateway.sinks.objects.sweep import sweep
from tests.contract import delivering, file, source
from tests.sinks.objects.conftest import EVERYWHERE
from tests.support.buckets import Place, in_memory
from tests.support.failing_store import Call, FailingStore, failing_store
from tests.support.stores import kept_manifest, remove_kept

pytestmark = pytest.mark.sockets

_ID = "01JD0000000000000000000001"
_CHOSEN = Upload(_ID, "/upload", id_chosen=True)
_LATER = 4e9


class InterruptedBucket(Bucket):
    """Whoever lists it finds that something has happened before he does anything by it; or before he removes it."""

    after_listing: Callable[[], Awaitable[None]] | None = None
    before_removing: Callable[[], Awaitable[None]] | None = None

    async def listed(self, prefix: str = "", *, after: str = "") -> AsyncIterator[Stored]:
        found = [one async for one in super().listed(prefix, after=after)]
        happens, self.after_listing = self.after_listing, None
        if happens is not None:
            await happens()
        for one in found:
            yield one

    async def delete(self, keys: object) -> None:
        happens, self.before_removing = self.before_removing, None
        if happens is not None:
            await happens()
        await super().delete(keys)  # type: ignore[arg-type]


@pytest.fixture(params=EVERYWHERE)
async def bucket(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> InterruptedBucket:
    place = place_of(request.param)
    return InterruptedBucket("bucket", place.url, place.prefix, stall_seconds=30)


async def put(bucket: Bucket, *names: str) -> None:
    for name in names:
        await bucket.put(f"{_ID}/{name}", b"x")


async def names_in(bucket: Bucket) -> list[str]:
    return [one.key.removeprefix(f"{_ID}/") async for one in bucket.listed() if not one.key.startswith(".sweeps/")]


async def kept(sink: ObjectSink, data: bytes) -> None:
    async with delivering(sink, _CHOSEN) as delivery:
        await delivery.accept(file(0), source(data))
        delivery.keep_manifest(data)
        await delivery.commit()


async def test_a_prefix_is_of_one_at_a_time_and_of_a_killed_one_until_it_is_old(bucket: Bucket) -> None:
    first, second = Claim(bucket, _ID), Claim(bucket, _ID)
    assert await first.take()
    assert not await second.take()
    assert not await second.take_over(older_than=time.time() - 60)
    await second.let_go()  # it was not its own
    assert await names_in(bucket) == ["running"]
    assert await second.take_over(older_than=_LATER)
    await first.let_go()  # nor is this one any more
    assert await names_in(bucket) == ["running"]
    await second.let_go()
    assert await names_in(bucket) == []
    await first.renew()
    assert not await second.take()
    await first.let_go()
    assert await second.take()


# -- a store that does not say what it has done


@pytest.fixture
async def failing(
    place_of: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FailingStore, ObjectSink, Place]]:
    place = place_of("moto")
    assert place.endpoint is not None
    async with failing_store(place.endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        async with place.sink(stall_seconds=1) as sink:
            yield store, sink, place


def claims(call: Call) -> bool:
    return call.kind == "puts" and call.path.endswith("/running")


async def test_a_claim_of_which_nobody_was_told_is_ones_own_and_nobody_elses(
    failing: tuple[FailingStore, ObjectSink, Place],
) -> None:
    store, sink, place = failing
    broken = 0

    def fails(call: Call) -> str | None:
        nonlocal broken
        broken += claims(call)
        return "cut after" if claims(call) and broken == 1 else None

    store.fails = fails
    async with sink.open(_CHOSEN):
        assert broken == 2  # the client has asked again, and was told that it is there
        assert not sink._bucket.makes_once
        with pytest.raises(Conflict):
            async with sink.open(_CHOSEN):
                pass
    await sink.cleaned_up()
    assert [name for name in place.left() if not name.startswith(".sweeps/")] == []


async def test_a_claim_of_which_nobody_is_ever_told_is_not_left(
    failing: tuple[FailingStore, ObjectSink, Place],
) -> None:
    store, sink, place = failing
    store.fails = lambda call: "cut after" if claims(call) else 500 if call.kind == "reads" else None
    with pytest.raises(SinkFault):
        async with sink.open(_CHOSEN):
            pass
    await sink.cleaned_up()
    assert f"{_ID}/running" in place.left()
    store.fails = lambda call: None
    async with asyncio.timeout(30):
        while f"{_ID}/running" in await asyncio.to_thread(place.left):  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.1)
    await kept(sink, b"again")


@pytest.mark.parametrize("knows", [False, True])
async def test_a_store_that_makes_an_object_whether_there_is_one_or_not_gives_no_id_to_clients(
    knows: bool, failing: tuple[FailingStore, ObjectSink, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known to do so, or it overlooks what it is asked."""
    store, _, place = failing
    if knows:
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    else:
        store.overlooks = "If-None-Match"
    assert "X-Upload-ID is refused: the store of sink bucket cannot tell" in await probe(place.sink())
    async with place.sink() as sink:
        with pytest.raises(SinkRefused, match="cannot tell whose"):
            async with sink.open(_CHOSEN):
                pass
        async with delivering(sink, Upload(_ID, "/upload")) as delivery:  # one whose id we chose
            await delivery.accept(file(0), source(b"x"))
            delivery.keep_manifest(b"{}")
            await delivery.commit()
        assert await remove_kept(sink, _ID)
        assert await names_in(sink._bucket) == []
    assert "X-Upload-ID" not in await probe(in_memory().sink())


# -- who removes, and who comes with the same id


async def test_a_sweep_leaves_alone_what_came_after_it_had_looked(bucket: InterruptedBucket) -> None:
    await put(bucket, "0", "manifest.json")
    await asyncio.sleep(2.1)  # so that a store's seconds tell them apart

    async def another_one_comes() -> None:
        await bucket.delete([f"{_ID}/0", f"{_ID}/manifest.json"])
        await put(bucket, "0", "1", "manifest.json")

    bucket.after_listing = another_one_comes
    assert await sweep(bucket, published_before=_LATER / 2) == 0
    assert await names_in(bucket) == ["0", "1", "manifest.json"]


@pytest.mark.parametrize("was_published", [True, False])
async def test_a_sweep_leaves_alone_what_has_become_somebodys(was_published: bool, bucket: InterruptedBucket) -> None:
    await put(bucket, *["0", "manifest.json"][: 1 + was_published])
    await asyncio.sleep(2.1)  # as above
    before = time.time() - 1
    claim = Claim(bucket, _ID)

    async def somebody_claims_it() -> None:
        assert await claim.take()

    bucket.after_listing = somebody_claims_it
    assert await sweep(bucket, **{"published_before" if was_published else "touched_before": before}) == 0
    assert await names_in(bucket) == ["0", *["manifest.json"][:was_published], "running"]
    await claim.let_go()
    assert await sweep(bucket, **{"published_before" if was_published else "touched_before": before}) == 1
    assert await names_in(bucket) == []


async def test_who_comes_while_his_id_is_being_removed_is_refused_and_loses_nothing(
    bucket: InterruptedBucket,
) -> None:
    await put(bucket, "0", "manifest.json")
    refused = []

    async def somebody_comes() -> None:
        refused.append(not await Claim(bucket, _ID).take())

    bucket.before_removing = somebody_comes
    assert await sweep(bucket, published_before=_LATER / 2) == 1
    assert refused == [True]
    assert await names_in(bucket) == []


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_of_two_that_remove_one_upload_one_does_and_meanwhile_nobody_uploads_it(
    kind: str, place_of: Callable[[str], Place]
) -> None:
    async with place_of(kind).sink() as sink:
        await kept(sink, b"one")
        async with sink.removal(_ID) as removal:
            assert removal is not None
            with pytest.raises(Conflict):
                await remove_kept(sink, _ID)
            await removal.remove()
            with pytest.raises(Conflict):
                await kept(sink, b"two")
        assert await names_in(sink._bucket) == []
        await kept(sink, b"two")
        async with sink.removal(_ID):
            pass  # he thinks better of it
        assert await kept_manifest(sink, _ID) == b"two"
        assert await names_in(sink._bucket) == ["0", "manifest.json"]


async def test_who_gives_up_on_removing_has_removed_all_the_same_before_others_come(bucket: InterruptedBucket) -> None:
    await put(bucket, "0", "manifest.json")
    removing = asyncio.Event()

    async def is_slow() -> None:
        removing.set()
        await asyncio.sleep(0.2)

    async def removes() -> None:
        async with claimed(bucket, _ID) as calls:
            assert calls is not None
            await calls.finish(bucket.delete([f"{_ID}/0", f"{_ID}/manifest.json"]))

    bucket.before_removing = is_slow
    async with asyncio.TaskGroup() as group:
        task = group.create_task(removes())
        await removing.wait()
        task.cancel()
    assert await names_in(bucket) == []
