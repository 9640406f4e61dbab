"""How uploads lie under a root: what directories are called, how they are locked, and made durable.

    root/.01JD….incoming/    an upload that runs
    root/01JD…/              one that is published: its files, by index, and manifest.json
    root/.01JD….deleted/     one that is being removed

A lock is on a directory, not on its path: whoever has got it looks whether the path still leads there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.sinks import sink_fault

__all__ = [
    "DELETED",
    "INCOMING",
    "MANIFEST",
    "close_all",
    "lock_directory",
    "sync_directory",
    "translated",
]

MANIFEST = "manifest.json"
INCOMING, DELETED = ".incoming", ".deleted"


def lock_directory(path: Path) -> int | None:
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


def sync_directory(path: Path, fsync: bool) -> None:
    """Make the directory's entries durable, if `fsync`. Raises OSError."""
    if not fsync:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def close_all(descriptors: Iterable[int]) -> None:
    """Close each. Raises nothing: a descriptor is free even so, and of lost bytes its fsync has told."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """The system's errors as those of the sink of that name: SinkFull and SinkUnavailable."""
    try:
        yield
    except OSError as error:
        raise sink_fault(name, error) from error
