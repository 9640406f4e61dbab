"""What is in object storage, given back and removed: the contract of stores, on each of them; and redirects."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession

from gateway.errors import SinkRefused
from gateway.manifest import ManifestText
from gateway.model import Entry, Manifest, Upload
from gateway.sinks.objects.sink import ObjectSink
from gateway.sinks.objects.sweep import sweep
from gateway.sinks.store import Store
from tests.conftest import StartGateway
from tests.contract import answer_of, file, form, source
from tests.sinks.objects.conftest import EVERYWHERE, OVER_SOCKETS
from tests.store_contract import StoreContract, StoreSubject
from tests.support.buckets import Place
from tests.support.failing_store import failing_store
from tests.support.stores import kept_manifest, remove_kept

pytestmark = pytest.mark.sockets


class TestContract(StoreContract):
    @pytest.fixture(params=EVERYWHERE)
    def subject(self, request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> StoreSubject:
        place = place_of(request.param)

        async def left(store: Store) -> list[str]:
            """What somebody else sees, where there is somebody else."""
            assert isinstance(store, ObjectSink)
            own = [one.key async for one in store._bucket.listed()]
            names = own if place.endpoint is None else place.left()
            return [name for name in names if not name.startswith(".sweeps/")]

        return StoreSubject({**place.settings, "part_bytes": 5 << 20}, left)


@pytest.mark.parametrize("kind", OVER_SOCKETS)
async def test_whoever_reads_a_file_is_sent_to_the_store_for_a_while(
    kind: str, place_of: Callable[[str], Place], start_gateway: StartGateway
) -> None:
    place_there = place_of(kind)
    settings = {**place_there.settings, "redirect": True, "redirect_seconds": 60}
    gateway = await start_gateway(sinks={"kept": settings}, routes=[{"path": "/in", "parts": [{"sinks": ["kept"]}]}])
    async with ClientSession() as session:
        _, manifest = await answer_of(
            session, f"{gateway.url}/in", form((b"file", "ä %22b%22.txt".encode(), b"0123456789"))
        )
        place = gateway.url + manifest["parts"][0]["receipts"][0]["location"]
        key = f"{place_there.prefix}/{manifest['upload']}/0"
        found = place_there.client().head_object(Bucket=place_there.url.removeprefix("s3://"), Key=key)
        assert (found["ContentType"], found["Metadata"]) == ("application/octet-stream", {"upload": manifest["upload"]})
        async with session.get(place, allow_redirects=False) as answer:
            assert answer.status == 307
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert "X-Amz-Expires=60" in urlsplit(answer.headers["Location"]).query
        async with session.get(place) as answer:
            assert (answer.status, await answer.read()) == (200, b"0123456789")
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Disposition"].endswith("filename*=UTF-8''%C3%A4%20%22b%22.txt")
        async with session.get(place, headers={"Range": "bytes=2-4"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"234")
        async with session.head(place, allow_redirects=True) as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, "10")
        async with session.get(place, headers={"If-None-Match": f'"{manifest["parts"][0]["sha256"]}"'}) as answer:
            assert answer.status == 304


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("how_many", [0, 1, 2])
async def test_of_an_upload_that_is_removed_meanwhile_no_archive_looks_whole(
    how_many: int, kind: str, place_of: Callable[[str], Place], start_gateway: StartGateway
) -> None:
    """It has its manifest, and is listed when so many of its files are left."""
    gateway = await start_gateway(
        sinks={"kept": place_of(kind).settings}, routes=[{"path": "/in", "parts": [{"sinks": ["kept"]}]}]
    )
    sink = gateway.services.sinks["kept"]
    assert isinstance(sink, ObjectSink)
    async with ClientSession(gateway.url) as session:
        _, manifest = await answer_of(session, "/in", form(*[(b"file", b"a", b"%d" % index) for index in range(3)]))
        await sink._bucket.delete([f"{manifest['upload']}/{index}" for index in range(how_many, 3)])
        async with session.get(f"/uploads/{manifest['upload']}/archive.zip") as answer:
            assert answer.status == 404


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_what_is_stored_is_counted_for_whom_it_belongs_to_until_it_is_removed(
    kind: str, place_of: Callable[[str], Place]
) -> None:
    def manifest(owner: str, size: int) -> bytes:
        entry = Entry(file(0), size)
        return ManifestText(Manifest(ulids[0], [entry], owner), sinks=["bucket"], limit=0).finish()

    ulids = [f"01JD{number:022d}" for number in range(3)]
    async with place_of(kind).sink(counts_owners=True) as sink:
        for upload_id, owner in zip(ulids, ("key:ci", "key:ci", "jwt:ä"), strict=True):
            async with sink.open(Upload(upload_id, "/in", identity=owner)) as delivery:
                await delivery.accept(file(0), source(b"x" * 10))
                delivery.keep_manifest(manifest(owner, 10))
                await delivery.commit()
        assert [await sink.stored_bytes(owner) for owner in ("key:ci", "jwt:ä", "key:x")] == [20, 10, 0]
        assert await remove_kept(sink, ulids[0])
        assert await sink.stored_bytes("key:ci") == 10
        assert await sweep(sink._bucket, published_before=time.time() + 60) == 2
        assert [one.key async for one in sink._bucket.listed() if not one.key.startswith(".sweeps/")] == []


@pytest.mark.parametrize("by_sweep", [False, True])
@pytest.mark.parametrize("fails_at", range(5))
async def test_what_is_removed_by_half_counts_for_nobody_any_more(
    fails_at: int, by_sweep: bool, place_of: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would for ever: only its manifest says whose it was."""
    place = place_of("moto")
    assert place.endpoint is not None
    upload_id, owner = "01JD0000000000000000000001", "key:ci"
    text = ManifestText(Manifest(upload_id, [Entry(file(0), 10)], owner), sinks=["bucket"], limit=0).finish()
    async with failing_store(place.endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        async with place.sink(counts_owners=True) as sink:
            async with sink.open(Upload(upload_id, "/in", identity=owner)) as delivery:
                await delivery.accept(file(0), source(b"x" * 10))
                delivery.keep_manifest(text)
                await delivery.commit()
            assert await sink.stored_bytes(owner) == 10
            begun = sum(call.kind == "deletes" for call in store.calls)
            store.fails = lambda call: 403 if call.kind == "deletes" and call.number >= begun + fails_at else None
            if by_sweep:
                await sweep(sink._bucket, published_before=time.time() + 60)
            else:
                with suppress(SinkRefused):
                    await remove_kept(sink, upload_id)
            store.fails = lambda call: None
            counted = await sink.stored_bytes(owner)
            assert (counted, await kept_manifest(sink, upload_id)) in ((10, text), (0, text), (0, None))
            assert (counted == 0) == (fails_at > 0)
