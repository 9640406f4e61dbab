"""Uploads on disk: one directory per upload, written under a temporary name, published by one rename.

    root/.01JD….incoming/    while the upload runs; whoever writes it holds an flock on it
    root/01JD…/0             the bytes of part 0: names are ours, the client's is metadata only
    root/01JD…/manifest.json

1. A directory is ours while we hold its lock. Start-up removes what nobody locks (a kill -9 leaves such),
   and so it is safe with several processes on one root. Between making a directory and locking it a
   starting process may take it from us: then we make another.
2. Every file, the directory and, after the rename, the root are fsynced (`fsync = false` skips that), or all that the
   file system holds before the rename: what was acknowledged survives a power cut.
3. The rename is the commit. It never overwrites: identifiers are random, and renaming onto a directory
   that holds anything fails.
4. All of it runs in threads of its own, in jobs that are tracked: an abort deletes when the running ones have
   ended, or one of them would bring a file back. The jobs: see jobs.py; their order: delivery.py. Where a disk
   hangs, the answer waits for that no longer than `PATIENCE_SECONDS`; the drain waits for it as long as it may.
5. What is published may be read at once, and cannot be removed before its own upload is done with it, which holds the
   lock until then. Reading and removal: see upload_directory.py.
6. With `keep_seconds` a sweep at the start, and one every `sweep_seconds` after it, remove what is older.
   What a failing disk would not remove: see volume.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from gateway.concurrency.threads import PATIENCE_SECONDS
from gateway.errors import SinkUnavailable
from gateway.model import Upload
from gateway.sinks.disk.delivery import DiskDelivery
from gateway.sinks.disk.holdings import Holdings
from gateway.sinks.disk.upload_directory import LockedDirectory, OpenedDirectory, remove_expired
from gateway.sinks.disk.volume import Volume
from gateway.sinks.store import Store

__all__ = ["DiskSink"]

log = logging.getLogger("gateway.disk")

_LOOK_SECONDS = 5
"""At what is kept, for a quota: the first one reads the beginning of each manifest, 20,000 in half a second if the
system has them at hand.
"""
_RETRY_SECONDS = 2
"""Between attempts to remove what could not be removed: descriptors get free again, a disk answers."""


class DiskSink(Store):
    """`root` is a directory, made if need be; `threads` write and read for all together. The modes are octal.

    `keep_seconds` after it was published an upload is removed; 0 keeps it for ever.
    """

    can_drop = opens_at_once = True

    def __init__(
        self,
        *,
        name: str,
        root: str,
        fsync: bool = True,
        min_free_bytes: int = 0,
        keep_seconds: float = 0,
        mode: str = "0640",
        directory_mode: str = "0750",
        threads: int = 4,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.fsync = fsync
        self.min_free_bytes = min_free_bytes
        self.keep_seconds = keep_seconds
        self._modes = int(mode, 8), int(directory_mode, 8)
        self._threads = threads
        self._holdings = Holdings(self.root)
        self._look: asyncio.Future[Mapping[str, int]] | None = None
        self._started: Volume | None = None
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> DiskSink:
        loop = asyncio.get_running_loop()

        def on_left() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the next start sees to it
                loop.call_soon_threadsafe(self._sweep_later)

        self._stopped.clear()
        mode, directory_mode = self._modes
        volume = self._started = Volume(
            self.name,
            self.root,
            fsync=self.fsync,
            min_free_bytes=self.min_free_bytes,
            threads=self._threads,
            mode=mode,
            directory_mode=directory_mode,
            on_left=on_left,
            on_fault=partial(self.observer.failed, self.name),
        )
        try:
            await loop.run_in_executor(volume.threads, self._start)
        except BaseException:
            volume.threads.stop(0)
            raise
        self._sweep_later()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        self._volume.writable.stop()
        unfinished = self._volume.cleanups.unfinished  # the drain has waited for them
        if not self._volume.threads.stop(0 if unfinished else PATIENCE_SECONDS):
            log.warning("disk %s hangs", self.name)
        for upload_id in unfinished:
            log.warning("disk %s: what is left of upload %s is for the next start to remove", self.name, upload_id)

    @property
    def _volume(self) -> Volume:
        assert self._started is not None
        return self._started

    async def check(self) -> None:
        with self._volume.translated():
            if not await self._volume.writable.ask():
                raise self._hangs()

    def admit(self, upload: Upload) -> None:
        """Refuse uploads for a disk that hangs: what is left on it waits in memory. Raises SinkUnavailable."""
        if self._volume.cleanups.are_many:
            raise self._hangs()

    def _hangs(self) -> SinkUnavailable:
        fault = SinkUnavailable(f"sink {self.name} hangs", sink=self.name)
        self.observer.failed(self.name, fault)
        return fault

    @contextlib.asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[DiskDelivery]:
        """One upload's share; nothing of it is on disk before its first part. Raises what `admit` does."""
        self.admit(upload)
        delivery = DiskDelivery(upload.id, self._volume, expected_bytes=upload.content_length or 0)
        try:
            yield delivery
        finally:
            await delivery.end()

    async def cleaned_up(self) -> None:
        """Wait for what is removed behind uploads that were answered."""
        await self._volume.cleanups.finished()

    # -- what was stored

    def opened(self, upload_id: str) -> OpenedDirectory:
        return OpenedDirectory(upload_id, self._volume)

    def removal(self, upload_id: str) -> LockedDirectory:
        return LockedDirectory(upload_id, self._volume)

    async def stored_bytes(self, owner: str) -> int:
        """One look at a time, for all who ask: it may take a while, and a disk has few threads. One that began before
        somebody asked may have missed what was kept meanwhile, so he waits for the next.
        """
        with self._volume.translated():
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    if self._look is not None:
                        await asyncio.wait([self._look])
                    if self._look is None or self._look.done():
                        loop = asyncio.get_running_loop()
                        self._look = loop.run_in_executor(self._volume.threads, self._holdings.look)
                        self._look.add_done_callback(lambda look: look.cancelled() or look.exception())
                    look = self._look
                    await asyncio.wait([look])
            except TimeoutError:
                raise self._hangs() from None
            return look.result().get(owner, 0)

    # -- sweeps

    @property
    def sweep_seconds(self) -> float:
        """An upload outlives its time by a quarter of it, and by a minute at most."""
        return max(1, min(self.keep_seconds / 4, 60))

    @property
    def _expires(self) -> bool:
        return self.sweeps and self.keep_seconds > 0

    def _start(self) -> None:
        self._volume.start()
        if self.sweeps:
            self._sweep()

    def _sweep(self) -> None:
        self._volume.remove_left()
        if self._expires:
            removed = remove_expired(self._volume, self.keep_seconds, self._stopped)
            log.debug("disk %s: %d uploads have expired", self.name, removed)

    def _sweep_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped.is_set() and (self._expires or self._volume.has_left):
            seconds = self.sweep_seconds if self._expires else _RETRY_SECONDS
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep_now)

    def _sweep_now(self) -> None:
        sweep = asyncio.get_running_loop().run_in_executor(self._volume.threads, self._sweep)
        sweep.add_done_callback(self._swept)

    def _swept(self, sweep: asyncio.Future[None]) -> None:
        if error := None if sweep.cancelled() else sweep.exception():
            log.warning("disk %s cannot be swept: %s", self.name, error)
        self._sweep_later()
