"""A body in a file without a name."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.sinks.spool import BATCH_BYTES, Spool
from tests.clients import random_bytes


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def content(spool: Spool) -> bytes:
    read = b""
    while len(read) < spool.size:
        read += await spool.read(len(read))
    return read


async def test_what_was_written_can_be_read_as_often_as_need_be(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    spool, data = Spool(str(tmp_path), executor), random_bytes(3 * BATCH_BYTES + 17)
    for start in range(0, len(data), 100_000):
        await spool.write(data[start : start + 100_000])
    await spool.flush()
    assert spool.size == len(data)
    assert await content(spool) == data
    assert await content(spool) == data
    await spool.close()


async def test_the_file_has_no_name_and_its_descriptor_is_closed(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    spool, before = Spool(str(tmp_path), executor), open_files()
    await spool.write(b"x" * BATCH_BYTES)
    assert open_files() == before + 1
    assert list(tmp_path.iterdir()) == []
    await spool.close()
    assert open_files() == before


async def test_where_nameless_files_do_not_exist_the_name_is_removed_at_once(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    spool = Spool(str(tmp_path), executor)
    await spool.write(b"x" * BATCH_BYTES)
    assert list(tmp_path.iterdir()) == []
    assert await content(spool) == b"x" * BATCH_BYTES
    await spool.close()


async def test_nothing_needs_no_file(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    spool, before = Spool(str(tmp_path), executor), open_files()
    await spool.flush()
    assert (spool.size, await spool.read(0), open_files()) == (0, b"", before)
    await spool.close()


async def test_closing_waits_for_the_job_that_writes(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
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


async def test_a_directory_that_is_not_there_is_the_systems_error(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    spool = Spool(str(tmp_path / "nowhere"), executor)
    with pytest.raises(FileNotFoundError):
        await spool.write(b"x" * BATCH_BYTES)
    await spool.close()


async def test_a_file_that_may_not_grow_is_the_systems_error(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BATCH_BYTES // 2, hard))
    try:
        spool = Spool(str(tmp_path), executor)
        with pytest.raises(OSError, match="too large"):
            await spool.write(b"x" * BATCH_BYTES)
        await spool.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
