"""What several processes count together: in a file that all of them map, a place for each of them.

A process writes to no place but its own. It takes an upload slot under an flock, so that no two take the
last one; the lock is held for some microseconds, and the kernel opens that of a process that dies. Its
counts stay, until whoever sees it die clears them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path

__all__ = ["SharedUploadSlots", "clear_slots", "make_slots"]

_MANY = 0xFFFFFFFF
"""Connections of who accepts none, and is not to be waited for."""
_NOBODY = struct.pack("II", 0, _MANY)
"""Uploads, connections."""


class SharedUploadSlots:
    """`max_uploads` slots, of all processes together; this process has place `number`."""

    def __init__(self, path: Path, *, max_uploads: int, number: int) -> None:
        self._max_uploads = max_uploads
        self._lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._lock, 0)
        self._counts = memoryview(self._memory).cast("I")
        self._uploads, self._connections = 2 * number, 2 * number + 1

    def take(self) -> bool:
        """False where none is left."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if sum(self._counts[::2]) >= self._max_uploads:
                return False
            self._counts[self._uploads] += 1
            return True
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def give_back(self) -> None:
        """Let any process take it."""
        self._counts[self._uploads] -= 1

    def others_have_fewer(self, connections: int) -> bool:
        """Whether another process has fewer than this one, which has so many."""
        self._counts[self._connections] = connections
        return min(self._counts[1::2]) < connections

    def accept_no_more(self) -> None:
        """Have no other process leave a connection to this one."""
        self._counts[self._connections] = _MANY

    def close(self) -> None:
        """Leave the file; what was counted in it stays there."""
        self._counts.release()
        self._memory.close()
        os.close(self._lock)


def make_slots(path: Path, *, processes: int) -> None:
    """The file, with a place for each process."""
    path.write_bytes(processes * _NOBODY)


def clear_slots(path: Path, number: int) -> None:
    """The process of that number is dead."""
    with path.open("r+b", buffering=0) as file:
        file.seek(number * len(_NOBODY))
        file.write(_NOBODY)
