"""A body in a file without a name."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.concurrency.threads import DaemonThreads
from gateway.sinks.relay.sending.spool import BATCH_BYTES, Region, Spool
from tests.support.clients import random_bytes


@pytest.fixture
def executor() -> Iterator[DaemonThreads]:
    with DaemonThreads(2, name="spool") as executor:
        yield executor


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def content(spool: Spool | Region) -> bytes:
    read = b""
    while len(read) < spool.size:
        read += await spool.read(len(read))
    return read


async def test_what_was_written_can_be_read_as_often_as_need_be(tmp_path: Path, executor: DaemonThreads) -> None:
    spool, data = Spool(str(tmp_path), executor), random_bytes(3 * BATCH_BYTES + 17)
    for start in range(0, len(data), 100_000):
        await spool.write(data[start : start + 100_000])
    await spool.flush()
    assert spool.size == len(data)
    assert await content(spool) == data
    assert await content(spool) == data
    await spool.close()


async def test_the_file_has_no_name_and_its_descriptor_is_closed(tmp_path: Path, executor: DaemonThreads) -> None:
    spool, before = Spool(str(tmp_path), executor), open_files()
    await spool.write(b"x" * BATCH_BYTES)
    assert open_files() == before + 1
    assert list(tmp_path.iterdir()) == []
    await spool.close()
    assert open_files() == before


async def test_where_nameless_files_do_not_exist_the_name_is_removed_at_once(
    tmp_path: Path, executor: DaemonThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    spool = Spool(str(tmp_path), executor)
    await spool.write(b"x" * BATCH_BYTES)
    assert list(tmp_path.iterdir()) == []
    assert await content(spool) == b"x" * BATCH_BYTES
    await spool.close()


async def test_nothing_needs_no_file(tmp_path: Path, executor: DaemonThreads) -> None:
    spool, before = Spool(str(tmp_path), executor), open_files()
    await spool.flush()
    assert (spool.size, await spool.read(0), open_files()) == (0, b"", before)
    await spool.close()


async def test_closing_waits_for_the_job_that_writes(tmp_path: Path, executor: DaemonThreads) -> None:
    """Else it would write into a descriptor that may be somebody else's by then."""
    before = open_files()
    for _ in range(20):
        spool = Spool(str(tmp_path), executor)
        writing = asyncio.get_running_loop().create_future()

        async def write(spool: Spool = spool, writing: asyncio.Future[None] = writing) -> None:
            writing.set_result(None)
            await spool.write(b"x" * (8 << 20))

        async with asyncio.TaskGroup() as group:
            task = group.create_task(write())
            await writing
            await asyncio.sleep(0.001)
            task.cancel()
        await spool.close()
        assert open_files() == before


async def test_a_directory_that_is_not_there_is_the_systems_error(tmp_path: Path, executor: DaemonThreads) -> None:
    spool = Spool(str(tmp_path / "nowhere"), executor)
    with pytest.raises(FileNotFoundError):
        await spool.write(b"x" * BATCH_BYTES)
    await spool.close()


async def test_a_file_that_may_not_grow_is_the_systems_error(tmp_path: Path, executor: DaemonThreads) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BATCH_BYTES // 2, hard))
    try:
        spool = Spool(str(tmp_path), executor)
        with pytest.raises(OSError, match="too large"):
            await spool.write(b"x" * BATCH_BYTES)
        await spool.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- several bodies in one file


async def test_several_bodies_lie_in_one_file_whoever_writes_when(tmp_path: Path, executor: DaemonThreads) -> None:
    spool, before = Spool(str(tmp_path), executor), open_files()
    bodies = [random_bytes(size) for size in (3 * BATCH_BYTES + 5, 0, 1, 100_000, 2 * BATCH_BYTES)]
    regions = [Region(spool) for _ in bodies]

    async def write(region: Region, body: bytes) -> None:
        for start in range(0, len(body), 70_000):
            await region.write(body[start : start + 70_000])
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for region, body in zip(regions, bodies, strict=True):
            group.create_task(write(region, body))
    await spool.flush()
    assert open_files() == before + 1
    for region, body in zip(regions, bodies, strict=True):
        assert region.size == len(body)
        assert await content(region) == body
        assert await content(region) == body
    await spool.close()
    assert open_files() == before


async def test_a_body_that_comes_alone_is_one_piece(tmp_path: Path, executor: DaemonThreads) -> None:
    spool = Spool(str(tmp_path), executor)
    for _ in range(2):
        region = Region(spool)
        for _ in range(100):
            await region.write(b"x" * 20_000)
        assert len(region._places) == 1
    await spool.close()


async def test_what_is_ahead_of_a_body_is_read_first(tmp_path: Path, executor: DaemonThreads) -> None:
    spool = Spool(str(tmp_path), executor)
    region, empty = Region(spool), Region(spool)
    await region.write(b"body")
    await region.flush()
    for ahead in ([], [b""], [b"a", b"", b"b" * 5000, b"c"]):
        region.put_ahead(ahead)
        empty.put_ahead(ahead)
        assert region.size == len(b"".join(ahead)) + 4
        assert await content(region) == b"".join(ahead) + b"body"
        assert await content(empty) == b"".join(ahead)
    await spool.close()


async def test_what_somebody_gave_up_waiting_for_is_written_for_the_others(
    tmp_path: Path, executor: DaemonThreads
) -> None:
    for _ in range(20):
        spool = Spool(str(tmp_path), executor)
        kept, dropped, data = Region(spool), Region(spool), random_bytes(BATCH_BYTES // 2)
        await kept.write(data)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(dropped.write(bytes(8 * BATCH_BYTES)))
            await asyncio.sleep(0)
            task.cancel()
        await kept.write(b"more")
        await spool.flush()
        assert await content(kept) == data + b"more"
        await spool.close()


async def test_an_error_is_told_to_all_whose_bytes_may_be_missing(tmp_path: Path, executor: DaemonThreads) -> None:
    spool = Spool(str(tmp_path / "nowhere"), executor)
    one, other = Region(spool), Region(spool)
    await one.write(b"x")
    with pytest.raises(FileNotFoundError):
        await other.write(b"x" * BATCH_BYTES)
    with pytest.raises(FileNotFoundError):
        await one.flush()
    await spool.close()
