"""What several processes count together: in a file that all of them map, a place for each of them.

A process writes to no place but its own. It takes a slot under an flock, so that no two take the
last one; the lock is held for some microseconds, and the kernel opens that of a process that dies. Its
counts stay, until whoever sees it die clears them.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import struct
import time
from hashlib import blake2b
from pathlib import Path

__all__ = ["SharedCounts", "clear_slots", "make_slots"]

_MANY = 0xFFFFFFFF
"""Connections of who accepts none, and is not to be waited for."""
_UPLOADS, _READS, _CONNECTIONS = range(3)
_LEFT_SECONDS = 0.01
"""As long as it may take until an idle process runs; one that hangs costs others so much for each connection."""
_HOLDERS = "holders"
_SECRET = "secret"
_HELD = 1024
"""Uploads of one process whose clients have a limit of their own: more are refused."""
_NOBODY = struct.pack("III", 0, 0, _MANY)


class SharedCounts:
    """What all processes count together; this process has place `number`."""

    def __init__(self, path: Path, *, number: int) -> None:
        self.lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self.lock, 0)
        self.counts = memoryview(self._memory).cast("I")
        self.number = number
        self.directory = path.parent
        """Which all of them share, and nobody else may look into."""
        self._file = os.open(path.with_name(_HOLDERS), os.O_RDWR | os.O_CLOEXEC)
        self._held_memory = mmap.mmap(self._file, 0)
        self._held = memoryview(self._held_memory).cast("Q")

    def uploads(self, limit: int) -> _CountedSlots:
        """So many slots, of all processes together."""
        return _CountedSlots(self, limit, self.number, _UPLOADS)

    def reads(self, limit: int) -> _CountedSlots:
        """Likewise."""
        return _CountedSlots(self, limit, self.number, _READS)

    @property
    def counts_file(self) -> Path:
        """Where quotas are counted."""
        return self.directory / "counts"

    @property
    def secret(self) -> str:
        """Which all of them have, and nobody else."""
        return (self.directory / _SECRET).read_text()

    def holders(self) -> _CountedHolders:
        """Who has uploads in progress, in all processes."""
        return _CountedHolders(self.lock, self._held, self.number)

    def connections(self) -> _CountedConnections:
        """Those of all processes."""
        return _CountedConnections(self.counts, self.number)

    def close(self) -> None:
        """Leave the file; what was counted in it stays there."""
        self.counts.release()
        self._memory.close()
        os.close(self.lock)
        self._held.release()
        self._held_memory.close()
        os.close(self._file)


class _CountedSlots:
    """SharedSlots of one kind."""

    def __init__(self, shared: SharedCounts, limit: int, number: int, kind: int) -> None:
        self._shared = shared
        self._limit = limit
        self._kind = kind
        self._ours = 3 * number + kind

    def take(self) -> bool:
        lock, counts = self._shared.lock, self._shared.counts
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if sum(counts[self._kind :: 3]) >= self._limit:
                return False
            counts[self._ours] += 1
            return True
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def give_back(self) -> None:
        self._shared.counts[self._ours] -= 1


class _CountedHolders:
    """SharedHolders. A process writes down whose each of its uploads is, as a hash of the name."""

    def __init__(self, lock: int, held: memoryview, number: int) -> None:
        self._lock = lock
        self._held = held
        self._first = number * _HELD

    def take(self, name: str, most: int) -> bool:
        mark = _mark(name)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if self._held.tolist().count(mark) >= most:
                return False
            return self._write(0, mark)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def give_back(self, name: str) -> None:
        self._write(_mark(name), 0)

    def _write(self, before: int, after: int) -> bool:
        """Into the first of our places that has `before`."""
        ours = self._held[self._first : self._first + _HELD].tolist()
        if before not in ours:
            return False
        self._held[self._first + ours.index(before)] = after
        return True


def _mark(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) or 1


class _CountedConnections:
    """SharedConnections, of which a process leaves the next one to others that have fewer, if these take it soon.

    All wake up for each, and the first one would take a whole burst, because nobody's queue fills. One that leaves it
    is asked again at once, by a listener that is still readable.
    """

    def __init__(self, counts: memoryview, number: int) -> None:
        self._counts = counts
        self._ours = 3 * number + _CONNECTIONS
        self._left_since = self._left_last = -math.inf
        self._accepts = True

    def tell(self, connections: int) -> None:
        if self._accepts:
            self._counts[self._ours] = connections

    def of_others(self) -> int:
        theirs = (self._counts[place] for place in range(_CONNECTIONS, len(self._counts), 3) if place != self._ours)
        return sum(count for count in theirs if count != _MANY)

    def is_our_turn(self) -> bool:
        if min(self._counts[_CONNECTIONS::3]) >= self._counts[self._ours]:
            return True
        now = time.monotonic()
        if now - self._left_last > _LEFT_SECONDS:  # the one before was taken: this is another one
            self._left_since = now
        if now - self._left_since < _LEFT_SECONDS:
            self._left_last = now
            os.sched_yield()
            return False
        self._left_last = -math.inf
        return True

    def accept_no_more(self) -> None:
        """Have no other process leave a connection to this one."""
        self._accepts = False
        self._counts[self._ours] = _MANY


def make_slots(path: Path, *, processes: int) -> None:
    """The file, with a place for each process."""
    path.write_bytes(processes * _NOBODY)
    path.with_name(_HOLDERS).write_bytes(bytes(8 * _HELD * processes))
    path.with_name(_SECRET).write_text(secrets.token_hex())


def clear_slots(path: Path, number: int) -> None:
    """The process of that number is dead."""
    with path.open("r+b", buffering=0) as file:
        file.seek(number * len(_NOBODY))
        file.write(_NOBODY)
    with path.with_name(_HOLDERS).open("r+b", buffering=0) as file:
        file.seek(number * 8 * _HELD)
        file.write(bytes(8 * _HELD))
