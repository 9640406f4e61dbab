"""What a disk sink has published: found, read, removed, expired. One directory per upload, locked by `flock`.

1. Who reads an upload holds a shared lock on its directory for as long as there is something left to read.
   Who removes it needs the exclusive one, and does not wait: a reader may take hours.
2. A removed upload vanishes by one rename, under the lock. Its new name is one that start-up sweeps away,
   so a crash half-way leaves nothing for ever.
3. Its age counts from the manifest's modification time; where this disk keeps no manifest, from the
   directory's. Only what is named like an upload expires: a root may hold other things.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gateway.concurrency.threads import settled
from gateway.errors import Conflict
from gateway.sinks.disk.layout import MANIFEST, lock_directory, translated
from gateway.sinks.disk.volume import Volume
from gateway.sinks.store import UPLOAD_ID, Closable, LockedUpload, StoredFile

__all__ = ["LockedDirectory", "read_manifest", "remove_expired"]

log = logging.getLogger("gateway.shelf")

_PATIENCE_SECONDS = 1.0
"""For a reader who meets a removal in the moment between its lock and its rename."""

T = TypeVar("T")


class LockedDirectory(LockedUpload):
    """One disk's share of an upload, locked: `async with disk.locked(id) as upload`. None where there is none.

    Raises Conflict where somebody else's lock forbids it. Leaving waits for its running jobs, unless they hang,
    closes what was opened, and unlocks.
    """

    def __init__(self, upload_id: str, volume: Volume, *, exclusive: bool) -> None:
        self.sink = volume.name
        self._path = volume.root / upload_id
        self._volume = volume
        self._exclusive = exclusive
        self._jobs = volume.tracked()
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
            self._is_released = True
            await settled(self._jobs.after_all(self._unlock))  # no clean-up: nothing is left by who reads

    async def manifest(self) -> bytes | None:
        return await self.run(read_manifest, self._path)

    async def indexes(self) -> set[int]:
        names = await self.run(os.listdir, self._path)
        return {int(name) for name in names if name.isdecimal()}

    async def open(self, index: int) -> StoredFile | None:
        return await self.run(self._open, index)

    async def remove(self) -> None:
        await self.run(self._volume.remove, self._path)

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
        for one in self._opened:
            with contextlib.suppress(OSError):  # nothing was written
                one.close()
        self._opened.clear()
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # a descriptor is free even so
                os.close(lock)


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


def remove_expired(volume: Volume, keep_seconds: float, stopped: threading.Event) -> int:
    """Remove what is older, but for what is being read: the next sweep meets it again. Returns how many. Blocks.

    Raises OSError where the root cannot be read.
    """
    removed = 0
    for name in os.listdir(volume.root):
        if stopped.is_set():
            break
        if not UPLOAD_ID.fullmatch(name):
            continue
        path = volume.root / name
        try:
            if time.time() - _published(path) < keep_seconds:
                continue
            lock = lock_directory(path)
            if lock is None:
                continue
            try:
                volume.remove(path, durably=False)  # one that a power cut brings back expires again
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
