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
5. From the rename on the lock is a shared one, as a reader's: what is published may be read at once, and
   cannot be removed before its own upload is done with it. Reading and removal: see upload_directory.py.
6. With `keep_seconds` a sweep at the start, and one every `sweep_seconds` after it, remove what is older.
   An upload that is being read is left for a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from aiofiles.threadpool import wrap

from gateway.concurrency.pipe import gathered
from gateway.concurrency.threads import TrackedExecutor, uninterrupted
from gateway.model import Part, Receipt, Upload
from gateway.multipart.filenames import safe_segment
from gateway.sinks import Delivery, Sink, Stage
from gateway.sinks.disk.upload_directory import (
    INCOMING,
    MANIFEST,
    Held,
    lock_directory,
    read_manifest,
    remove_expired,
    remove_leftovers,
    sync_directory,
    translated,
)

__all__ = ["BATCH_BYTES", "DiskSink"]

log = logging.getLogger("gateway.disk")

BATCH_BYTES = 1 << 20
"""The most that is written in one job, and hashed beside it; a batch is what came while the one before was written."""
_FLUSH_BYTES = 64 << 20
_OPEN_FILES = 64
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

T = TypeVar("T")


class DiskSink(Sink):
    """`root` is a directory, made if need be; `threads` write and read for all together.

    `keep_seconds` after it was published an upload is removed; 0 keeps it for ever.
    """

    stage = Stage.STORE
    can_drop = True

    def __init__(self, *, name: str, root: str, fsync: bool = True, keep_seconds: float = 0, threads: int = 4) -> None:
        self.name = name
        self.root = Path(root)
        self.fsync = fsync
        self.keep_seconds = keep_seconds
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def sweep_seconds(self) -> float:
        """An upload outlives its time by a quarter of it, and by a minute at most."""
        return max(1, min(self.keep_seconds / 4, 60))

    async def __aenter__(self) -> DiskSink:
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix=f"disk-{self.name}")
        self._stopped.clear()
        await self._run(self._start)
        self._sweep_later()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._executor is not None
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        self._executor.shutdown()

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[DiskDelivery]:
        assert self._executor is not None
        delivery = DiskDelivery(self, upload, TrackedExecutor(self._executor))
        try:
            yield delivery
        finally:
            await delivery.end()

    # -- what was stored

    def held(self, upload_id: str, *, exclusive: bool = False) -> Held:
        """A context in which an upload may be read, and stays; `exclusive`: in which it may be removed."""
        assert self._executor is not None
        path = self.root / upload_id
        return Held(path, self._executor, sink=self.name, fsync=self.fsync, exclusive=exclusive)

    def file(self, upload_id: str, index: int) -> Path | None:
        """The stored bytes of a part; None if this sink does not have them."""
        path = self.root / upload_id / str(index)
        return path if path.is_file() else None

    async def manifest(self, upload_id: str) -> bytes | None:
        """The manifest of an upload, as it was answered; None if this sink does not keep it."""
        with translated(self.name):
            return await self._run(read_manifest, self.root / upload_id)

    async def delete(self, upload_id: str) -> bool:
        """Remove an upload; False if there is none. Raises Conflict while somebody reads it."""
        async with self.held(upload_id, exclusive=True) as held:
            if held is None:
                return False
            await held.run(held.remove)
            return True

    # -- sweeps

    def _start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.root)
        self._sweep()

    def _sweep(self) -> None:
        if self.keep_seconds:
            removed = remove_expired(self.root, self.keep_seconds, self._stopped)
            log.debug("disk %s: %d uploads have expired", self.name, removed)

    def _sweep_later(self) -> None:
        if self.keep_seconds:
            self._timer = asyncio.get_running_loop().call_later(self.sweep_seconds, self._sweep_now)

    def _sweep_now(self) -> None:
        sweep = asyncio.get_running_loop().run_in_executor(self._executor, self._sweep)
        sweep.add_done_callback(self._swept)

    def _swept(self, sweep: asyncio.Future[None]) -> None:
        if error := None if sweep.cancelled() else sweep.exception():
            log.warning("disk %s cannot be swept: %s", self.name, error)
        if not self._stopped.is_set():
            self._sweep_later()

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


