"""All that a file system holds made durable by one call, for many small uploads at once.

A small upload is five things to fsync, and each fsync waits for the journal. `syncfs` waits for it once, for whatever
was written before it, by whomever. So:

1. It is made only of file systems of which it is known that it does no less than fsync, by kernels that tell of what
   could not be written (Linux 5.8).
2. It is made only while little waits to be written on this machine: it would wait for what others write, too.
3. An error is told once to each descriptor that was opened before it came about. So the descriptor has to be older than
   what is to be durable, and whoever was told goes on with the fsync of each file, which says of which it is true.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

__all__ = ["FileSystemSync"]

_MOST_WAITING_BYTES = 64 << 20
"""Of which a slow disk takes half a second to write."""
_DURABLE = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010}
"""ext4, XFS, Btrfs and F2FS (linux/magic.h). Those in user space (FUSE) are not told at all, for one."""
_SINCE = (5, 8)
_MEMORY = "/proc/meminfo"
_WAITING = re.compile(rb"^(?:Dirty|Writeback): +([0-9]+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FileSystemSync:
    """A call for the one in which `root` lies. `descriptor` is of anything in there (rule 3).

    Equal ones are of one root, and the first of them does for all that were made after it. Raises OSError, with ENOTSUP
    where fsyncs are to be made.
    """

    root: str
    descriptor: int = field(compare=False)

    def __call__(self) -> None:
        if _magic(self.descriptor) not in _DURABLE or _waiting_bytes() > _MOST_WAITING_BYTES:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), self.root)
        _made(_libc().syncfs, self.descriptor)


def _waiting_bytes() -> int:
    """What is written on this machine, and on no disk yet."""
    with open(_MEMORY, "rb", buffering=0) as file:
        return sum(int(kibibytes) for kibibytes in _WAITING.findall(file.read())) << 10


def _magic(descriptor: int) -> int:
    """What kind of file system it is, by the number that statfs(2) tells first; -1 where that is of no use."""
    if not _tells_of_errors():
        return -1
    answer = (ctypes.c_long * 64)()  # more than the structure has anywhere
    _made(_libc().fstatfs, descriptor, ctypes.byref(answer))
    return answer[0]


@cache
def _tells_of_errors() -> bool:
    system = os.uname()
    found = re.match(r"([0-9]+)\.([0-9]+)", system.release)
    return system.sysname == "Linux" and found is not None and (int(found[1]), int(found[2])) >= _SINCE


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _made(call: Any, *arguments: Any) -> None:
    if call(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
