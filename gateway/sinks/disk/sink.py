"""Uploads on disk: one directory per upload, written under a temporary name, published by one rename.

    root/.01JD….incoming/    while the upload runs; whoever writes it holds an flock on it
    root/01JD…/0             the bytes of part 0: names are ours, the client's is metadata only
    root/01JD…/manifest.json

1. A directory is ours while we hold its lock. Start-up removes what nobody locks (a kill -9 leaves such),
   and so it is safe with several processes on one root. Between making a directory and locking it a
   starting process may take it from us: then we make another.
2. Every file, the directory and, after the rename, the root are fsynced (`fsync = false` skips that):
   what was acknowledged survives a power cut.
3. The rename is the commit. It never overwrites: identifiers are random, and renaming onto a directory
   that holds anything fails.
4. All of it runs in threads of its own, in jobs that are tracked: an abort waits for the running ones
   before it deletes, or one of them would bring a file back. The jobs: see jobs.py; their order: delivery.py.
5. From the rename on the lock is a shared one, as a reader's: what is published may be read at once, and
   cannot be removed before its own upload is done with it. Reading and removal: see upload_directory.py.
6. With `keep_seconds` a sweep at the start, and one every `sweep_seconds` after it, remove what is older.
   An upload that is being read is left for a later one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from gateway.model import Upload
from gateway.sinks.disk.delivery import DiskDelivery
from gateway.sinks.disk.jobs import Jobs
from gateway.sinks.disk.upload_directory import (
    LockedDirectory,
    read_manifest,
    remove_expired,
    remove_leftovers,
    translated,
)
from gateway.sinks.store import Store

__all__ = ["DiskSink"]

log = logging.getLogger("gateway.disk")

T = TypeVar("T")


class DiskSink(Store):
    """`root` is a directory, made if need be; `threads` write and read for all together.

    `keep_seconds` after it was published an upload is removed; 0 keeps it for ever.
    """

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
        """One upload's share; nothing of it is on disk before its first part. Leaving it waits for its jobs."""
        assert self._executor is not None
        jobs = Jobs(upload.id, root=self.root, fsync=self.fsync)
        delivery = DiskDelivery(jobs, self._executor, sink=self.name)
        try:
            yield delivery
        finally:
            await delivery.end()

    # -- what was stored

    def locked(self, upload_id: str, *, exclusive: bool = False) -> LockedDirectory:
        assert self._executor is not None
        path = self.root / upload_id
        return LockedDirectory(path, self._executor, sink=self.name, fsync=self.fsync, exclusive=exclusive)

    def file(self, upload_id: str, index: int) -> Path | None:
        """The stored bytes of a part; None if this sink does not have them."""
        path = self.root / upload_id / str(index)
        return path if path.is_file() else None

    async def manifest(self, upload_id: str) -> bytes | None:
        with translated(self.name):
            return await self._run(read_manifest, self.root / upload_id)

    async def delete(self, upload_id: str) -> bool:
        """Remove an upload; False if there is none. Raises Conflict while somebody reads it."""
        async with self.locked(upload_id, exclusive=True) as upload:
            if upload is None:
                return False
            await upload.remove()
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
