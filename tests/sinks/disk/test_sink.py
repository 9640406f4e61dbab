"""Uploads on disk: the contract, and what only a disk can get wrong."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from aiohttp import ClientSession

from gateway.errors import SinkFull, SinkUnavailable
from gateway.model import Part, Receipt, Upload
from gateway.sinks import Delivery
from gateway.sinks.disk.delivery import DiskDelivery
from gateway.sinks.disk.file_system import FileSystemSync
from gateway.sinks.disk.jobs import Jobs
from gateway.sinks.disk.sink import DiskSink
from gateway.sinks.store import Store
from tests.conftest import StartGateway
from tests.contract import (
    SinkContract,
    Subject,
    answer_of,
    delivering,
    file,
    form,
    nothing_left_running,
    sha256,
    source,
    upload,
)
from tests.store_contract import StoreContract, StoreSubject
from tests.support.stores import kept_manifest, remove_kept

_LARGE = bytes(range(256)) * 12_001


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[DiskSink]:
    async with DiskSink(name="disk", root=str(tmp_path / "root"), fsync=False) as sink:
        yield sink


def entries(sink: DiskSink) -> list[str]:
    """Whatever lies directly under the root."""
    return sorted(os.listdir(sink.root))


class TestContract(SinkContract):
    @pytest.fixture(params=[True, False], ids=["fsync", "no fsync"])
    async def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
        async with DiskSink(name="disk", root=str(tmp_path / "root"), fsync=request.param) as sink:
            running: set[str] = set()

            async def visible() -> int:
                names = entries(sink)
                temporary = [name for name in names if name.startswith(".")]
                assert len(temporary) <= 1, "an upload left its temporary directory"
                running.update(temporary)
                return len(names) - len(temporary)

            async def digests(upload: Upload, _: Delivery) -> list[str]:
                files = sorted((sink.root / upload.id).iterdir(), key=lambda path: int(path.name))
                return [sha256(path.read_bytes()) for path in files]

            yield Subject(sink, visible, digests)
            assert [name for name in entries(sink) if name.startswith(".")] == []


@pytest.mark.sockets
class TestStoreContract(StoreContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> StoreSubject:
        root = tmp_path / "kept"

        async def left(_: Store) -> list[str]:
            return sorted(str(path.relative_to(root)) for path in root.rglob("*"))

        return StoreSubject({"type": "disk", "root": str(root), "fsync": False}, left)


async def committed(
    sink: DiskSink, *parts: tuple[Part, bytes], manifest: bytes | None = None, one: Upload | None = None
) -> list[Receipt]:
    one = one or upload()
    async with delivering(sink, one) as delivery:
        assert isinstance(delivery, DiskDelivery)
        for part, data in parts:
            await delivery.accept(part, source(data))
        if manifest is not None:
            delivery.keep_manifest(manifest)
        return await delivery.commit()


# -- where things lie


async def test_each_upload_has_a_directory_with_its_files_and_its_manifest(sink: DiskSink) -> None:
    one = upload().id
    await committed(sink, (file(0), b"zero"), (file(3), b"three"), manifest=b'{"upload": "x"}', one=Upload(one, "/"))
    await committed(sink, (file(0), b"other"))
    assert sorted(os.listdir(sink.root / one)) == ["0", "3", "manifest.json"]
    assert (sink.root / one / "3").read_bytes() == b"three"
    assert await kept_manifest(sink, one) == b'{"upload": "x"}'
    assert len(entries(sink)) == 2
    async with sink.opened(one) as kept:
        assert kept is not None
        assert await kept.indexes() == {0, 3}
        assert await kept.open(1) is None


@pytest.mark.parametrize("filename", [b"../../../../tmp/escape", b"..\\..\\escape.txt", b"/etc/passwd", b"..", None])
async def test_the_storage_key_is_ours_whatever_the_file_is_called(sink: DiskSink, filename: bytes | None) -> None:
    receipts = await committed(sink, (file(7, filename), b"data"), manifest=b"{}")
    upload_id = entries(sink)[0]
    assert receipts == [Receipt(7, "disk")]
    assert [str(path.relative_to(sink.root)) for path in sorted(sink.root.rglob("*"))] == [
        upload_id,
        f"{upload_id}/7",
        f"{upload_id}/manifest.json",
    ]
    assert sorted(os.listdir(sink.root.parent)) == ["root"]


async def test_nothing_has_its_final_name_before_the_commit(sink: DiskSink) -> None:
    one = upload()
    async with delivering(sink, one) as delivery:
        await delivery.accept(file(0), source(_LARGE))
        assert entries(sink) == [f".{one.id}.incoming"]
        await delivery.commit()
        assert entries(sink) == [one.id]


async def test_a_directory_that_is_there_is_never_overwritten(sink: DiskSink) -> None:
    one = upload()
    (sink.root / one.id).mkdir()
    (sink.root / one.id / "0").write_bytes(b"older")
    with pytest.raises(SinkUnavailable):
        await committed(sink, (file(0), b"newer"), one=one)
    assert entries(sink) == [one.id]
    assert (sink.root / one.id / "0").read_bytes() == b"older"


async def test_a_deleted_upload_is_gone_with_its_files(sink: DiskSink) -> None:
    await committed(sink, (file(0), b"data"), manifest=b"{}")
    upload_id = entries(sink)[0]
    assert await remove_kept(sink, upload_id) is True
    assert entries(sink) == []
    assert await kept_manifest(sink, upload_id) is None
    assert await remove_kept(sink, upload_id) is False


# -- durability


ALL = "all that there is"


@contextmanager
def recorded_syncs(monkeypatch: pytest.MonkeyPatch, *, has_syncfs: bool) -> Iterator[list[str]]:
    """What was fsynced, by the name that it had then."""
    synced: list[str] = []
    fsync = os.fsync

    def syncing(self: FileSystemSync) -> None:
        if not has_syncfs:
            raise OSError(errno.ENOTSUP, "not here")
        assert os.path.isdir(f"/proc/self/fd/{self.descriptor}")
        os.sync()
        synced.append(ALL)

    def recording(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("gateway.sinks.disk.jobs.os.fsync", recording)
        patch.setattr(FileSystemSync, "__call__", syncing)
        yield synced


async def _two_ways(sink: DiskSink, one: Upload) -> None:
    async with delivering(sink, one) as delivery:
        assert isinstance(delivery, DiskDelivery)
        await delivery.accept(file(0), source(b"streamed"))
        await delivery.accept_all([(file(1), b"whole"), (file(2), b"")])
        delivery.keep_manifest(b"{}")
        await delivery.commit()


@pytest.mark.parametrize("has_syncfs", [False, True])
async def test_files_manifest_directory_and_root_are_synced_before_the_commit_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_syncfs: bool
) -> None:
    one = upload()
    async with DiskSink(name="disk", root=str(tmp_path)) as sink:
        with recorded_syncs(monkeypatch, has_syncfs=has_syncfs) as synced:
            await _two_ways(sink, one)
    incoming = f"{tmp_path}/.{one.id}.incoming"
    assert sorted(synced[:3]) == [f"{incoming}/0", f"{incoming}/1", f"{incoming}/2"]
    last = [ALL] if has_syncfs else [incoming, f"{incoming}/manifest.json"]
    assert sorted(synced[3:-1]) == last, "beside each other"
    assert synced[-1] == str(tmp_path)


async def test_small_uploads_that_wait_at_the_same_time_are_made_durable_by_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DiskSink(name="disk", root=str(tmp_path)) as sink:
        with recorded_syncs(monkeypatch, has_syncfs=True) as synced:
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(_held(sink, upload()))
        assert len(entries(sink)) == 8
    assert synced == [ALL, str(tmp_path)]


async def test_that_call_has_a_descriptor_that_is_older_than_what_is_written_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    used: list[str] = []
    real = os.open

    def recording(path: str, flags: int, *more: Any, **named: Any) -> int:
        opened.append(str(path))
        return real(path, flags, *more, **named)

    def syncing(self: FileSystemSync) -> None:
        used.append(os.readlink(f"/proc/self/fd/{self.descriptor}"))

    monkeypatch.setattr(os, "open", recording)
    monkeypatch.setattr(FileSystemSync, "__call__", syncing)
    async with DiskSink(name="disk", root=str(tmp_path)) as sink, delivering(sink, upload()) as older:
        assert isinstance(older, DiskDelivery)
        await older.accept_all([(file(0), b"fsynced before")])
        older.keep_manifest(b"{}")
        before = len(opened)
        async with asyncio.TaskGroup() as group:
            group.create_task(_held(sink, upload()))
            group.create_task(older.commit())
            group.create_task(_held(sink, upload()))
    (directory,) = used
    written = [path for path in opened[before:] if not path.endswith(".incoming") and path != str(tmp_path)]
    assert len(written) == 3 + 1 + 3
    assert opened.index(directory) < min(before + opened[before:].index(path) for path in written)


async def _held(sink: DiskSink, one: Upload) -> None:
    async with delivering(sink, one) as delivery:
        assert isinstance(delivery, DiskDelivery)
        delivery.hold_batch([(file(0), b"whole"), (file(1), b"")])
        delivery.keep_manifest(b"{}")
        await delivery.commit()


async def test_nothing_is_synced_where_that_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_syncs(monkeypatch, has_syncfs=True) as synced:
        async with DiskSink(name="disk", root=str(tmp_path), fsync=False) as sink:
            await _two_ways(sink, upload())
    assert synced == []


async def test_a_rename_that_cannot_be_made_durable_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path) and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            failed.append(descriptor)
            if len(failed) == 1:
                raise OSError(errno.EIO, "the disk is broken")

    failed: list[int] = []
    async with DiskSink(name="disk", root=str(tmp_path)) as sink:
        monkeypatch.setattr("gateway.sinks.disk.jobs.os.fsync", failing)
        with pytest.raises(SinkUnavailable):
            await committed(sink, (file(0), b"data"))
        assert failed
        assert entries(sink) == []


# -- what a crash leaves behind

_HOLD_A_LOCK = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _HOLD_A_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


@pytest.mark.sockets
async def test_starting_removes_what_nobody_locks_and_nothing_else(tmp_path: Path) -> None:
    for name in (".01DEAD.incoming", ".01ALIVE.incoming", ".01GRAVE.deleted", "01KEPT", ".somebody-elses"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_bytes(b"data")
    (tmp_path / "a-file").write_bytes(b"data")
    (tmp_path / ".a-file.incoming").write_bytes(b"data")
    with locked_by_another_process(tmp_path / ".01ALIVE.incoming") as owner:
        async with DiskSink(name="disk", root=str(tmp_path)) as sink:
            assert entries(sink) == [".01ALIVE.incoming", ".a-file.incoming", ".somebody-elses", "01KEPT", "a-file"]
            assert (tmp_path / ".01ALIVE.incoming" / "0").exists()
        owner.kill()  # the kernel lets go of a dead process's locks
        owner.wait()
        async with DiskSink(name="disk", root=str(tmp_path)) as sink:
            assert ".01ALIVE.incoming" not in entries(sink)
            assert (tmp_path / "01KEPT" / "0").exists()


async def test_starting_twice_on_one_root_leaves_running_uploads_alone(sink: DiskSink) -> None:
    one = upload()
    async with delivering(sink, one) as delivery:
        await delivery.accept(file(0), source(b"data"))
        async with DiskSink(name="other", root=str(sink.root)):
            pass
        await delivery.commit()
    assert entries(sink) == [one.id]


async def test_an_upload_holds_a_lock_while_it_runs(sink: DiskSink) -> None:
    one = upload()
    async with delivering(sink, one) as delivery:
        await delivery.accept(file(0), source(b"data"))
        descriptor = os.open(sink.root / f".{one.id}.incoming", os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


# -- when the disk fails


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system can be mounted by root only")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.sockets
async def test_a_full_disk_is_told_and_nothing_is_left_on_it(small_disk: Path) -> None:
    async with DiskSink(name="disk", root=str(small_disk)) as sink:
        with pytest.raises(SinkFull) as raised:
            await committed(sink, (file(0), b"small"), (file(1), _LARGE))
        assert raised.value.members == {"sink": "disk"}
        assert entries(sink) == []
        with pytest.raises(SinkFull):
            async with delivering(sink, upload()) as delivery:
                await _accept_all(delivery, 2_000_000)
        assert entries(sink) == []
        await committed(sink, (file(0), b"there is room again"))


async def test_a_client_reads_of_a_full_disk_as_507(small_disk: Path, start_gateway: StartGateway) -> None:
    root = small_disk / "uploads"
    gateway = await start_gateway(sinks={"disk": {"root": str(root), "fsync": False}})
    async with ClientSession() as session:
        status, problem = await answer_of(session, gateway.url + "/upload", form((b"file", b"a.bin", _LARGE)))
    assert (status, problem["type"], problem["sink"]) == (507, "/problems/sink-full", "disk")
    assert list(root.iterdir()) == []


class _Failing(io.BufferedWriter):
    """A file on a disk that has become full."""

    def writelines(self, lines: Any, /) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def write(self, data: Any, /) -> int:
        raise OSError(errno.ENOSPC, "no space left")


class _Slow(io.BufferedWriter):
    """A file on a slow disk; `began` and `ended` tell of its writes."""

    began = threading.Event()
    ended = threading.Event()

    def writelines(self, lines: Any, /) -> None:
        self._slowly(lambda: super(_Slow, self).writelines(lines))

    def write(self, data: Any, /) -> int:
        self._slowly(lambda: super(_Slow, self).write(data))
        return len(data)

    def _slowly(self, write: Callable[[], object]) -> None:
        self.began.set()
        time.sleep(0.1)
        write()
        self.ended.set()


def files_are(monkeypatch: pytest.MonkeyPatch, kind: type[io.BufferedWriter]) -> None:
    def create(self: Jobs, index: int) -> IO[bytes]:
        file = kind(io.FileIO(self.directory.file(str(index)), "x"))
        self._open_files.add(file)
        return file

    def write_whole(descriptor: int, data: bytes) -> None:
        with kind(io.FileIO(descriptor, "w", closefd=False)) as file:
            file.write(data)

    monkeypatch.setattr(Jobs, "create", create)
    monkeypatch.setattr("gateway.sinks.disk.jobs.write_whole", write_whole)


async def _accept_all(delivery: Delivery, size: int = 100_000) -> None:
    assert isinstance(delivery, DiskDelivery)
    await delivery.accept_all([(file(0), b"x" * (size // 2)), (file(1), b"x" * (size // 2))])


async def _accept(delivery: Delivery) -> None:
    await delivery.accept(file(0), source(_LARGE))


TWO_WAYS = pytest.mark.parametrize("accept", [_accept, _accept_all], ids=["streamed", "in one go"])


@TWO_WAYS
async def test_a_write_that_finds_the_disk_full_leaves_nothing(
    sink: DiskSink, monkeypatch: pytest.MonkeyPatch, accept: Callable[[Delivery], Any]
) -> None:
    files_are(monkeypatch, _Failing)
    async with nothing_left_running():
        with pytest.raises(SinkFull):
            async with delivering(sink, upload()) as delivery:
                await accept(delivery)
        assert entries(sink) == []


@TWO_WAYS
async def test_an_abort_waits_for_a_write_that_runs_and_then_removes_it(
    sink: DiskSink, monkeypatch: pytest.MonkeyPatch, accept: Callable[[Delivery], Any]
) -> None:
    files_are(monkeypatch, _Slow)
    _Slow.began.clear()
    _Slow.ended.clear()
    async with nothing_left_running():
        async with delivering(sink, upload()) as delivery, asyncio.TaskGroup() as group:
            accepting = group.create_task(accept(delivery))
            await asyncio.to_thread(_Slow.began.wait, 10)
            accepting.cancel()
        assert _Slow.ended.is_set()
        assert entries(sink) == []


async def test_a_commit_that_is_cancelled_while_it_renames_is_taken_back(
    sink: DiskSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, renamed, rename = threading.Event(), threading.Event(), os.rename

    def slow_rename(source: Path, target: Path) -> None:
        if not began.is_set():  # the commit's, not the one that takes it back
            began.set()
            time.sleep(0.2)
        rename(source, target)
        renamed.set()

    monkeypatch.setattr("gateway.sinks.disk.jobs.os.rename", slow_rename)
    async with delivering(sink, upload()) as delivery, asyncio.TaskGroup() as group:
        await delivery.accept(file(0), source(b"data"))
        committing = group.create_task(delivery.commit())
        await asyncio.to_thread(began.wait, 10)
        committing.cancel()
    assert renamed.is_set()
    assert entries(sink) == []


async def test_a_root_that_vanished_is_made_anew_and_a_file_in_its_place_stays(sink: DiskSink) -> None:
    sink.root.rmdir()
    await committed(sink, (file(0), b"data"))
    assert len(entries(sink)) == 1
    shutil.rmtree(sink.root)
    sink.root.write_bytes(b"a file in its place")
    with pytest.raises(SinkUnavailable) as raised:
        async with delivering(sink, upload()) as delivery:
            await delivery.accept(file(0), source(b"data"))
    assert raised.value.members == {"sink": "disk"}
    assert sink.root.read_bytes() == b"a file in its place"


async def test_a_root_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        async with DiskSink(name="disk", root=str(tmp_path / "file" / "root")):
            pass


# -- many small parts


def test_what_a_thread_leaves_after_the_loop_has_ended_is_told_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = DiskSink(name="disk", root=str(tmp_path))

    async def serve() -> None:
        async with sink:
            pass

    asyncio.run(serve())
    sink._volume.leave(tmp_path / ".x.incoming", OSError(errno.EIO, "failed"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(("fsync", "free"), [(True, 128), (False, 128), (True, 4)])
async def test_many_small_parts_need_no_more_descriptors_than_few(tmp_path: Path, fsync: bool, free: int) -> None:
    """One read of 256 KiB holds a thousand parts of 100 bytes; a process may often open 1024 files in all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    async with DiskSink(name="disk", root=str(tmp_path), fsync=fsync) as sink:
        async with delivering(sink, one := upload()) as delivery:
            assert isinstance(delivery, DiskDelivery)
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + free, hard))
            try:
                await delivery.accept_all([(file(index), b"%d" % index) for index in range(1000)])
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            receipts = await delivery.commit()
        assert [receipt.part for receipt in receipts] == list(range(1000))
        assert (sink.root / one.id / "999").read_bytes() == b"999"


