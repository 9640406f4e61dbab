"""Uploads in object storage: the contract of sinks, on each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from gateway.errors import Conflict
from gateway.model import Upload
from gateway.sinks import Delivery
from gateway.sinks.objects.sink import ObjectSink
from tests.contract import SinkContract, Subject, delivering, file, sha256, source
from tests.sinks.objects.conftest import EVERYWHERE
from tests.support.buckets import Place

pytestmark = pytest.mark.sockets


async def names(sink: ObjectSink) -> list[str]:
    """Of all objects under its prefix, but for those of sweeps."""
    return [one.key async for one in sink._bucket.listed() if not one.key.startswith(".sweeps/")]


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_an_id_that_clients_chose_is_one_uploads_at_a_time_and_nobodys_after_it(
    kind: str, place_of: Callable[[str], Place]
) -> None:
    """Whichever replica they come to: here one of both sinks, which share a store."""
    place = place_of(kind)
    one = Upload("01JD0000000000000000000001", "/upload", id_chosen=True)
    async with place.sink() as first, AsyncExitStack() as stack:
        other = first if kind == "memory" else await stack.enter_async_context(place.sink())
        async with delivering(first, one) as delivery:
            await delivery.accept(file(0), source(b"dropped"))
            with pytest.raises(Conflict):
                async with delivering(other, one):
                    pass
            assert await names(first) == [f"{one.id}/0", f"{one.id}/running"]
        assert await names(first) == []
        async with delivering(other, one) as delivery:
            await delivery.accept(file(0), source(b"kept"))
            delivery.keep_manifest(b"{}")
            await delivery.commit()
        with pytest.raises(Conflict):
            async with delivering(first, one):
                pass
        assert await names(first) == [f"{one.id}/0", f"{one.id}/manifest.json"]


class TestContract(SinkContract):
    @pytest.fixture(params=EVERYWHERE)
    async def subject(self, request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> AsyncIterator[Subject]:
        place = place_of(request.param)
        async with place.sink(part_bytes=5 << 20) as sink:

            async def visible() -> int:
                """Uploads with a manifest. What has none, and is not of one that runs, should not be there."""
                keys = await names(sink)
                uploads = {key.partition("/")[0] for key in keys}
                published = {one for one in uploads if f"{one}/manifest.json" in keys}
                assert uploads - published <= {delivery.upload_id for delivery in sink._open}
                return len(published)

            async def digests(upload: Upload, _: Delivery) -> list[str]:
                async with sink.opened(upload.id) as kept:
                    assert kept is not None
                    found = []
                    for index in sorted(await kept.indexes()):
                        stored = await kept.open(index)
                        assert stored is not None
                        found.append(sha256(b"".join([piece async for piece in stored.pieces(0, stored.size)])))
                    return found

            yield Subject(sink, visible, digests)
            if place.endpoint is not None:
                assert [key for key in place.left() if key.startswith("open:")] == []
