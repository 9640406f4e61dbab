"""What a disk sink has published: found, read, removed, expired. One directory per upload, locked by `flock`.

1. Who reads an upload holds a shared lock on its directory for as long as there is something left to read.
   Who removes it needs the exclusive one, and does not wait: a reader may take hours.
2. A lock is on the directory, not on its path: whoever has got it looks whether the path still leads there.
3. A removed upload vanishes by one rename, under the lock. Its new name is one that start-up sweeps away,
   so a crash half-way leaves nothing for ever.
4. Its age counts from the manifest's modification time; where this disk keeps no manifest, from the
   directory's. Only what is named like an upload expires: a root may hold other things.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gateway.concurrency.threads import TrackedExecutor, uninterrupted
from gateway.errors import Conflict
from gateway.sinks import sink_fault
from gateway.sinks.store import UPLOAD_ID, Closable, LockedUpload, StoredFile

__all__ = [
    "DELETED",
    "INCOMING",
    "MANIFEST",
    "LockedDirectory",
    "lock_directory",
    "read_manifest",
    "remove_expired",
    "remove_leftovers",
    "sync_directory",
    "translated",
]

log = logging.getLogger("gateway.shelf")

MANIFEST = "manifest.json"
INCOMING, DELETED = ".incoming", ".deleted"
_PATIENCE_SECONDS = 1.0
"""For a reader who meets a removal in the moment between its lock and its rename."""

T = TypeVar("T")


class LockedDirectory(LockedUpload):
    """One disk's share of an upload, locked: `async with disk.locked(id) as upload`. None where there is none.

    Raises Conflict where somebody else's lock forbids it. Leaving waits for its running jobs, closes what
    was opened, and unlocks.
    """

    def __init__(self, path: Path, executor: Executor, *, sink: str, fsync: bool, exclusive: bool) -> None:
        self.sink = sink
        self._path = path
        self._fsync = fsync
        self._exclusive = exclusive
        self._jobs = TrackedExecutor(executor)
        self._lock: int | None = None
        self._opened: list[Closable] = []
        self._is_released = False

    async def __aenter__(self) -> LockedDirectory | None:
        try:
            await self.run(self._take_lock)
        except BaseException:
            await self.release()  # the job may have got the lock after we were cancelled
            raise
        return None if self._lock is None else self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """A job in a thread of the sink's. Raises SinkUnavailable for the system's errors."""
        with translated(self.sink):
            return await asyncio.get_running_loop().run_in_executor(self._jobs, function, *args)

    async def release(self) -> None:
        """Unlock before the context is left: there is nothing left to read. Waits for running jobs."""
        if not self._is_released:
            await uninterrupted(self._jobs.after_all(self._unlock))
            self._is_released = True

    async def manifest(self) -> bytes | None:
        return await self.run(read_manifest, self._path)

    async def indexes(self) -> set[int]:
        names = await self.run(os.listdir, self._path)
        return {int(name) for name in names if name.isdecimal()}

    async def open(self, index: int) -> StoredFile | None:
        return await self.run(self._open, index)

    async def remove(self) -> None:
        await self.run(_remove, self._path, self._fsync)

    def path(self, index: int) -> Path:
        return self._path / str(index)

    def close_later(self, thing: Closable) -> None:
        self._opened.append(thing)

    # -- the jobs; each runs in a thread

    def _open(self, index: int) -> StoredFile | None:
        try:
            file = open(self.path(index), "rb", buffering=0)  # noqa: SIM115 - closed by _unlock
        except FileNotFoundError:
            return None
        self._opened.append(file)
        return _LocalFile(self, file)

    def _take_lock(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._lock = lock_directory(self._path, shared=not self._exclusive)
                return
            except BlockingIOError:
                if self._exclusive or time.monotonic() > deadline:
                    raise Conflict(f"upload {self._path.name} is being read or removed") from None
            time.sleep(0.002)

    def _unlock(self) -> None:
        while self._opened:
            self._opened.pop().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _LocalFile(StoredFile):
    """Its reads are jobs of the upload that it belongs to."""

    def __init__(self, upload: LockedDirectory, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self.size, self.modified = status.st_size, status.st_mtime
        self.file = file
        self._descriptor = file.fileno()
        self._upload = upload

    async def read(self, size: int, offset: int) -> bytes:
        return await self._upload.run(os.pread, self._descriptor, size, offset)


def read_manifest(path: Path) -> bytes | None:
    """The manifest in an upload's directory, as it was answered; None if there is none."""
    try:
        return (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_leftovers(root: Path) -> None:
    """Remove what a crash left behind: temporary directories that nobody locks, removals that were not finished."""
    for entry in list(root.iterdir()):
        if not entry.name.startswith(".") or entry.suffix not in (INCOMING, DELETED):
            continue
        with contextlib.suppress(BlockingIOError):
            lock = lock_directory(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)


def remove_expired(root: Path, keep_seconds: float, stopped: threading.Event) -> int:
    """Remove what is older, but for what is being read: the next sweep meets it again. Returns how many."""
    removed = 0
    for name in os.listdir(root):
        if stopped.is_set():
            break
        if not UPLOAD_ID.fullmatch(name):
            continue
        path = root / name
        try:
            if time.time() - _published(path) < keep_seconds:
                continue
            lock = lock_directory(path)
            if lock is None:
                continue
            try:
                _remove(path, fsync=False)  # one that a power cut brings back expires again
            finally:
                os.close(lock)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError as error:
            log.warning("upload %s cannot be removed: %s", name, error)
            continue
        removed += 1
    return removed


def _published(path: Path) -> float:
    try:
        return (path / MANIFEST).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return path.stat().st_mtime


def _remove(path: Path, fsync: bool) -> None:
    """Rule 3; the caller holds the exclusive lock."""
    doomed = path.with_name(f".{path.name}{DELETED}")
    os.rename(path, doomed)
    sync_directory(path.parent, fsync)
    shutil.rmtree(doomed, ignore_errors=True)


def lock_directory(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the directory's lock; None if it is gone.

    Raises BlockingIOError where somebody else's lock forbids it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def sync_directory(path: Path, fsync: bool) -> None:
    """Make the directory's entries durable, if `fsync`. Raises OSError."""
    if not fsync:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """The system's errors as those of the sink of that name: SinkFull and SinkUnavailable."""
    try:
        yield
    except OSError as error:
        raise sink_fault(name, error) from error
