"""Whether sinks can be used: what `gateway check --probe` finds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from gateway.errors import SinkRefused, SinkUnavailable
from gateway.model import Upload
from gateway.server.probing import probe
from gateway.sinks.discard import DiscardSink
from gateway.sinks.disk import DiskSink
from gateway.sinks.store import Store
from tests.contract import file, source
from tests.support.buckets import in_directory, in_memory, moto_place
from tests.support.doubles import MemoryStore
from tests.support.failing_store import failing_store
from tests.test_cli import gateway

pytestmark = pytest.mark.sockets


async def test_a_store_writes_reads_and_removes_and_nothing_of_it_stays(tmp_path: Path) -> None:
    found = "32 bytes were written, read and removed"
    assert await probe(DiskSink(name="disk", root=str(tmp_path / "disk"))) == found
    assert os.listdir(tmp_path / "disk") == []
    assert await probe(DiscardSink(name="none")) == "it opens"
    store = MemoryStore()
    assert await probe(store) == found
    assert store.kept == {}


async def test_of_a_bucket_it_says_what_a_rule_of_its_own_has_to_see_to(tmp_path: Path) -> None:
    for place in (in_memory(), in_directory(tmp_path / "objects")):
        assert "AbortIncompleteMultipartUpload" in await probe(place.sink())
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


async def _kept(store: Store) -> None:
    async with store, store.open(Upload("01JD0000000000000000000001", "/")) as delivery:
        await delivery.accept(file(0), source(b"x"))
        delivery.keep_manifest(b"{}")
        await delivery.commit()


async def test_no_upload_expires_by_it_and_no_turn_to_sweep_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_place() as place:
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        await _kept(place.sink())
        await _kept(DiskSink(name="disk", root=str(tmp_path)))
        for key in [name for name in place.left() if name.startswith(".sweeps/")]:
            place.client().delete_object(Bucket="uploads", Key=f"{place.prefix}/{key}")
        os.utime(tmp_path / "01JD0000000000000000000001", (1, 1))
        os.utime(tmp_path / "01JD0000000000000000000001" / "manifest.json", (1, 1))
        before = place.left()
        await asyncio.sleep(1.5)
        for _ in range(2):
            await probe(place.sink(keep_seconds=1))
            await probe(DiskSink(name="disk", root=str(tmp_path), keep_seconds=1))
        assert place.left() == before
        assert before == [f"01JD0000000000000000000001/{name}" for name in ("0", "manifest.json")]
        assert os.listdir(tmp_path) == ["01JD0000000000000000000001"]


async def test_a_store_that_refuses_or_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_place() as place:
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        assert place.endpoint is not None
        async with failing_store(place.endpoint) as store:
            monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
            store.fails = lambda call: 403 if call.kind == "manifest" else None
            with pytest.raises(SinkRefused, match="may not do that: the store refused with 403 AccessDenied"):
                await probe(place.sink())
            store.fails = lambda call: 500 if call.kind == "reads" and call.number < 6 else None
            with pytest.raises(SinkUnavailable):
                await probe(place.sink())
        assert place.left() == []


@pytest.mark.parametrize("exists", [True, False])
def test_the_command_says_what_it_found_and_exits_with_1_where_a_sink_cannot_be_used(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with moto_place() as place:
        bucket = place.url if exists else "s3://nobodys-bucket"
        Path("my.toml").write_text(f'[sinks.bucket]\ntype = "objects"\nurl = "{bucket}"\n')
        done = gateway("check", "--config", "my.toml", "--probe", env=place.environment)
        lines = {
            name: rest for line in done.stdout.splitlines() for name, colon, rest in [line.partition(": ")] if colon
        }
        assert lines["probe of disk"] == "32 bytes were written, read and removed"
        assert lines["probe of none"] == lines["probe of api"] == "it opens"
        if exists:
            assert done.returncode == 0
            assert "AbortIncompleteMultipartUpload" in lines["probe of bucket"]
        else:
            assert done.returncode == 1
            assert "404 NoSuchBucket" in lines["probe of bucket"]
