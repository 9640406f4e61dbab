"""The calls to a store: what is read is what was found, and what an error of the client's says of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.errors import SinkFault, SinkFull, SinkRefused, SinkUnavailable
from gateway.sinks.objects.bucket import Bucket
from tests.sinks.objects.conftest import EVERYWHERE
from tests.support.buckets import Place
from tests.support.failing_store import failing_store

pytestmark = pytest.mark.sockets


@pytest.fixture(params=EVERYWHERE)
async def bucket(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Bucket:
    place = place_of(request.param)
    return Bucket("bucket", place.url, place.prefix, stall_seconds=30)


async def test_of_an_object_that_is_another_one_now_no_byte_is_read(bucket: Bucket) -> None:
    await bucket.put("x/0", b"the first")
    (listed,) = [one async for one in bucket.listed()]
    found = await bucket.head("x/0")
    assert found is not None
    for one in (found, listed):
        assert b"".join([piece async for piece in bucket.stream(one, 4, 9, piece_bytes=100)]) == b"first"
        assert b"".join(await asyncio.to_thread(list, bucket.blocking(one, piece_bytes=100))) == b"the first"
    await asyncio.sleep(2.1)  # so that a store's seconds tell what was listed apart; entity tags need none
    await bucket.put("x/0", b"an other!")
    for one in (found, listed):
        with pytest.raises(EOFError, match="another one"):
            await anext(bucket.stream(one, 4, 9, piece_bytes=100))
        with pytest.raises(EOFError, match="another one"):
            await asyncio.to_thread(list, bucket.blocking(one, piece_bytes=100))


async def test_a_large_object_is_itself(bucket: Bucket) -> None:
    """Its entity tag is made in another way."""
    data = bytes(6 << 20)
    async with bucket.writer("x/0", {}, part_bytes=5 << 20) as writer:
        await writer.write(data)
    (listed,) = [one async for one in bucket.listed()]
    found = await bucket.head("x/0")
    assert found is not None
    for one in (found, listed):
        assert b"".join([piece async for piece in bucket.stream(one, 1, len(data), piece_bytes=100)]) == data[1:]
        assert b"".join(await asyncio.to_thread(list, bucket.blocking(one, piece_bytes=1 << 20))) == data


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("status code: 403 Forbidden: <Error><Code>QuotaExceeded</Code></Error>", SinkFull),
        ("status code: 400: <Code>XMinioAdminBucketQuotaExceeded</Code>", SinkFull),
        ("status code: 507: <Code>XMinioStorageFull</Code>", SinkFull),
        ("status code: 413 Request Entity Too Large: Upload exceeds quota.", SinkFull),
        ('status code: 403 Forbidden: {"reason": "quotaExceeded"}', SinkFull),
        ("Unable to copy data to file: No space left on device (os error 28)", SinkFull),
        ("Unable to copy data to file: Disk quota exceeded (os error 122)", SinkFull),
        ("status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>", SinkRefused),
        ("Error performing PUT http://s3/quota/a: status code: 500: <Resource>/quota/a</Resource>", SinkUnavailable),
        ("Error performing PUT http://s3/no%20space%20left/quotaexceeded: status code: 500", SinkUnavailable),
    ],
)
async def test_what_a_store_says_of_being_full_is_told_from_what_it_is_called(text: str, kind: type[SinkFault]) -> None:
    assert type(Bucket("bucket", "memory://", "", stall_seconds=1).fault(OSError(text))) is kind


async def test_a_store_that_is_called_quota_and_fails_is_not_full(
    place_of: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = replace(place_of("moto"), prefix="quota exceeded")
    assert place.endpoint is not None
    async with failing_store(place.endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        bucket = Bucket("bucket", place.url, place.prefix, stall_seconds=1)
        store.fails = lambda call: 500
        with pytest.raises(SinkUnavailable):
            await bucket.put("quota", b"x")
