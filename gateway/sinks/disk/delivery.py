"""One upload's share of a disk sink: which job runs when, and what the dispatcher is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiofiles.threadpool import wrap

from gateway.concurrency.pipe import Progress, gathered
from gateway.errors import SinkFault
from gateway.model import Limits, Part, Receipt
from gateway.sinks import Delivery
from gateway.sinks.disk.volume import Volume

__all__ = ["DiskDelivery", "memory_shares"]

_BATCH_BYTES = 1 << 20
"""The most that is written in one job, and hashed beside it; a batch is what came while the one before was written."""
_FLUSH_BYTES = 64 << 20
"""Long files are flushed as they grow, or the last flush of a huge one would look like a stall."""

T = TypeVar("T")


def memory_shares(limits: Limits, received: int) -> dict[str, int]:
    """What a disk sink holds of one upload at most, in bytes: the batch of each open part that is being written.

    It may be over its size by what is `received` at a time.
    """
    return {"batches being written to disk": limits.parallel_parts * (_BATCH_BYTES + received)}


class DiskDelivery(Delivery):
    """One upload on its way to disk. Its verbs raise SinkFull and SinkUnavailable for what the system says."""

    takes_batches = holds_batch = hashes = True

    def __init__(self, upload_id: str, volume: Volume, *, expected_bytes: int = 0) -> None:
        self._upload_id = upload_id
        self._volume = volume
        self._jobs = volume.jobs(upload_id, expected_bytes=expected_bytes)
        self._directory = self._jobs.directory
        self._executor = volume.tracked()
        self._sink = volume.name
        self._receipts: dict[int, Receipt] = {}
        self._held: Sequence[tuple[Part, bytes]] = ()
        self._manifest: bytes | None = None
        self._is_kept = False
        self._replacing = False

    def keep_time(self, progress: Progress) -> None:
        """Have it told, in threads, that the disk works: ours, or that of others while we wait for a thread."""
        threads = self._volume.threads

        def moved() -> None:
            progress.moved()
            threads.moved()

        self._executor.progress = progress
        self._jobs.moved = moved

    def hash_part(self, part: Part, algorithms: Sequence[str]) -> None:
        """In the thread that writes it."""
        self._jobs.algorithms[part.index] = algorithms

    def digests(self) -> Mapping[int, tuple[int, Mapping[str, str]]]:
        """Of all those, when they were accepted."""
        return self._jobs.digests

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """Write a part as it comes; its file is durable when this returns."""
        with self._volume.translated():
            raw = await self._run(self._jobs.create, part.index)
            file = wrap(raw, loop=asyncio.get_running_loop(), executor=self._executor)
            unflushed = 0
            # While one batch is written the next one gathers where it comes from, in the window of the part.
            async for batch, size in gathered(chunks, _BATCH_BYTES):
                await file.writelines(batch)
                unflushed += size
                if unflushed >= _FLUSH_BYTES:
                    await self._run(self._jobs.flush, raw)
                    unflushed = 0
            await self._run(self._jobs.close_part, part.index, raw)
            self._receipts[part.index] = Receipt(part.index, self._sink)

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """Write many small parts in one job; all of them are durable when this returns."""
        with self._volume.translated():
            await self._run(self._jobs.write_all, parts)
            for part, _ in parts:
                self._receipts[part.index] = Receipt(part.index, self._sink)

    def hold_batch(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """They are written by `commit`."""
        self._held = parts
        for part, _ in parts:
            self._receipts[part.index] = Receipt(part.index, self._sink)

    async def drop(self, part: Part) -> None:
        """Forget one part: nothing of it is kept."""
        with self._volume.translated():
            self._receipts.pop(part.index, None)
            # a job of an accept that was cancelled may be running still, and would bring the file back
            removal = self._executor.after_those_before(partial(self._jobs.remove, part.index))
            await asyncio.wrap_future(removal)

    def receipts(self) -> list[Receipt]:
        """Those of the parts that were accepted, by index."""
        return [self._receipts[index] for index in sorted(self._receipts)]

    def keep_manifest(self, manifest: bytes) -> None:
        """It is written by `commit`."""
        self._manifest = manifest

    async def replace_manifest(self, manifest: bytes) -> None:
        """After `commit`: another manifest, or the one that there was."""
        with self._volume.translated():
            self._replacing = True
            await self._run(self._jobs.rewrite, manifest)
            self._replacing = False

    async def commit(self) -> list[Receipt]:
        """The rename; what was acknowledged survives a power cut."""
        try:
            with self._volume.translated():
                await self._publish()
        except SinkFault:
            # Renamed, not durable, and not to be taken back: it stays, and the answer says so.
            self._is_kept = self._directory.is_published
            raise
        self._is_kept = True
        return self.receipts()

    async def _publish(self) -> None:
        """With those of other uploads that wait at the same time."""
        began_at = time.monotonic()
        publish = partial(self._jobs.publish, self._held, self._manifest, self._volume.sync_root, began_at)
        job = self._volume.groups.submit(publish, weight=len(self._held) + 2, progress=self._executor.progress)
        self._held = ()
        self._executor.track(job)
        await job.answered

    def committed(self) -> list[Receipt]:
        """What is visible, whether its commit has failed or not."""
        return self.receipts() if self._is_kept else []

    async def end(self) -> None:
        """Close everything; unless it is kept, remove everything. Raises nothing but a cancellation.

        What a disk that hangs has not done by then is done behind whoever awaits this.
        """
        if self._is_kept and not self._jobs.has_open_files and not self._replacing:
            self._directory.unlock()  # nothing that could wait for the disk
            return
        if not self._is_kept:
            self._jobs.end()
            self._directory.withdraw()
            if self._directory.is_published:  # in a thread of its own: all others may hang, as this one's fsync does
                with contextlib.suppress(RuntimeError):  # there is none to have: it is left to `finish`
                    threading.Thread(target=self._directory.take_back, daemon=True).start()
        finishing = self._executor.after_all(partial(self._jobs.finish, keep=self._is_kept))
        finishing.add_done_callback(self._finished)
        await self._volume.cleanups.settle(finishing, self._upload_id)

    def _finished(self, finishing: Future[OSError | None]) -> None:
        error = finishing.exception() or finishing.result()
        if isinstance(error, OSError):
            self._volume.leave(Path(self._directory.place), error)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._jobs.in_directory, function, *args)
