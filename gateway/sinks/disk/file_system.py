"""All that a file system holds made durable by one call, for many small uploads at once.

A small upload is five things to fsync, and each fsync waits for the journal. `syncfs` waits for it once, for whatever
was written before it, by whomever. So:

1. It is made only of file systems of which it is known that it does no less than fsync, by kernels that tell of all
   that fails in it (Linux 5.17).
2. It waits for what others write, too. So it is made only while little waits to be written on this machine, and neither
   beside one that takes long nor for a while after it: then each file is fsynced, and waits for itself.
3. An error of what a file holds is told once to each descriptor that was opened before it came about. So the descriptor
   is older than all files that are not fsynced themselves; what is wrong with the names in a directory ends the
   journal, and with it the rename that follows. Whoever is told of an error goes on with the fsync of each file, which
   says of which it is true.

What ext4 gives up because its own maps are damaged it tells nobody here, and fsync only where it had not tried before.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

__all__ = ["FileSystem", "FileSystemSync"]

_MOST_WAITING_BYTES = 32 << 20
"""Of which a disk writes a hundred megabytes a second where they lie side by side, and much less where not (rule 2)."""
_SLOW_SECONDS = 1.0
"""A call that takes longer waits for what somebody else writes."""
_APART_SECONDS = 60.0
"""So long after such a one each file is fsynced."""
_DURABLE = {0xEF53, 0x58465342}
"""ext4 (ext3 and ext2 have the same number) and XFS, as statfs(2) tells them. Those in user space (FUSE), for one, do
not hear of it."""
_SINCE = (5, 17)
_MEMORY = "/proc/meminfo"
_WAITING = re.compile(rb"^(?:Dirty|Writeback): +([0-9]+) kB", re.MULTILINE)


class FileSystem:
    """That of a root: how long such calls take there."""

    def __init__(self) -> None:
        self._begun: list[float] = []
        self._slow_until = 0.0

    def is_slow(self) -> bool:
        """Whether a call goes on for long, or has, a short while ago. In any thread."""
        now = time.monotonic()
        return now < self._slow_until or any(now - begun > _SLOW_SECONDS for begun in list(self._begun))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """A call goes on. In any thread."""
        begun = time.monotonic()
        self._begun.append(begun)
        try:
            yield
        finally:
            self._begun.remove(begun)
            if (now := time.monotonic()) - begun > _SLOW_SECONDS:
                self._slow_until = now + _APART_SECONDS


@dataclass(frozen=True, slots=True)
class FileSystemSync:
    """The call, for the jobs of a group (`JobGroups`). `descriptor` is of anything in that file system (rule 3).

    Equal ones are of one root, and the first of them does for all. Raises OSError, with ENOTSUP where fsyncs are to be
    made.
    """

    file_system: FileSystem
    descriptor: int = field(compare=False)

    def __call__(self) -> None:
        is_known = _tells_of_errors() and _magic(self.descriptor) in _DURABLE
        if not is_known or self.file_system.is_slow() or _waiting_bytes() > _MOST_WAITING_BYTES:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        with self.file_system.timed():
            _made("syncfs", self.descriptor)


def _waiting_bytes() -> int:
    """What is written on this machine, and on no disk yet. Raises OSError where /proc does not tell."""
    with open(_MEMORY, "rb", buffering=0) as file:
        return sum(int(kibibytes) for kibibytes in _WAITING.findall(file.read())) << 10


def _magic(descriptor: int) -> int:
    """What kind of file system it is, by the number that statfs(2) tells first."""
    answer = (ctypes.c_long * 64)()  # more than the structure has anywhere
    _made("fstatfs", descriptor, ctypes.byref(answer))
    return answer[0]


@cache
def _tells_of_errors() -> bool:
    system = os.uname()
    found = re.match(r"([0-9]+)\.([0-9]+)", system.release)
    return system.sysname == "Linux" and found is not None and (int(found[1]), int(found[2])) >= _SINCE


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _made(name: str, *arguments: Any) -> None:
    try:
        call = getattr(_libc(), name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if call(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
