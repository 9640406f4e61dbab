"""How uploads lie under a root: what directories are called, how they are locked, and made durable.

    root/.01JD….incoming/    an upload that runs
    root/01JD…/              one that is published: its files, by index, and manifest.json
    root/.01JD….deleted/     one that is being removed

A lock is on a directory, not on its path: whoever has got it looks whether the path still leads there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "DELETED",
    "INCOMING",
    "MANIFEST",
    "close_all",
    "lock_directory",
    "sync_directory",
    "unusable",
]

MANIFEST = "manifest.json"
INCOMING, DELETED = ".incoming", ".deleted"
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What file systems say whose directories cannot be fsynced: some on a network, or of other systems."""


def lock_directory(path: Path | str) -> int | None:
    """A descriptor that holds the directory's lock; None if it is gone.

    Raises BlockingIOError where somebody else's lock forbids it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def sync_directory(path: Path | str, fsync: bool) -> OSError | None:
    """Make the directory's entries durable, if `fsync`. Raises OSError, but returns that the file system cannot."""
    if not fsync:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return error
    finally:
        os.close(descriptor)
    return None


def unusable(root: Path) -> str | None:
    """Why no upload can ever lie there, as far as that shows without writing; None: it can. Blocks."""
    there = next(path for path in (root, *root.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        return f"{there} is no directory"
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return f"{there} cannot be written: its owner, its mode, or a read-only file system forbids it"
    try:
        lock = lock_directory(there)
    except BlockingIOError:
        return None
    except OSError as error:
        return f"the file system of {there} cannot lock (flock): {error.strerror}"
    if lock is not None:
        os.close(lock)
    return None


def close_all(descriptors: Iterable[int]) -> None:
    """Close each. Raises nothing: a descriptor is free even so, and of lost bytes its fsync has told."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
