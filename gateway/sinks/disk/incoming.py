r"""The directory of one upload, from its making to its rename, or to its removal.

    made and locked -> written -> published, by a rename -> kept
                            \-> removed             \-> taken back, by a rename, and removed

1. Whatever the system refuses, each step of a removal is done though the one before failed, and none raises. The
   lock goes last. All names in the directory are known: to remove it takes no descriptor, of which there may be none.
2. `is_published` says at any time what the world sees. What was renamed, and then cannot be made durable, is taken
   back. Where that fails, too, it stays: the caller says so.
3. A thread that hangs in here may come back after its upload was answered: after `withdraw` nothing gets visible. What
   was renamed before is taken back: by the thread that renames, or, where that hangs in the fsync, by another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.concurrency.groups import Call
from gateway.sinks.disk.file_system import FileSystem, FileSystemSync
from gateway.sinks.disk.layout import INCOMING, lock_directory, sync_directory

__all__ = ["Incoming"]

_PATIENCE_SECONDS = 1.0
"""For a sweep that has met the directory before it was locked."""


class Incoming:
    """`mode` is that of directories, less the umask. Its methods block. Those that do raise OSError."""

    def __init__(self, upload_id: str, *, root: Path, file_system: FileSystem, fsync: bool, mode: int) -> None:
        # Paths as text: there are some twenty calls for each upload, and a Path costs as much as one of them.
        self.path = f"{root}/.{upload_id}{INCOMING}"
        self.final = f"{root}/{upload_id}"
        self.is_published = False
        self._root = root
        self._file_system = file_system
        self._fsync = fsync
        self._mode = mode
        self._changing = threading.Lock()
        self._lock: int | None = None
        self._is_made = False
        self._was_renamed = False
        self._is_withdrawn = False
        self._names: set[str] = set()

    @property
    def place(self) -> str:
        """Where it lies now."""
        return self.final if self.is_published else self.path

    def make(self, began_at: float | None = None) -> None:
        """Make and lock it, if that was not done. What is made and cannot be locked is removed again.

        `began_at`: since when it is waited for, by the monotonic clock; None: now.
        """
        with self._changing:
            if self._lock is None:
                self._lock = self._made((time.monotonic() if began_at is None else began_at) + _PATIENCE_SECONDS)

    def _made(self, deadline: float) -> int:
        while True:
            self._go_on()
            try:
                os.mkdir(self.path, self._mode)
            except FileExistsError:
                pass  # a sweep that was faster (sink.py, 1) is not done with it
            except FileNotFoundError:  # the root has vanished
                self._root.mkdir(self._mode, parents=True, exist_ok=True)
                os.mkdir(self.path, self._mode)
            self._is_made = True
            try:
                lock = lock_directory(self.path)
            except BlockingIOError:
                lock = None
            except OSError:
                self._remove_empty()  # if that fails, the end of the upload tries again
                raise
            if lock is not None:
                return lock
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, "its directory cannot be locked")
            time.sleep(0.001)  # a sweep takes one empty directory away, then never comes back

    def _remove_empty(self) -> OSError | None:
        try:
            os.rmdir(self.place)
        except FileNotFoundError:
            pass
        except OSError as error:
            return error
        self._is_made = False
        return None

    def file(self, name: str) -> str:
        """The path of a file that is about to be made."""
        self._names.add(name)
        return f"{self.path}/{name}"

    def unlink(self, name: str) -> None:
        """Remove a file, if it was made."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}/{name}")
        self._names.discard(name)

    # -- the end

    def touch(self) -> None:
        """All files are in it. Its age counts from here: a long upload's would else from its last file."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def sync(self) -> None:
        """Make the directory durable, if that is wanted."""
        sync_directory(self.path, self._fsync)

    def sync_all(self) -> FileSystemSync:
        """A call that makes durable all that was written, here and in others of this root for which it is made, too."""
        assert self._lock is not None
        return FileSystemSync(self._file_system, self._lock)

    def publish(self, root: Call) -> Iterator[Sequence[Call]]:
        """Rename it to its final name; durably, when `root` was called, which is yielded. After an error see
        `is_published` (2).
        """
        with self._changing:
            self._go_on()
            os.rename(self.path, self.final)
            self.is_published = self._was_renamed = True
        try:
            self._go_on()
            if self._fsync:
                yield (root,)
        except OSError:
            self.take_back()
            raise

    def _go_on(self) -> None:
        if self._is_withdrawn:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def withdraw(self) -> None:
        """From now on nothing gets visible; see `is_published` for what is. Waits for nothing."""
        self._is_withdrawn = True

    def take_back(self) -> None:
        """What is visible is no more, if the system lets us. Raises nothing."""
        with self._changing, contextlib.suppress(OSError):
            if self.is_published:
                os.rename(self.final, self.path)
                self.is_published = False

    def remove(self) -> OSError | None:
        """Remove it with all that is in it. Raises nothing; an error is why it is still there, at `place`."""
        if not self._is_made:
            return None
        self.take_back()
        refused: OSError | None = None
        for name in self._names:
            try:
                os.unlink(f"{self.place}/{name}")
            except FileNotFoundError:
                pass
            except OSError as error:
                refused = refused or error
        left = self._remove_empty()
        if self._was_renamed:  # else a power cut brings back what the next start removes
            with contextlib.suppress(OSError):
                sync_directory(self._root, self._fsync)
        return None if left is None else refused or left

    def unlock(self) -> None:
        """Let go of it. Raises nothing, and never waits for the disk."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # a descriptor is free even so
                os.close(lock)
