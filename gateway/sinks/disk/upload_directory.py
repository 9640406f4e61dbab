"""What a disk sink has published: found, read, removed, expired. One directory per upload.

1. Who reads an upload locks nothing, and nobody waits for him, who may take hours: what he has opened he can read to
   its end, removed or not.
2. Who removes it needs its lock (`flock`), which its own upload holds until it has ended, and does not wait for it.
3. A removed upload vanishes by one rename, under the lock. Its new name is one that start-up sweeps away,
   so a crash half-way leaves nothing for ever.
4. Its age counts from the manifest's modification time; where this disk keeps no manifest, from the
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
from gateway.http.ulids import ULID
from gateway.sinks.disk.layout import MANIFEST, lock_directory
from gateway.sinks.disk.volume import Volume
from gateway.sinks.store import Closable, Removal, StoredFile, StoredUpload

__all__ = ["LockedDirectory", "OpenedDirectory", "remove_expired"]

log = logging.getLogger("gateway.shelf")

T = TypeVar("T")


class OpenedDirectory(StoredUpload):
    """One disk's share of an upload: `async with disk.opened(id) as upload`. None where there is none.

    What was opened is closed when its jobs have ended, which nobody waits for: a disk may hang.
    """

    def __init__(self, upload_id: str, volume: Volume) -> None:
        self.sink = volume.name
        self._path = volume.root / upload_id
        self._volume = volume
        self._jobs = volume.tracked()
        self._directory: int | None = None
        """A descriptor, by which files are found although their directory is being removed."""
        self._opened: list[Closable] = []

    async def __aenter__(self) -> OpenedDirectory | None:
        try:
            await self.run(self._open_directory)
        except BaseException:
            self._close()  # the job may have opened it after we were cancelled
            raise
        return None if self._directory is None else self

    async def __aexit__(self, *exc_info: object) -> None:
        self._close()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """A job in a thread of the sink's. Raises SinkUnavailable for the system's errors."""
        with self._volume.translated():
            return await asyncio.get_running_loop().run_in_executor(self._jobs, function, *args)

    async def manifest(self) -> StoredFile | None:
        return await self.run(self._open, MANIFEST)

    async def indexes(self) -> set[int]:
        names = await self.run(os.listdir, self._directory)
        return {int(name) for name in names if name.isdecimal()}

    async def open(self, index: int) -> StoredFile | None:
        return await self.run(self._open, str(index))

    async def pieces(self, index: int) -> Path:
        return self._path / str(index)

    def close_later(self, thing: Closable) -> None:
        self._opened.append(thing)

    def _close(self) -> None:
        self._jobs.after_all(self._close_all)

    # -- the jobs; each runs in a thread

    def _open_directory(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _open(self, name: str) -> StoredFile | None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        file = open(descriptor, "rb", buffering=0)  # noqa: SIM115 - closed by _close_all
        self._opened.append(file)
        return _LocalFile(self, file)

    def _close_all(self) -> None:
        for one in self._opened:
            with contextlib.suppress(OSError):  # nothing was written
                one.close()
        self._opened.clear()
        directory, self._directory = self._directory, None
        if directory is not None:
            with contextlib.suppress(OSError):  # a descriptor is free even so
                os.close(directory)


class _LocalFile(StoredFile):
    """Its reads are jobs of the upload that it belongs to."""

    def __init__(self, upload: OpenedDirectory, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self.size, self.modified = status.st_size, status.st_mtime
        self.file = file
        self._descriptor = file.fileno()
        self._upload = upload

    async def read(self, size: int, offset: int) -> bytes:
        return await self._upload.run(os.pread, self._descriptor, size, offset)


class LockedDirectory(Removal):
    """One disk's share of an upload, locked: `async with disk.removal(id) as upload`. None where there is none."""

    def __init__(self, upload_id: str, volume: Volume) -> None:
        self._path = volume.root / upload_id
        self._volume = volume
        self._jobs = volume.tracked()
        self._lock: int | None = None

    async def __aenter__(self) -> LockedDirectory | None:
        try:
            await self._run(self._take_lock)
        except BaseException:
            await self.__aexit__()  # the job may have got the lock after we were cancelled
            raise
        return None if self._lock is None else self

    async def __aexit__(self, *exc_info: object) -> None:
        await settled(self._jobs.after_all(self._unlock))  # no clean-up: nothing is left

    async def remove(self) -> None:
        await self._run(self._volume.remove, self._path)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        with self._volume.translated():
            return await asyncio.get_running_loop().run_in_executor(self._jobs, function, *args)

    def _take_lock(self) -> None:
        try:
            self._lock = lock_directory(self._path)
        except BlockingIOError:
            raise Conflict(f"upload {self._path.name} has not ended, or is being removed") from None

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # a descriptor is free even so
                os.close(lock)


def remove_expired(volume: Volume, keep_seconds: float, stopped: threading.Event) -> int:
    """Remove what is older, but for what is locked: the next sweep meets it again. Returns how many. Blocks.

    Raises OSError where the root cannot be read.
    """
    removed = 0
    for name in os.listdir(volume.root):
        if stopped.is_set():
            break
        if not ULID.fullmatch(name):
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
