"""Uploads on disk: one directory per upload, written under a temporary name, published by one rename.

    root/.01JD….incoming/    while the upload runs; whoever writes it holds an flock on it
    root/01JD…/0             the bytes of part 0: names are ours, the client's is metadata only
    root/01JD…/manifest.json

1. A directory is ours while we hold its lock. Start-up removes what nobody locks (a kill -9 leaves such),
   and so it is safe with several processes on one root. Between making a directory and locking it a
   starting process may take it from us: then we make another.
2. Every file, the directory and, after the rename, the root are fsynced (`fsync = false` skips that):
   what was acknowledged survives a power cut. Long files are flushed as they grow, or the last flush of
   a huge one would look like a stall.
3. The rename is the commit. It never overwrites: identifiers are random, and renaming onto a directory
   that holds anything fails.
4. All of it runs in threads of its own, in jobs that are tracked: an abort waits for the running ones
   before it deletes, or one of them would bring a file back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from aiofiles.threadpool import wrap

from gateway.headers import safe_name
from gateway.model import Part, Receipt, Upload
from gateway.sinks import sink_fault

__all__ = ["DiskSink"]

BATCH_BYTES = 512 << 10
"""Written in one job. Two batches per open part are held: one being filled, one being written."""
_FLUSH_BYTES = 64 << 20
_MANIFEST = "manifest.json"
_INCOMING, _DELETED = ".incoming", ".deleted"

T = TypeVar("T")


class DiskSink:
    """`root` is a directory, made if need be; `threads` write for all uploads together."""

    commit_stage = 2  # last: it alone can be taken back until the rename

    def __init__(self, *, name: str, root: str, fsync: bool = True, threads: int = 4) -> None:
        self.name = name
        self.root = Path(root)
        self.fsync = fsync
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> DiskSink:
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix=f"disk-{self.name}")
        await self._run(self._sweep)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._executor is not None
        self._executor.shutdown()

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[DiskDelivery]:
        assert self._executor is not None
        delivery = DiskDelivery(self, upload, TrackedExecutor(self._executor))
        try:
            with translated(self.name):
                await delivery.begin()
            yield delivery
        finally:
            await delivery.end()

    # -- what was stored

    def file(self, upload_id: str, index: int) -> Path | None:
        """The stored bytes of a part; None if this sink does not have them."""
        path = self.root / upload_id / str(index)
        return path if path.is_file() else None

    async def manifest(self, upload_id: str) -> bytes | None:
        """The manifest of an upload, as it was answered; None if this sink does not keep it."""
        try:
            return await self._run((self.root / upload_id / _MANIFEST).read_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def delete(self, upload_id: str) -> bool:
        """Remove an upload; False if there is none. It vanishes in one step, its files are freed after."""
        return await self._run(self._delete, upload_id)

    def _delete(self, upload_id: str) -> bool:
        grave = self.root / f".{upload_id}{_DELETED}"
        try:
            os.rename(self.root / upload_id, grave)
        except FileNotFoundError:
            return False
        sync_directory(self.root, self.fsync)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def _sweep(self) -> None:
        """Remove what nobody locks and a crash left behind (rule 1)."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in list(self.root.iterdir()):
            if not entry.name.startswith(".") or entry.suffix not in (_INCOMING, _DELETED):
                continue
            lock = lock_directory(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


class DiskDelivery:
    """One upload on its way to disk."""

    def __init__(self, sink: DiskSink, upload: Upload, executor: TrackedExecutor) -> None:
        self._sink = sink
        self._upload = upload
        self._executor = executor
        self._incoming = sink.root / f".{upload.id}{_INCOMING}"
        self._final = sink.root / upload.id
        self._lock: int | None = None
        self._files: set[IO[bytes]] = set()  # open ones; written in threads, closed by whoever comes last
        self._filenames: dict[int, str | None] = {}
        self._manifest: bytes | None = None
        self._published = False
        self._committed = False

    async def begin(self) -> None:
        await self._run(self._make_directory)

    def _make_directory(self) -> None:
        while True:
            self._incoming.mkdir(exist_ok=True)  # exists: a sweep that was faster (rule 1) is not done with it
            self._lock = lock_directory(self._incoming)
            if self._lock is not None:
                return
            time.sleep(0.001)  # a sweep takes one empty directory away, then never comes back

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        with translated(self._sink.name):
            raw = await self._run(self._create, part.index)
            # The group writes one batch while the next is being filled, and waits for it whatever happens.
            try:
                async with asyncio.TaskGroup() as group:
                    file = wrap(raw, loop=asyncio.get_running_loop(), executor=self._executor)
                    unflushed = 0
                    writing: asyncio.Task[None] | None = None
                    async for batch, size in batches(chunks, BATCH_BYTES):
                        if writing is not None:
                            await writing
                        unflushed += size
                        writing = group.create_task(file.writelines(batch))
                        if unflushed >= _FLUSH_BYTES:
                            await writing
                            await self._run(self._flush, raw)
                            unflushed = 0
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # there is one task at a time, so one failure
            await self._run(self._close, raw)
            self._filenames[part.index] = part.filename

    async def accept_all(self, parts: list[tuple[Part, bytes]]) -> None:
        with translated(self._sink.name):
            await self._run(self._write_all, parts)
            for part, _ in parts:
                self._filenames[part.index] = part.filename

    def receipts(self) -> list[Receipt]:
        return [
            Receipt(index, self._sink.name, f"/files/{self._upload.id}/{index}/{quote(safe_name(name), safe='')}")
            for index, name in sorted(self._filenames.items())
        ]

    def keep_manifest(self, manifest: bytes) -> None:
        self._manifest = manifest

    async def commit(self) -> list[Receipt]:
        with translated(self._sink.name):
            await self._run(self._publish)
        self._committed = True
        return self.receipts()

    async def end(self) -> None:
        """Close everything; without a commit that returned, remove everything."""
        await uninterrupted(self._executor.after_all(self._finish))

    # -- the jobs; each runs in a thread

    def _create(self, index: int) -> IO[bytes]:
        file = open(self._incoming / str(index), "xb")  # noqa: SIM115 - closed by _close, or by _finish
        self._files.add(file)
        return file

    def _flush(self, file: IO[bytes]) -> None:
        file.flush()
        if self._sink.fsync:
            os.fdatasync(file.fileno())

    def _close(self, file: IO[bytes]) -> None:
        file.flush()
        if self._sink.fsync:
            os.fsync(file.fileno())
        file.close()
        self._files.discard(file)

    def _write_all(self, parts: list[tuple[Part, bytes]]) -> None:
        files = []
        for part, data in parts:
            file = self._create(part.index)
            file.write(data)
            if self._sink.fsync:
                files.append(file)  # fsynced after the last write: the first one's journal entry serves them all
            else:
                self._close(file)
        for file in files:
            self._close(file)

    def _publish(self) -> None:
        if self._manifest is not None:
            manifest = open(self._incoming / _MANIFEST, "xb")  # noqa: SIM115 - closed by _close, or by _finish
            self._files.add(manifest)
            manifest.write(self._manifest)
            self._close(manifest)
        sync_directory(self._incoming, self._sink.fsync)
        os.rename(self._incoming, self._final)
        self._published = True
        sync_directory(self._sink.root, self._sink.fsync)

    def _finish(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk fails the flush in close() as well
                file.close()
        if self._lock is None:
            return  # the directory could not be made: then it is not ours to remove
        if not self._committed:
            shutil.rmtree(self._final if self._published else self._incoming, ignore_errors=True)
            sync_directory(self._sink.root, self._sink.fsync)
        os.close(self._lock)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


class TrackedExecutor(Executor):
    """One upload's jobs on a pool that is shared: they can be waited for, whoever awaited them and gave up."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._jobs: set[Future[Any]] = set()

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        job = self._executor.submit(function, *args, **kwargs)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def after_all(self, function: Callable[[], T]) -> Future[T]:
        """Run a last job when no other runs any more; those that have not begun are not begun."""
        running = [job for job in list(self._jobs) if not job.cancel()]

        def last() -> T:
            wait(running)  # they are on other threads of the pool, so this one does not keep them from ending
            return function()

        return self._executor.submit(last)


async def uninterrupted(job: Future[T]) -> T:
    """Wait for a job to its end, and pass on a cancellation that came meanwhile only then.

    For removals: half of one would stay. They are short, and on threads of our own.
    """
    future = asyncio.wrap_future(job)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


async def batches(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[tuple[list[bytes], int]]:
    """(chunks, their bytes), at least `size` bytes at a time but for the last."""
    batch: list[bytes] = []
    batch_bytes = 0
    async for chunk in chunks:
        batch.append(chunk)
        batch_bytes += len(chunk)
        if batch_bytes >= size:
            yield batch, batch_bytes
            batch, batch_bytes = [], 0
    if batch:
        yield batch, batch_bytes


def lock_directory(path: Path) -> int | None:
    """A descriptor that holds the directory's exclusive lock; None if somebody else has it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def sync_directory(path: Path, fsync: bool) -> None:
    """Make the directory's entries durable."""
    if not fsync:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise sink_fault(name, error) from error
