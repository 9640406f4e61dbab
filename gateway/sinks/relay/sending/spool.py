"""A body in a temporary file: nameless from the start, so that nothing of it can stay behind.

One file may hold several bodies, a region for each: descriptors are dearer than bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from array import array
from bisect import bisect_right
from collections.abc import Sequence

from gateway.concurrency.pipe import add_chunk
from gateway.concurrency.threads import CleanUps, DaemonThreads, TrackedExecutor

__all__ = ["BATCH_BYTES", "Region", "Spool", "try_spool"]

BATCH_BYTES = 512 << 10
"""Written in one job; read in pieces of half of it."""


class Spool:
    """`write` what comes, `flush`, then read it as often as need be; `close` waits for running jobs.

    Several may write at once: each piece lies where `size` was when it came, and is written even if who gave it
    does not wait for that. Errors are the system's, OSError; one is told to all who come after.
    """

    def __init__(self, directory: str, threads: DaemonThreads, cleanups: CleanUps | None = None) -> None:
        """`directory` must exist; "" is the system's for temporary files. `cleanups`: where what hangs is counted."""
        self._directory = directory or tempfile.gettempdir()
        self._jobs = TrackedExecutor(threads)
        self._cleanups = cleanups or CleanUps()
        self._descriptor: int | None = None
        self._one_at_a_time = threading.Lock()
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._writing: set[asyncio.Future[None]] = set()
        self._error: BaseException | None = None
        self.size = 0

    async def write(self, data: bytes) -> None:
        """The next bytes; waits while a batch of them is written. Raises OSError."""
        self._batch.append(data)
        self._batch_bytes += len(data)
        self.size += len(data)
        if self._batch_bytes >= BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Whatever was given lies in the file when this returns."""
        batch, start = self._batch, self.size - self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        if batch:
            job = asyncio.wrap_future(self._jobs.submit(self._write, batch, start))
            self._writing.add(job)
            job.add_done_callback(self._written)
        if self._writing:
            await asyncio.wait(list(self._writing))
        if self._error is not None:
            raise self._error

    def _written(self, job: asyncio.Future[None]) -> None:
        self._writing.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            self._error = self._error or error

    async def read(self, start: int, at_most: int = BATCH_BYTES // 2) -> bytes:
        """A piece of what was flushed, from `start` on."""
        if self._descriptor is None:
            return b""
        loop = asyncio.get_running_loop()
        piece = await loop.run_in_executor(self._jobs, os.pread, self._descriptor, at_most, start)
        if not piece:
            raise OSError("a spooled body is shorter than what was written")
        return piece

    async def close(self) -> None:
        """Forget it: the file is gone when this returns, unless its disk hangs. Raises nothing but a cancellation."""
        self._batch.clear()
        await self._cleanups.settle(self._jobs.after_all(self._close), "spool")

    # -- in threads

    def _write(self, batch: list[bytes], start: int) -> None:
        with self._one_at_a_time:
            if self._descriptor is None:
                self._descriptor = _nameless(self._directory)
            descriptor = self._descriptor
        for data in batch:
            rest = memoryview(data)
            while rest:
                count = os.pwrite(descriptor, rest, start)
                rest, start = rest[count:], start + count

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # nobody wants its bytes any more
                os.close(descriptor)


class Region:
    """One body among several in a spool, with some bytes ahead of it that stay in memory: a Spool to its reader.

    Where others write at the same time it lies in pieces. 16 bytes of memory remember each, and pieces of a body that
    comes alone are one.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._starts = array("q", [0])
        """Of each piece within the region; the last one is its size."""
        self._places = array("q")
        """Of each piece within the spool."""
        self._ahead: list[bytes] = []
        self._ahead_bytes = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return self._ahead_bytes + self._starts[-1]

    def put_ahead(self, pieces: Sequence[bytes]) -> None:
        """What is to be read before all else; by reference."""
        self._ahead = []
        for piece in pieces:
            if piece:
                add_chunk(self._ahead, piece)
        self._ahead_bytes = sum(map(len, self._ahead))

    async def write(self, data: bytes) -> None:
        """The next bytes. Raises OSError."""
        place, start = self._spool.size, self._starts[-1]
        if self._places and self._places[-1] + start - self._starts[-2] == place:
            self._starts[-1] += len(data)
        else:
            self._places.append(place)
            self._starts.append(start + len(data))
        await self._spool.write(data)

    async def flush(self) -> None:
        """What was given to this region, or to any, lies in the file when this returns. Raises OSError."""
        await self._spool.flush()

    async def read(self, start: int) -> bytes:
        """A piece of what was flushed, from `start` on."""
        for piece in self._ahead:
            if start < len(piece):
                return piece[start:]
            start -= len(piece)
        number = bisect_right(self._starts, start) - 1
        within, end = start - self._starts[number], self._starts[number + 1]
        return await self._spool.read(self._places[number] + within, min(end - start, BATCH_BYTES // 2))

    async def close(self) -> None:
        """The spool is somebody else's."""


def try_spool(directory: str) -> None:
    """Write into a file as a spool does. Blocks. Raises OSError."""
    descriptor = _nameless(directory or tempfile.gettempdir())
    try:
        os.pwrite(descriptor, b"probe", 0)
    finally:
        os.close(descriptor)


def _nameless(directory: str) -> int:
    """A file that has no name, on file systems that can, or that loses it at once."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
        except OSError:
            pass  # an older kernel, or a file system without them; what is wrong for both shows below
    descriptor, path = tempfile.mkstemp(prefix="gateway-", dir=directory)
    os.unlink(path)
    return descriptor