async def test_the_manifest_on_disk_is_the_one_that_was_answered(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(fsync=True)
    body = form((b"file", b"../a b.bin", b"abc"), (b"note", None, b"hello"))
    async with ClientSession() as session:
        status, answered = await answer_of(session, gateway.url + "/upload", body)
    assert status == 201
    directory = gateway.root / answered["upload"]
    assert json.loads((directory / "manifest.json").read_bytes()) == answered
    assert sorted(os.listdir(directory)) == ["0", "manifest.json"]
    assert answered["parts"][0]["receipts"] == [
        {"sink": "disk", "location": f"/files/{answered['upload']}/0/a%20b.bin"}
    ]


@pytest.mark.parametrize("fsync", [True, False])
async def test_a_manifest_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    async with DiskSink(name="disk", root=str(tmp_path / "root"), fsync=fsync) as sink:
        one = upload()
        async with delivering(sink, one) as delivery:
            assert isinstance(delivery, DiskDelivery)
            await delivery.accept(file(0), source(b"data"))
            delivery.keep_manifest(b"first")
            await delivery.commit()
            await delivery.replace_manifest(b"second")
            assert await kept_manifest(sink, one.id) == b"second"

            def full(descriptor: int, data: bytes) -> None:
                os.write(descriptor, data[:1])
                raise OSError(errno.ENOSPC, "full")

            monkeypatch.setattr("gateway.sinks.disk.jobs.write_whole", full)
            with pytest.raises(SinkFull):
                await delivery.replace_manifest(b"third")
        assert await kept_manifest(sink, one.id) == b"second"
        assert sorted(os.listdir(sink.root / one.id)) == ["0", "manifest.json"]
