"""Uploads whose time is over: which ones a sweep removes, when it runs, and what it leaves alone."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import Conflict
from gateway.model import Part, Upload
from gateway.sinks.disk import sink as disk_module
from gateway.sinks.disk import upload_directory as shelf
from gateway.sinks.disk.layout import lock_directory
from gateway.sinks.disk.sink import DiskSink
from gateway.sinks.disk.upload_directory import remove_expired
from gateway.sinks.disk.volume import Volume
from tests.support.stores import remove_kept

_SECONDS = 60
_NEVER = threading.Event()


def ulid(number: int) -> str:
    return f"01JD{number:022d}"


def disk(root: Path, keep_seconds: float = 0) -> DiskSink:
    return DiskSink(name="disk", root=str(root), fsync=False, keep_seconds=keep_seconds)


def put(root: Path, number: int, *, age_seconds: float, manifest: bool = True) -> Path:
    """An upload that was published so long ago."""
    path = root / ulid(number)
    path.mkdir(parents=True)
    (path / "0").write_bytes(b"data")
    then = time.time() - age_seconds
    if manifest:
        (path / "manifest.json").write_bytes(b"{}")
        os.utime(path / "manifest.json", (then, then))
    else:
        os.utime(path, (then, then))
    return path


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(0.05)


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("keep_seconds", "period"), [(1, 1), (4, 1), (60, 15), (240, 60), (86400, 60)])
def test_a_sweep_comes_four_times_in_the_time_and_at_least_once_a_minute(keep_seconds: float, period: float) -> None:
    assert disk(Path("unused"), keep_seconds).sweep_seconds == period


async def test_a_start_removes_what_is_older_and_only_that(tmp_path: Path) -> None:
    old = put(tmp_path, 1, age_seconds=1000)
    old_without = put(tmp_path, 2, age_seconds=1000, manifest=False)
    new = put(tmp_path, 3, age_seconds=10)
    new_without = put(tmp_path, 4, age_seconds=10, manifest=False)
    async with disk(tmp_path, 100):
        assert sorted(tmp_path.iterdir()) == [new, new_without]
    assert not old.exists()
    assert not old_without.exists()


async def test_zero_keeps_for_ever(tmp_path: Path) -> None:
    path = put(tmp_path, 1, age_seconds=10**9)
    async with disk(tmp_path) as sink:
        assert sink._timer is None
    assert path.exists()


async def test_only_what_is_named_like_an_upload_expires(tmp_path: Path) -> None:
    names = ["lost+found", "backup", ulid(1).lower(), ulid(1) + "0", "8" + ulid(1)[1:], f".{ulid(1)}"]
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ulid(2)).write_bytes(b"a file")
    os.utime(tmp_path / ulid(2), (0, 0))
    async with disk(tmp_path, 1):
        assert sorted(os.listdir(tmp_path)) == sorted([*names, ulid(2)])


async def test_sweeps_go_on_while_the_sink_is_open(tmp_path: Path) -> None:
    async with disk(tmp_path, 1) as sink:
        for number in (1, 2):
            async with sink.open(Upload(ulid(number), "/upload")) as delivery:
                await delivery.accept_all([(Part(0, b"file", b"a.bin", None), b"data")])
                delivery.keep_manifest(b"{}")
                await delivery.commit()
            assert (tmp_path / ulid(number)).exists()
            await until(lambda: not os.listdir(tmp_path))
    await asyncio.sleep(0)


async def test_the_age_counts_from_the_end_of_the_upload(tmp_path: Path) -> None:
    """A disk that does not keep the manifest has only the directory to tell by."""
    async with disk(tmp_path) as sink:
        async with sink.open(Upload(ulid(1), "/upload")) as delivery:
            await delivery.accept_all([(Part(0, b"file", b"a.bin", None), b"data")])
            os.utime(tmp_path / f".{ulid(1)}.incoming", (0, 0))
            await delivery.commit()
        assert remove_expired(Volume("disk", tmp_path, fsync=False, threads=1), 1000, _NEVER) == 0
    assert (tmp_path / ulid(1) / "0").exists()


async def test_what_is_being_read_expires_and_is_read_to_its_end(tmp_path: Path) -> None:
    path = put(tmp_path, 1, age_seconds=0)
    async with disk(tmp_path, 1) as sink, sink.opened(ulid(1)) as upload:
        assert upload is not None
        manifest = await upload.manifest()
        assert manifest is not None
        await until(lambda: not path.exists())
        assert await manifest.read(100, 0) == b"{}"
        assert await upload.open(0) is None
        async with sink.opened(ulid(1)) as gone:
            assert gone is None


@pytest.mark.sockets
async def test_a_lock_of_another_process_is_respected_until_that_dies(tmp_path: Path) -> None:
    path = put(tmp_path, 1, age_seconds=10)
    program = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        async with disk(tmp_path, 1) as sink:
            assert path.exists()
            with pytest.raises(Conflict):
                await remove_kept(sink, ulid(1))
            other.kill()
            await until(lambda: not path.exists())


async def test_a_removal_that_is_cancelled_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1, age_seconds=0)
    taking, take = threading.Event(), lock_directory

    def slow(path: Path) -> int | None:
        taking.set()
        time.sleep(0.2)
        return take(path)

    async with disk(tmp_path) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "lock_directory", slow)

            async def remove() -> None:
                async with sink.removal(ulid(1)):
                    pytest.fail("it was cancelled before")

            async with asyncio.TaskGroup() as group:
                removing = group.create_task(remove())
                await asyncio.to_thread(taking.wait, 10)
                removing.cancel()
        assert await remove_kept(sink, ulid(1))


async def test_one_of_two_removals_is_refused_and_one_that_does_nothing_leaves_all_as_it_is(tmp_path: Path) -> None:
    path = put(tmp_path, 1, age_seconds=0)
    async with disk(tmp_path) as sink:
        async with sink.removal(ulid(1)):
            with pytest.raises(Conflict):
                await remove_kept(sink, ulid(1))
        assert path.exists()
        assert await remove_kept(sink, ulid(1))
        assert not await remove_kept(sink, ulid(1))


async def test_a_published_upload_can_be_read_before_its_own_upload_is_done(tmp_path: Path) -> None:
    async with disk(tmp_path) as sink:
        async with sink.open(Upload(ulid(1), "/upload")) as delivery:
            await delivery.accept_all([(Part(0, b"file", b"a.bin", None), b"data")])
            await delivery.commit()
            async with sink.opened(ulid(1)) as upload:
                assert upload is not None
            with pytest.raises(Conflict):
                await remove_kept(sink, ulid(1))
        assert await remove_kept(sink, ulid(1))


# -- when things go wrong


async def test_a_sweep_that_fails_is_told_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[float] = []

    def failing_once(volume: Volume, keep_seconds: float, stopped: threading.Event) -> int:
        calls.append(time.monotonic())
        if len(calls) == 2:
            raise OSError("the disk is broken")
        return 0

    monkeypatch.setattr(disk_module, "remove_expired", failing_once)
    async with disk(tmp_path, 1):
        await until(lambda: len(calls) >= 3)
    assert "the disk is broken" in caplog.text
    after = len(calls)
    await asyncio.sleep(1.2)
    assert len(calls) == after, "it was swept after its end"


async def test_an_upload_that_cannot_be_removed_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [put(tmp_path, number, age_seconds=10) for number in range(3)]
    rename = os.rename

    def stuck(source: Path, target: Path) -> None:
        if source == paths[1]:
            raise PermissionError("it is not yours")
        rename(source, target)

    monkeypatch.setattr("gateway.sinks.disk.volume.os.rename", stuck)
    async with disk(tmp_path, 1):
        assert [path.exists() for path in paths] == [False, True, False]
    assert re.search(f"{ulid(1)} cannot be removed", caplog.text)


async def test_a_stop_does_not_wait_for_all_that_is_left_to_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree, sweeping = shutil.rmtree, threading.Event()

    def slow(path: Path, ignore_errors: bool = False) -> None:
        sweeping.set()
        time.sleep(0.2)
        rmtree(path, ignore_errors=ignore_errors)

    async with disk(tmp_path, 1):
        monkeypatch.setattr("gateway.sinks.disk.volume.shutil.rmtree", slow)
        for number in range(100):
            put(tmp_path, number, age_seconds=10)
        await asyncio.to_thread(sweeping.wait, _SECONDS)
    assert len(os.listdir(tmp_path)) > 50


async def test_what_a_crash_left_is_removed_at_the_start_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in (f".{ulid(1)}.incoming", f".{ulid(2)}.deleted", f".{ulid(3)}.incoming"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_bytes(b"data")
    kept = put(tmp_path, 4, age_seconds=0)
    with locked(tmp_path / f".{ulid(3)}.incoming", fcntl.LOCK_EX):
        async with disk(tmp_path, 1000):
            assert sorted(os.listdir(tmp_path)) == [f".{ulid(3)}.incoming", kept.name]
    assert caplog.records == []