class DiskDelivery(Delivery):
    """One upload on its way to disk."""

    takes_batches = keeps_manifest = True

    def __init__(self, sink: DiskSink, upload: Upload, executor: TrackedExecutor) -> None:
        self._sink = sink
        self._upload = upload
        self._executor = executor
        self._incoming = sink.root / f".{upload.id}{INCOMING}"
        self._final = sink.root / upload.id
        self._making = threading.Lock()
        self._lock: int | None = None
        self._files: set[IO[bytes]] = set()  # open ones; written in threads, closed by whoever comes last
        self._see: Callable[[int, bytes], None] | None = None
        self._receipts: dict[int, Receipt] = {}
        self._manifest: bytes | None = None
        self._published = False
        self._committed = False
        self._replacing = False

    def _make_directory(self) -> int:
        while True:
            self._incoming.mkdir(exist_ok=True)  # exists: a sweep that was faster (rule 1) is not done with it
            with contextlib.suppress(BlockingIOError):
                if (lock := lock_directory(self._incoming)) is not None:
                    return lock
            time.sleep(0.001)  # a sweep takes one empty directory away, then never comes back

    def let_see(self, see: Callable[[int, bytes], None]) -> bool:
        self._see = see
        return True

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        with translated(self._sink.name):
            raw = await self._run(self._create, part.index)
            file = wrap(raw, loop=asyncio.get_running_loop(), executor=self._executor)
            unflushed = 0
            # While one batch is written the next one gathers where it comes from, in the window of the part.
            async for batch, size in gathered(chunks, BATCH_BYTES):
                await file.writelines(batch)
                unflushed += size
                if unflushed >= _FLUSH_BYTES:
                    await self._run(self._flush, raw)
                    unflushed = 0
            await self._run(self._close, raw)
            self._receipts[part.index] = self._receipt(part)

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        with translated(self._sink.name):
            await self._run(self._write_all, parts)
            for part, _ in parts:
                self._receipts[part.index] = self._receipt(part)

    async def drop(self, part: Part) -> None:
        with translated(self._sink.name):
            self._receipts.pop(part.index, None)
            # a job of an accept that was cancelled may be running still, and would bring the file back
            await asyncio.wrap_future(self._executor.after_those_before(partial(self._remove, part.index)))

    def _receipt(self, part: Part) -> Receipt:
        location = f"/files/{self._upload.id}/{part.index}/{safe_segment(part.filename)}"
        return Receipt(part.index, self._sink.name, location)

    def receipts(self) -> list[Receipt]:
        return [self._receipts[index] for index in sorted(self._receipts)]

    def keep_manifest(self, manifest: bytes) -> None:
        self._manifest = manifest

    async def replace_manifest(self, manifest: bytes) -> None:
        with translated(self._sink.name):
            self._replacing = True
            await self._run(self._rewrite, manifest)
            self._replacing = False

    async def commit(self) -> list[Receipt]:
        with translated(self._sink.name):
            await self._run(self._publish)
        self._committed = True
        return self.receipts()

    async def end(self) -> None:
        """Close everything; without a commit that returned, remove everything."""
        if self._committed and not self._files and not self._replacing:
            self._unlock()  # nothing that could wait for the disk
            return
        await uninterrupted(self._executor.after_all(self._finish))

    # -- the jobs; each runs in a thread

    def _create(self, index: int) -> IO[bytes]:
        file = _File(self._incoming / str(index), index, self._see)
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

    def _write_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        # Plain descriptors: a file object costs more than writing a small file. The fsyncs come after the writes of
        # a group: the first one's journal entry serves them all. Groups, because descriptors are few.
        prefix, fsync, see = f"{self._incoming}/", self._sink.fsync, self._see
        for start in range(0, len(parts), _OPEN_FILES):
            written: list[int] = []
            try:
                for part, data in parts[start : start + _OPEN_FILES]:
                    descriptor = os.open(prefix + str(part.index), _CREATE, 0o666)
                    written.append(descriptor)
                    write_all(descriptor, data)
                    if see is not None:
                        see(part.index, data)
                    if not fsync:
                        os.close(written.pop())
                for descriptor in written:
                    os.fsync(descriptor)
            finally:
                for descriptor in written:
                    os.close(descriptor)

    def _publish(self) -> None:
        if self._manifest is not None:
            manifest = open(self._incoming / MANIFEST, "xb")  # noqa: SIM115 - closed by _close, or by _finish
            self._files.add(manifest)
            manifest.write(self._manifest)
            self._close(manifest)
        os.utime(self._incoming)  # its age counts from here: a long upload's would else count from its last file
        sync_directory(self._incoming, self._sink.fsync)
        os.rename(self._incoming, self._final)
        self._published = True
        sync_directory(self._sink.root, self._sink.fsync)
        assert self._lock is not None
        with contextlib.suppress(BlockingIOError):  # somebody removes it already (rule 5)
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _rewrite(self, data: bytes) -> None:
        """Another manifest for what is published: the one or the other is there, whenever the power goes."""
        path = self._final / f"{MANIFEST}.new"
        try:
            descriptor = os.open(path, _CREATE, 0o666)
            try:
                write_all(descriptor, data)
                if self._sink.fsync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(path, self._final / MANIFEST)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        with contextlib.suppress(OSError):  # it is there; that it may not outlive a power cut is no reason to deny it
            sync_directory(self._final, self._sink.fsync)

    def _remove(self, index: int) -> None:
        path = str(self._incoming / str(index))
        for file in list(self._files):  # a copy, for other threads open and close theirs meanwhile
            if str(file.name) == path:
                with contextlib.suppress(OSError):
                    file.close()
                self._files.discard(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _finish(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk fails the flush in close() as well
                file.close()
        if self._lock is None:
            return  # the directory was not made: then there is none, or it is not ours to remove
        if not self._committed:
            shutil.rmtree(self._final if self._published else self._incoming, ignore_errors=True)
            sync_directory(self._sink.root, self._sink.fsync)
        self._unlock()

    def _unlock(self) -> None:
        assert self._lock is not None
        os.close(self._lock)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._in_directory, function, *args)

    def _in_directory(self, function: Callable[..., T], *args: Any) -> T:
        """Made by the first job, whichever that is: a small upload is two jobs, and would else be three."""
        with self._making:
            if self._lock is None:
                self._lock = self._make_directory()
        return function(*args)


class _File(io.BufferedWriter):
    """A new file, which shows what is written to it."""

    def __init__(self, path: Path, index: int, see: Callable[[int, bytes], None] | None) -> None:
        super().__init__(io.FileIO(path, "x"))
        self._index = index
        self._see = see

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)
            if self._see is not None:
                self._see(self._index, line)


def write_all(descriptor: int, data: bytes) -> None:
    """A write may take a part only: a disk that is nearly full does."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
