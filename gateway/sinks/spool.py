"""A body in a temporary file: nameless from the start, so that nothing of it can stay behind."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import Executor

from gateway.sinks.threads import TrackedExecutor, uninterrupted

__all__ = ["BATCH_BYTES", "Spool"]

BATCH_BYTES = 512 << 10
"""Written in one job; read in pieces of half of it."""


class Spool:
    """`write` what comes, `flush`, then read it as often as need be; `close` waits for running jobs.

    Errors are the system's: OSError.
    """

    def __init__(self, directory: str, executor: Executor) -> None:
        """`directory` must exist; "" is the system's for temporary files."""
        self._directory = directory or tempfile.gettempdir()
        self._jobs = TrackedExecutor(executor)
        self._descriptor: int | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self.size = 0

    async def write(self, data: bytes) -> None:
        self._batch.append(data)
        self._batch_bytes += len(data)
        self.size += len(data)
        if self._batch_bytes >= BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            await asyncio.get_running_loop().run_in_executor(self._jobs, self._write, batch)

    async def read(self, start: int) -> bytes:
        """A piece of what was flushed, from `start` on."""
        if self._descriptor is None:
            return b""
        loop = asyncio.get_running_loop()
        piece = await loop.run_in_executor(self._jobs, os.pread, self._descriptor, BATCH_BYTES // 2, start)
        if not piece:
            raise OSError("a spooled body is shorter than what was written")
        return piece

    async def close(self) -> None:
        self._batch.clear()
        await uninterrupted(self._jobs.after_all(self._close))

    # -- in threads

    def _write(self, batch: list[bytes]) -> None:
        if self._descriptor is None:
            self._descriptor = _nameless(self._directory)
        for data in batch:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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
